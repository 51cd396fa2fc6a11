//! Linux boots, sees the machine it was promised, and ends in each of the ways a guest can end.
//!
//! hosts: gicv3, gicv2, 16k, sve
#![cfg(target_arch = "aarch64")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rotifer_agent::agent::ShutdownMode;
use rotifer_tests::{ExitCode, VmBuilder};

#[test]
fn a_guest_has_the_vcpus_it_was_promised_and_all_of_them_run() {
    for count in [1, 2, 4] {
        let mut vm = VmBuilder::new().vcpus(count).debian().start();
        vm.wait_until_ready();
        assert_eq!(vm.shell("nproc").trim(), count.to_string());
        // Each CPU runs a process that is bound to it.
        let script = "for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c $cpu cat /proc/self/stat \
                      | awk '{print $39}'; done";
        let expected: Vec<String> = (0..count).map(|cpu| cpu.to_string()).collect();
        assert_eq!(vm.shell(script).split_whitespace().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_guest_has_the_memory_it_was_promised_and_can_use_it() {
    for mib in [128, 512, 4096] {
        let mut vm = VmBuilder::new().memory_mib(mib).debian().start();
        vm.wait_until_ready();
        let total_kib: u64 =
            vm.shell("awk '/MemTotal/ {print $2}' /proc/meminfo").trim().parse().unwrap();
        let promised_kib = mib * 1024;
        // The kernel keeps some for itself: its image, page structures, the device tree.
        assert!(
            (promised_kib * 85 / 100..=promised_kib).contains(&total_kib),
            "{total_kib} KiB of {promised_kib}"
        );
        // Fills 64 MiB with a pattern and reads it back.
        let script = "mkdir -p /tmp/ram && mount -t tmpfs -o size=80m ram /tmp/ram && \
                      head -c 67108864 /dev/zero | tr '\\0' 'r' > /tmp/ram/file && \
                      tr -d 'r' < /tmp/ram/file | wc -c && stat -c %s /tmp/ram/file";
        assert_eq!(vm.shell(script).split_whitespace().collect::<Vec<_>>(), ["0", "67108864"]);
    }
}

#[test]
fn the_devices_of_the_design_are_there_and_the_clock_tells_the_hosts_time() {
    let mut vm = VmBuilder::new().debian().start();
    vm.wait_until_ready();
    let script = "for device in /sys/bus/virtio/devices/*; do \
                  basename $(readlink $device/driver); done | sort";
    let drivers = vm.shell(script);
    assert_eq!(
        drivers.split_whitespace().collect::<Vec<_>>(),
        ["virtio_blk", "virtio_rng", "vmw_vsock_virtio_transport"]
    );
    assert!(vm.shell("readlink /sys/class/rtc/rtc0/device/driver").contains("pl031"));
    assert!(vm.shell("ls /sys/bus/platform/drivers/vmgenid").contains("vmgenid"));
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let before = now();
    let guest = Duration::from_nanos(vm.shell("date +%s%N").trim().parse().unwrap());
    let most = Duration::from_millis(50);
    assert!((before - most..now() + most).contains(&guest), "{guest:?} is not {before:?}");
}

#[test]
fn poweroff_ends_the_vmm_with_status_zero() {
    let mut vm = VmBuilder::new().start();
    vm.agent().shutdown(ShutdownMode::Poweroff).unwrap();
    vm.wait_for_exit(ExitCode::PowerOff);
}

#[test]
fn reboot_ends_the_vmm_with_its_own_status() {
    let mut vm = VmBuilder::new().vcpus(2).start();
    vm.agent().shutdown(ShutdownMode::Reboot).unwrap();
    vm.wait_for_exit(ExitCode::Reset);
}

#[test]
fn a_kernel_panic_ends_the_vmm_with_its_own_status() {
    let mut vm = VmBuilder::new().without_initramfs().start();
    vm.wait_for_exit(ExitCode::GuestPanic);
    assert!(vm.console.all().contains("Kernel panic"), "{}", vm.report());
}

#[test]
fn signals_end_the_vmm_cleanly() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut vm = VmBuilder::new().start();
        vm.wait_until_ready();
        let socket = vm.vsock_path();
        vm.signal(signal);
        vm.wait_for_exit(ExitCode::PowerOff);
        assert!(!socket.exists(), "the VMM removes its sockets");
    }
}

#[test]
fn a_shell_on_the_console_does_what_is_typed() {
    let mut vm = VmBuilder::new().debian().boot_args("rotifer.shell").start();
    vm.wait_until_ready();
    vm.type_line("echo the answer is $((6 * 7))");
    vm.console.wait_for("the answer is 42");
    vm.type_line("exit");
    vm.wait_for_exit(ExitCode::PowerOff);
}

#[test]
fn two_machines_run_side_by_side() {
    let mut machines = [VmBuilder::new().debian().start(), VmBuilder::new().debian().start()];
    for (index, vm) in machines.iter_mut().enumerate() {
        vm.wait_until_ready();
        vm.shell(&format!("echo machine {index} > /tmp/name"));
    }
    for (index, vm) in machines.iter().enumerate() {
        assert_eq!(vm.shell("cat /tmp/name").trim(), format!("machine {index}"));
    }
}

#[test]
fn the_vmm_is_idle_while_its_guest_is() {
    let mut vm = VmBuilder::new().vcpus(2).start();
    vm.wait_until_ready();
    // The only way to see that nothing happens is to give it time to happen.
    let window = Duration::from_secs(5);
    let before = vm.cpu_times();
    std::thread::sleep(window);
    let after = vm.cpu_times();
    let (guest, vmm) = (after.0 - before.0, after.1 - before.1);
    assert!(vmm < window / 100, "the VMM's own threads used {vmm:?} of CPU in {window:?}");
    // The guest has just booted and emulation is slow, but it does not spin.
    assert!(guest < window / 4, "an idle guest used {guest:?} of CPU in {window:?}");
}
