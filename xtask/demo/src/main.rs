//! What `./x demo` runs on the host: a microVM with the example web app, from outside. It boots,
//! answers, is suspended and killed, goes on in another process, is cloned, and is forked while it runs.
//!
//! It waits for events only: the agent connects to the host when it serves, the app's log says when
//! the app listens, and the VMM says when a machine is restored.

mod app;
mod machine;
mod timeline;

use std::{env, fs, path::Path, path::PathBuf, thread, time::Instant};

use anyhow::{Context, Result, bail};
use rotifer_agent::agent::ShutdownMode;

use crate::{
    machine::{Machine, Stage},
    timeline::Timeline,
};

const VISIT_COUNT: u64 = 3;
const CLONE_COUNT: usize = 20;
const CHILD_COUNT: usize = 3;

fn main() -> Result<()> {
    let mut arguments = env::args_os().skip(1).map(PathBuf::from);
    let (Some(vmm), Some(config)) = (arguments.next(), arguments.next()) else {
        bail!("usage: rotifer-demo VMM CONFIG");
    };
    let stage = Stage::prepare(vmm, &config)?;
    let snapshot = stage.path("web-app.snapshot");
    let machine = boot(&stage)?;
    suspend(machine, &snapshot)?;
    let mut machine = resume(&stage, &snapshot)?;
    clone(&stage, &snapshot)?;
    fork(&stage, &machine)?;

    let agent = machine.agent();
    agent.shutdown(ShutdownMode::Poweroff).context("cannot shut the guest down")?;
    let status = machine.wait()?;
    println!("\nThe resumed guest has shut down; its VMM ended with {status}.");
    if !status.success() {
        bail!("that should have been a success");
    }
    Ok(())
}

/// Boots the machine and visits its app.
fn boot(stage: &Stage) -> Result<Machine> {
    let mut timeline = Timeline::start();
    let machine = stage.boot("first")?;
    timeline.note("the VMM's process exists");
    let agent = machine.await_agent()?;
    timeline.note("the agent in the guest serves");
    let health = agent.health().context("cannot ask the agent for its health")?;
    app::await_listening(&agent)?;
    timeline.note("the web app listens");
    for number in 1..=VISIT_COUNT {
        let asked = Instant::now();
        let answer = app::get(&agent)?;
        if number == 1 {
            timeline.note("the web app has answered its first request");
        }
        println!("GET / through vsock -> {answer} ({})", milliseconds(asked));
    }
    timeline.add_guest(&health["timeline"]);
    println!("\n{timeline}");
    Ok(machine)
}

/// Writes a snapshot, and kills the process for good.
fn suspend(machine: Machine, snapshot: &Path) -> Result<()> {
    let begin = Instant::now();
    machine.suspend(snapshot)?;
    let directory = snapshot.parent().unwrap_or(Path::new("."));
    let files = fs::read_dir(directory).context("cannot list the snapshot's directory")?;
    let packs =
        files.flatten().filter(|file| file.path().extension().is_some_and(|it| it == "pack"));
    let bytes: u64 = packs.filter_map(|pack| Some(pack.metadata().ok()?.len())).sum();
    let megabytes = bytes >> 20;
    println!("Suspended in {}: a snapshot with {megabytes} MiB of memory.", milliseconds(begin));
    machine.kill()?;
    println!("Its process was killed with SIGKILL.");
    Ok(())
}

/// Takes the machine up again in a new process: its app counts on.
fn resume(stage: &Stage, snapshot: &Path) -> Result<Machine> {
    let begin = Instant::now();
    let machine = stage.restore("resumed", snapshot, None)?;
    let agent = machine.await_restored()?;
    let visit = app::visit(&agent)?;
    println!(
        "Resumed: {} from the start of the process to the app's answer: visit number {visit}.\n",
        milliseconds(begin)
    );
    if visit != VISIT_COUNT + 1 {
        bail!("it should have been number {}", VISIT_COUNT + 1);
    }
    Ok(machine)
}

/// Starts clones of the snapshot side by side: each has the memory of the same moment, and shares with
/// the others what it does not write.
fn clone(stage: &Stage, snapshot: &Path) -> Result<()> {
    let pager = &stage.pager()?;
    let begin = Instant::now();
    let clones = side_by_side(CLONE_COUNT, VISIT_COUNT + 1, |number| {
        stage.restore(&format!("clone-{number}"), snapshot, Some(pager))
    })?;
    let time = milliseconds(begin);
    let kib: u64 = clones.iter().map(Machine::memory_kib).sum::<Result<_>>()?;
    let kib = kib + pager.memory_kib()?;
    println!(
        "{CLONE_COUNT} clones of the snapshot have answered side by side after {time}, each with visit \
         number {}; {} MiB of memory together, with what they share.",
        VISIT_COUNT + 1,
        kib >> 10
    );
    Ok(())
}

/// Forks the machine while it runs: its children go on from that moment, and so does it.
fn fork(stage: &Stage, machine: &Machine) -> Result<()> {
    let pager = &stage.pager()?;
    let before = app::visit(&machine.agent())?;
    let begin = Instant::now();
    let fork = machine.fork()?;
    println!(
        "\nForked in {}: the machine stood still for {:.1} ms of them; {} MiB are held in memory.",
        milliseconds(begin),
        fork.pause_us as f64 / 1e3,
        fork.held_bytes >> 20
    );
    let after = app::visit(&machine.agent())?;
    let children = side_by_side(CHILD_COUNT, before + 1, |number| {
        stage.restore_fork(&format!("child-{number}"), &fork, pager)
    })?;
    println!(
        "{} children have answered {} after the fork was asked for, each with visit number {}; their \
         parent went on in between, with number {after}.",
        children.len(),
        milliseconds(begin),
        before + 1
    );
    if after != before + 1 {
        bail!("it should have been number {}", before + 1);
    }
    Ok(())
}

/// Starts machines at the same time, and has each answer the visit that is `expected`.
fn side_by_side(
    count: usize,
    expected: u64,
    start: impl Fn(usize) -> Result<Machine> + Sync,
) -> Result<Vec<Machine>> {
    let answered = |number| -> Result<Machine> {
        let machine = start(number)?;
        let visit = app::visit(&machine.await_restored()?)?;
        if visit != expected {
            bail!("machine {number} answers visit number {visit}");
        }
        Ok(machine)
    };
    thread::scope(|scope| {
        let answered = &answered;
        let threads: Vec<_> =
            (0..count).map(|number| scope.spawn(move || answered(number))).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|machine| machine.unwrap_or_else(|_| bail!("a thread panicked"))).collect()
    })
}

fn milliseconds(since: Instant) -> String {
    format!("{:.1} ms", since.elapsed().as_secs_f64() * 1e3)
}
