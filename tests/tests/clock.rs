//! The guest's clocks: the wall clock is the host's, at boot and after a restore; the monotonic one
//! goes on from where it was.
//!
//! hosts: gicv3
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rotifer_tests::{Pager, Vm, VmBuilder};
use tempfile::TempDir;

/// How wrong a wall clock may be.
const PRECISE: Duration = Duration::from_millis(50);
/// The same where the host tells whole seconds.
const COARSE: Duration = Duration::from_secs(1);
/// By how much a guest's clock is set back, as if its snapshot were so old.
const AGE: Duration = Duration::from_secs(3600);

fn builder() -> VmBuilder {
    VmBuilder::new().memory_mib(256).vcpus(2).debian()
}

/// How far the guest's wall clock is at least from the host's, from now on. The first answer of a
/// guest takes longest, and so says least; what follows shows how right it was.
fn wall_clock_error(vm: &Vm, when: &str) -> Duration {
    [(); 3].map(|()| one_error(vm, when)).into_iter().max().unwrap()
}

/// The guest's clock is read at some moment between two readings of the host's.
fn one_error(vm: &Vm, when: &str) -> Duration {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let before = now();
    let guest: u64 = vm.shell("date +%s%N").trim().parse().unwrap();
    let after = now();
    let guest = Duration::from_nanos(guest);
    let error = before.saturating_sub(guest).max(guest.saturating_sub(after));
    println!("{when}: at least {error:?} wrong, asked for {:?}", after - before);
    error
}

/// The guest's monotonic clock.
fn monotonic(vm: &Vm) -> Duration {
    let health = vm.agent_client().health().unwrap();
    Duration::from_nanos(health["timeline"]["now_ns"].as_u64().unwrap())
}

/// As if an hour passed until the next restore.
fn age(vm: &Vm) {
    vm.shell(&format!("date -s @$(($(date +%s) - {}))", AGE.as_secs()));
    assert!(one_error(vm, "set back") > AGE / 2);
}

#[test]
fn a_guest_has_the_hosts_time_at_boot_and_after_each_restore() {
    let directory = TempDir::new().unwrap();
    let [first, second, third] = ["1", "2", "3"].map(|name| directory.path().join(name));
    let mut vm = builder().start();
    vm.wait_until_ready();
    assert!(wall_clock_error(&vm, "at boot") < PRECISE, "{}", vm.report());
    age(&vm);
    let (saved_at, saved) = (Instant::now(), monotonic(&vm));
    vm.suspend(&first, "Full");
    drop(vm);

    let pager = Pager::start();
    let restored = [builder().restore(&first), builder().restore_shared(&first, &pager)];
    for vm in &restored {
        assert!(wall_clock_error(vm, "restored") < PRECISE, "{}", vm.report());
    }
    let [vm, clone] = restored;
    drop(clone);
    // That the wall clock is set does not move the other one.
    let now = monotonic(&vm);
    assert!((saved..saved + saved_at.elapsed()).contains(&now), "from {saved:?} to {now:?}");
    age(&vm);
    vm.suspend(&second, "Diff");
    drop(vm);
    let vm = builder().restore(&second);
    assert!(wall_clock_error(&vm, "restored again") < PRECISE, "{}", vm.report());

    // Without the host's precise clock there is the chip, and a word about it, once.
    const NOTICE: &str = "the wall clock is right to a second only";
    assert!(!vm.console.has(NOTICE), "{}", vm.report());
    vm.shell("rm /dev/ptp0");
    age(&vm);
    vm.suspend(&third, "Diff");
    drop(vm);
    let vm = builder().restore(&third);
    assert!(wall_clock_error(&vm, "by the chip") < COARSE, "{}", vm.report());
    vm.console.wait_for(NOTICE);
}
