//! A machine under load is suspended, killed and restored again and again: what it computes and
//! stores stays right, and nothing grows with it.
//!
//! hosts: gicv3
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rotifer_tests::{
    Artifacts, LOAD_DISK_BYTES, Look, Pager, Vm, VmBuilder, ask_load, empty_disk, start_load,
};
use serde_json::Value;
use tempfile::TempDir;

const CYCLES: usize = 200;
const MEMORY_MIB: u64 = 128;
/// How often all of the data is looked at, once in either kind of memory.
const LOOK_EVERY: usize = 20;
/// How often packs that are not needed are removed.
const PRUNE_EVERY: usize = 10;
/// Of images that no machine uses, the pager keeps so much.
const KEEP_MIB: u64 = 64;

/// What may not grow from cycle to cycle, and by how much it may be larger at times: how many packs a
/// snapshot has, and how many images and threads of machines that have just ended the pager still has,
/// differs from cycle to cycle. What each cycle left behind would be 50 of it. How large packs are follows from how
/// much the load has written meanwhile, some 4 MiB each, so their number tells more.
const MEASURES: [(&str, u64); 13] = [
    ("KiB of the VMM", 4096),
    ("files open in the VMM", 8),
    ("threads of the VMM", 0),
    ("KiB of the pager", 8192),
    ("files open in the pager", 16),
    ("memfds of the pager", 2),
    ("threads of the pager", 2),
    ("KiB in use in the guest", 1024),
    ("KiB of the agent", 256),
    ("files open in the agent", 0),
    ("files of snapshots", 8),
    ("KiB of snapshots beside packs", 4096),
    ("KiB of snapshots", 32 << 10),
];
type Sample = [u64; MEASURES.len()];

/// A line of a process's status, in KiB.
fn resident_kib(process: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Entries of a directory of a process: `fd`, `task`.
fn count(process: u32, what: &str) -> u64 {
    fs::read_dir(format!("/proc/{process}/{what}")).unwrap().count() as u64
}

fn memfds(process: u32) -> u64 {
    let fds = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let targets = fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("/memfd:")).count() as u64
}

/// Of packs, and of all else.
fn file_kib(directory: &Path) -> [u64; 2] {
    let mut bytes = [0; 2];
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        bytes[usize::from(!is_pack(&entry.path()))] += entry.metadata().unwrap().len();
    }
    bytes.map(|bytes| bytes >> 10)
}

fn is_pack(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "pack")
}

fn sample(vm: &Vm, pager: &Pager, directory: &Path, look: Look) -> Sample {
    let guest = ask_load(vm, look);
    let [packs_kib, others_kib] = file_kib(directory);
    [
        resident_kib(vm.pid()),
        count(vm.pid(), "fd"),
        count(vm.pid(), "task"),
        resident_kib(pager.pid()),
        count(pager.pid(), "fd"),
        memfds(pager.pid()),
        count(pager.pid(), "task"),
        (MEMORY_MIB << 10) - guest.available_kib,
        guest.agent_kib,
        guest.agent_fds,
        fs::read_dir(directory).unwrap().count() as u64,
        others_kib,
        packs_kib + others_kib,
    ]
}

fn vmm(words: &[&str], path: &Path) -> Vec<u8> {
    let output = Command::new(Artifacts::find().vmm).args(words).arg(path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Afterwards there is no pack but those that the snapshot consists of, and those of earlier ones that the pager
/// still has open.
fn prune(directory: &Path, snapshot: &Path) {
    let read = |words: &[&str], path: &Path| -> Value {
        serde_json::from_slice(&vmm(words, path)).unwrap()
    };
    let pruned = read(&["snapshot", "prune", "--json"], directory);
    let shown = read(&["snapshot", "inspect", "--json"], snapshot);
    let count = |list: &Value| list.as_array().unwrap().len();
    let left = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let left = left.filter(|path| is_pack(path)).count();
    assert_eq!(left, count(&shown["layers"]) + count(&pruned["in_use"]), "{pruned}");
}

/// The most of each measure.
fn most(samples: &[Sample]) -> Sample {
    let most = |index: usize| samples.iter().map(|sample| sample[index]).max().unwrap();
    std::array::from_fn(most)
}

/// The second half of the cycles has no more than the first half; each has all lengths of a chain of
/// packs.
fn assert_steady(kind: &str, samples: &[Sample]) {
    let (early, late) = samples.split_at(samples.len() / 2);
    let (early, late) = (most(early), most(late));
    for (index, (measure, more)) in MEASURES.into_iter().enumerate() {
        let (early, late) = (early[index], late[index]);
        println!("{kind}: {measure}: {early}, then {late}");
        assert!(late <= early + more, "{kind}: {measure} grew from {early} to {late}");
    }
}

#[test]
fn two_hundred_suspends_under_load_lose_nothing_and_nothing_grows() {
    let [directory, disks] = [(); 2].map(|()| TempDir::new().unwrap());
    let (snapshot, disk) = (directory.path().join("vm.snap"), disks.path().join("disk"));
    empty_disk(&disk, LOAD_DISK_BYTES);
    let builder = VmBuilder::new().memory_mib(MEMORY_MIB).drive("data", &disk, false);
    let pager = Pager::start_keeping(KEEP_MIB);
    let mut vm = start_load(&builder, env!("CARGO_BIN_EXE_soak_load"));
    // Of machines with memory of their own, and of those that share it.
    let mut samples = [Vec::new(), Vec::new()];
    let mut times = [Duration::ZERO; 3];
    for cycle in 0..CYCLES {
        let started = Instant::now();
        vm.suspend(&snapshot, if cycle == 0 { "Full" } else { "Diff" });
        vm.signal(libc::SIGKILL);
        drop(vm);
        if cycle % PRUNE_EVERY == 0 {
            prune(directory.path(), &snapshot);
        }
        let suspended = Instant::now();
        let kind = cycle % samples.len();
        vm = match kind {
            0 => builder.restore(&snapshot),
            _ => builder.restore_shared(&snapshot, &pager),
        };
        let restored = Instant::now();
        let look = if cycle % LOOK_EVERY < samples.len() { Look::AtAll } else { Look::AtSome };
        samples[kind].push(sample(&vm, &pager, directory.path(), look));
        times[0] += suspended - started;
        times[1] += restored - suspended;
        times[2] += restored.elapsed();
    }
    ask_load(&vm, Look::AtAll);
    println!(
        "in all: suspends {:.1?}, restores {:.1?}, answers {:.1?}",
        times[0], times[1], times[2]
    );
    assert_steady("memory of its own", &samples[0]);
    assert_steady("shared memory", &samples[1]);
}
