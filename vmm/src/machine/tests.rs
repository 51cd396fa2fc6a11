//! On a host with KVM: guests of a few instructions, so that each test is about one thing.

mod guests;
mod state;

use std::error::Error as _;
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::config::{self, Console};

/// Generous: emulated hosts under load are slow.
const DEADLINE: Duration = Duration::from_secs(60);
/// Where guests count.
const COUNTER: GuestAddress = GuestAddress(0x8030_0000);

/// movz x0, #8; movk x0, #0x8400, lsl 16; hvc #0: PSCI SYSTEM_OFF.
const SHUT_DOWN: [u32; 3] = [0xd280_0100, 0xf2b0_8000, 0xd400_0002];
/// The same with #9: PSCI SYSTEM_RESET.
const RESET: [u32; 3] = [0xd280_0120, 0xf2b0_8000, 0xd400_0002];
/// movz x2, #0x8030, lsl 16; add x1, x1, #1; str x1, [x2]; b back to the addition.
const COUNT: [u32; 4] = [0xd2b0_0602, 0x9100_0421, 0xf900_0041, 0x17ff_fffe];
/// movz x2, #0x0902, lsl 16; movz w1, #1; strb w1, [x2]; b .: the panic notifier.
const PANIC: [u32; 4] = [0xd2a1_2042, 0x5280_0021, 0x3900_0041, 0x1400_0000];
/// movz x1, #0x0a00, lsl 16; ldr x0, [x1], #8: an access to a device that KVM cannot decode.
const UNDECODABLE: [u32; 2] = [0xd2a1_4001, 0xf840_8420];

/// No guest is larger.
const IMAGE_BYTES: usize = 0x4000;
const RAM_BYTES: u64 = 16 << 20;

fn kernel(code: &[u32]) -> File {
    let mut image = vec![0; 64];
    // b to the code behind the header.
    image[..4].copy_from_slice(&0x1400_0010_u32.to_le_bytes());
    image[16..24].copy_from_slice(&(IMAGE_BYTES as u64).to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image.extend(code.iter().flat_map(|instruction| instruction.to_le_bytes()));
    assert!(image.len() <= IMAGE_BYTES);
    image.resize(IMAGE_BYTES, 0);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image).unwrap();
    file
}

fn plan(code: &[u32], vcpu_count: u8) -> Plan {
    Plan {
        vcpu_count,
        ram_bytes: RAM_BYTES,
        boot: config::Boot {
            kernel_path: "/images/kernel".into(),
            kernel: kernel(code),
            initrd: None,
            command_line: String::new(),
        },
        disks: Vec::new(),
        vsock: None,
        entropy: true,
        networks: Vec::new(),
        console: Console::File("/dev/null".into()),
    }
}

fn boot(code: &[u32], vcpu_count: u8) -> (Machine, EventFd) {
    let wake = EventFd::new(EFD_NONBLOCK).unwrap();
    let machine = Machine::boot(plan(code, vcpu_count), &wake).unwrap();
    (machine, wake)
}

/// Asks `question` until there is an answer.
fn until<T>(mut question: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(begin.elapsed() < DEADLINE, "nothing happened for {DEADLINE:?}");
        std::thread::yield_now();
    }
}

fn end(code: &[u32], vcpu_count: u8) -> Result<Outcome, MachineError> {
    let (mut machine, wake) = boot(code, vcpu_count);
    until(|| wake.read().ok());
    until(|| machine.take_outcome().transpose())
}

fn count(machine: &Machine) -> u64 {
    machine.memory.read_obj(COUNTER).unwrap()
}

#[test]
fn shutdown_reset_and_panic_are_told_apart() {
    assert_eq!(end(&SHUT_DOWN, 1).unwrap(), Outcome::Shutdown);
    assert_eq!(end(&RESET, 2).unwrap(), Outcome::Reset);
    assert_eq!(end(&PANIC, 1).unwrap(), Outcome::Panicked);
}

#[test]
fn a_guest_that_kvm_cannot_go_on_with_is_a_failure_with_its_registers() {
    let error = end(&UNDECODABLE, 1).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("run vCPU 0 (PC 0x80200044, PSTATE 0x"), "{text}");
    assert!(error.source().is_some());
}

#[test]
fn a_paused_machine_stands_still_and_goes_on_where_it_was() {
    let (mut machine, _wake) = boot(&COUNT, 1);
    let mut before = until(|| Some(count(&machine)).filter(|count| *count > 0));
    for _ in 0..20 {
        machine.pause().unwrap().stay();
        let stopped = count(&machine);
        assert!(stopped >= before, "the counter went from {before} to {stopped}");
        // Pausing again changes nothing, and a machine that stands still does not count.
        machine.pause().unwrap().stay();
        std::thread::yield_now();
        assert_eq!(count(&machine), stopped);
        machine.pause().unwrap().resume().unwrap();
        before = until(|| Some(count(&machine)).filter(|count| *count > stopped));
    }
    assert_eq!(machine.take_outcome().unwrap(), None);
}

#[test]
fn dropping_the_proof_of_a_pause_lets_the_machine_go_on() {
    let (mut machine, _wake) = boot(&COUNT, 4);
    drop(machine.pause().unwrap());
    let before = count(&machine);
    until(|| Some(count(&machine)).filter(|count| *count > before));
}

#[test]
fn a_machine_that_is_dropped_leaves_no_thread_whether_it_runs_or_is_paused() {
    // Others of this process run vCPUs of lower numbers meanwhile.
    let is_there = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let mut names =
            tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.any(|comm| comm.trim_end() == "vcpu-7")
    };
    // A thread names itself, and the kernel lists it for a moment after it has been joined.
    for paused in [false, true] {
        let (mut machine, _wake) = boot(&COUNT, 8);
        until(|| is_there().then_some(()));
        if paused {
            machine.pause().unwrap().stay();
        }
        drop(machine);
        until(|| (!is_there()).then_some(()));
    }
}
