//! Benchmark: what a network of a microVM costs the host: made from nothing and from the pool, its policy
//! changed, removed.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use rotifer_network::files::Name;
use rotifer_network::host::{Host, Options};
use rotifer_network::policy::Policy;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::bench::{Rounds, Setup};
use crate::record::{Metric, Recorder, Side};

const ROUNDS: Rounds = Rounds { warm_up: 0, full: 3, counted: 1, quick: 1 };

const NETWORKS: usize = 100;
const NETWORKS_QUICK: usize = 10;

/// Runs it. The peer leaves networks to others.
///
/// # Errors
/// The host cannot have networks.
pub fn run(setup: &Setup) -> Result<Recorder> {
    // SAFETY: there is one thread, and no descriptor that the namespace concerns. All is made beside the
    // host's own networks.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("cannot make a network namespace")?;
    let root = PathBuf::from(format!("/run/rotifer/bench-{}", std::process::id()));
    let host = Host::open(&root)?;
    let measured = setup.rounds(ROUNDS, |subject, recorder| match subject.side {
        Side::Peer => Ok(()),
        Side::Own => round(setup, &host, recorder),
    });
    let swept = host.sweep(true);
    let measured = measured?;
    swept?;
    std::fs::remove_dir_all(&root).with_context(|| format!("cannot remove {root:?}"))?;
    Ok(measured)
}

fn round(setup: &Setup, host: &Host, recorder: &mut Recorder) -> Result<()> {
    let count = if setup.quick { NETWORKS_QUICK } else { NETWORKS };
    let names = (0..count).map(|number| format!("vm-{number}").parse::<Name>());
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let policy = Policy::internet();
    let mut each = |what, act: &dyn Fn(&Name) -> Result<(), rotifer_network::host::Error>| {
        let begin = Instant::now();
        for name in &names {
            let begin = Instant::now();
            act(name)?;
            let name = format!("a network {what}");
            recorder.add(
                Side::Own,
                Metric::lower_of(name, "ms"),
                begin.elapsed().as_secs_f64() * 1e3,
            );
        }
        let name = format!("{count} networks {what}");
        recorder.add(Side::Own, Metric::lower_of(name, "ms"), begin.elapsed().as_secs_f64() * 1e3);
        anyhow::Ok(())
    };
    let create = |name: &Name| host.create(name, &policy, Options::default());
    each("made from nothing", &create)?;
    each("given another policy", &|name| host.set_policy(name, &Policy::none()))?;
    each("removed", &|name| host.delete(name))?;
    each("made for the pool", &|_| host.add_to_pool(&policy))?;
    each("taken from the pool", &create)?;
    each("removed", &|name| host.delete(name))
}
