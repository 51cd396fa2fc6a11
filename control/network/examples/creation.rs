//! How long a network takes: from nothing, from the pool, a change of policy, its removal.
//!
//! As root: `cargo run --release -p rotifer-network --example creation`. It uses a directory and a
//! network namespace of its own, so it may run beside anything.

use std::time::{Duration, Instant};

use anyhow::Result;
use rotifer_network::{
    files::Name,
    host::{Host, Options},
    policy::Policy,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

const COUNT: usize = 100;

fn main() -> Result<()> {
    // SAFETY: there is one thread, and no descriptor that the namespaces concern.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    let root =
        std::path::PathBuf::from(format!("/run/rotifer/network-bench-{}", std::process::id()));
    let host = Host::open(&root)?;
    let names = (0..COUNT).map(|number| format!("vm-{number}").parse::<Name>());
    let names: Vec<Name> = names.collect::<Result<_, _>>()?;
    let create = |name: &Name| host.create(name, &Policy::internet(), Options::default());

    report("from nothing", each(&names, create)?);
    report("change of policy", each(&names, |name| host.set_policy(name, &Policy::none()))?);
    report("removal", each(&names, |name| host.delete(name))?);
    report("into the pool", each(&names, |_| host.add_to_pool(&Policy::internet()))?);
    report("from the pool", each(&names, create)?);
    host.sweep(true)?;
    std::fs::remove_dir_all(&root)?;
    Ok(())
}

fn each<E: std::error::Error + Send + Sync + 'static>(
    names: &[Name],
    mut act: impl FnMut(&Name) -> Result<(), E>,
) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(names.len());
    for name in names {
        let started = Instant::now();
        act(name)?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

fn report(what: &str, times: Vec<Duration>) {
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    println!("{what:<18} median {:>9.3?}   p90 {:>9.3?}   p99 {:>9.3?}", at(50), at(90), at(99));
}
