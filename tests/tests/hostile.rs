//! A guest that attacks its VMM: garbage in every register and on every ring.
//!
//! hosts: gicv3
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::time::Duration;

use rotifer_tests::{ExitCode, HOSTILE_GUEST, Vm, VmBuilder, empty_disk};
use tempfile::TempDir;

/// Rounds of abuse per seed; a round is up to some forty register accesses.
const ROUNDS: u32 = 512;

fn start(directory: &TempDir, seed: u64, end: &str) -> Vm {
    let path = |name: &str| directory.path().join(name);
    fs::write(path("hostile.image"), HOSTILE_GUEST).unwrap();
    empty_disk(&path("scratch"), 8 << 20);
    empty_disk(&path("fixed"), 8 << 20);
    VmBuilder::bare_metal(&path("hostile.image"), &format!("seed={seed} rounds={ROUNDS} {end}"))
        .drive("scratch", &path("scratch"), false)
        .drive("fixed", &path("fixed"), true)
        .start()
}

#[test]
fn garbage_in_registers_and_rings_neither_ends_nor_stops_the_vmm() {
    for seed in [1, 2, 3] {
        let directory = TempDir::new().unwrap();
        let mut vm = start(&directory, seed, "");
        vm.console.wait_for("hostile: survived");
        vm.wait_for_exit(ExitCode::PowerOff);
        assert!(!vm.messages.has("panicked"), "{}", vm.report());
        assert!(
            fs::read(directory.path().join("fixed")).unwrap().iter().all(|&byte| byte == 0),
            "a read-only disk was written"
        );
    }
}

#[test]
fn after_the_abuse_the_vmm_is_idle() {
    let directory = TempDir::new().unwrap();
    let vm = start(&directory, 4, "wfi=1");
    vm.console.wait_for("hostile: survived");
    // The only way to see that something does not spin is to give it time to do so.
    let window = Duration::from_secs(3);
    let before = vm.cpu_times();
    std::thread::sleep(window);
    let after = vm.cpu_times();
    let used = after.0 - before.0 + after.1 - before.1;
    assert!(used < window / 20, "an idle VMM used {used:?} of CPU in {window:?}\n{}", vm.report());
}
