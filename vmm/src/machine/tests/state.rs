//! Saving a machine, dropping it, and restoring it in another one with a copy of its RAM.

use std::convert::Infallible;
use std::error::Error as _;

use vm_memory::GuestMemoryBackend;

use super::*;
use crate::arch::aarch64::layout;
use crate::machine_state::MachineState;

/// Where each guest CPU tells how it is: see `guests/common.s`.
const MAILBOX: u64 = 0x8030_0000;
const GO: GuestAddress = GuestAddress(0x8031_0000);

/// A machine that is no more.
struct Saved {
    state: MachineState,
    ram: Vec<u8>,
    vcpu_count: u8,
}

fn mail(machine: &Machine, cpu: u64, offset: u64) -> u64 {
    machine.memory.read_obj(GuestAddress(MAILBOX + cpu * 64 + offset)).unwrap()
}

fn count_of(machine: &Machine, cpu: u64) -> u64 {
    mail(machine, cpu, 0)
}

fn counter_of(machine: &Machine, cpu: u64) -> u64 {
    mail(machine, cpu, 8)
}

/// The first thing that a guest says is wrong.
fn complaint(machine: &Machine, cpu: u64) -> u64 {
    mail(machine, cpu, 16)
}

fn interrupts(machine: &Machine) -> u64 {
    mail(machine, 0, 24)
}

fn save(mut machine: Machine, vcpu_count: u8) -> Saved {
    let paused = machine.pause().unwrap();
    let state = paused.save().unwrap();
    let mut ram = vec![0; RAM_BYTES as usize];
    paused.memory().read_slice(&mut ram, layout::RAM_START).unwrap();
    paused.stay();
    Saved { state, ram, vcpu_count }
}

impl Saved {
    fn hardware(&self) -> Hardware {
        let Plan { ram_bytes, disks, vsock, entropy, console, .. } = plan(&COUNT, self.vcpu_count);
        let devices = Wanted { console, disks, vsock, entropy };
        Hardware { vcpu_count: self.vcpu_count, ram_bytes, devices }
    }

    fn restore_as(&self, hardware: Hardware, then: Then) -> Result<Machine, MachineError> {
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        let fill = |memory: &Arc<GuestMemory>| -> Result<(), Infallible> {
            let bytes = self
                .ram
                .len()
                .min(memory.last_addr().0 as usize + 1 - layout::RAM_START.0 as usize);
            memory.write_slice(&self.ram[..bytes], layout::RAM_START).unwrap();
            Ok(())
        };
        Machine::restore(hardware, self.state.clone(), fill, &wake, then)
    }

    fn restore(&self) -> Machine {
        self.restore_as(self.hardware(), Then::Run).unwrap()
    }

    fn refusal(&self, hardware: Hardware) -> String {
        let Err(error) = self.restore_as(hardware, Then::Run) else { panic!("it was restored") };
        let mut text = error.to_string();
        if let Some(source) = error.source() {
            text += &format!(": {source}");
        }
        text
    }

    fn read(&self, address: u64) -> u64 {
        let offset = (address - layout::RAM_START.0) as usize;
        u64::from_le_bytes(self.ram[offset..offset + 8].try_into().unwrap())
    }
}

#[test]
fn a_guest_goes_on_where_it_was_on_all_its_cpus_and_with_all_its_registers() {
    for cpu_count in [1, 2, 4] {
        let cpus = 0..u64::from(cpu_count);
        let (mut machine, _wake) = boot(&guests::cpus(), cpu_count);
        // Twice: the second time from a machine that was restored itself.
        for _ in 0..2 {
            for cpu in cpus.clone() {
                until(|| (count_of(&machine, cpu) > 100).then_some(()));
            }
            let saved = save(machine, cpu_count);
            machine = saved.restore();
            for cpu in cpus.clone() {
                let before = saved.read(MAILBOX + cpu * 64);
                assert!(before > 100);
                until(|| {
                    let complaint = complaint(&machine, cpu);
                    assert_eq!(complaint, 0, "CPU {cpu} of {cpu_count}");
                    (count_of(&machine, cpu) > before + 100).then_some(())
                });
            }
        }
    }
}

#[test]
fn the_guests_counter_goes_on_from_where_it_was() {
    let (machine, _wake) = boot(&guests::cpus(), 1);
    until(|| (count_of(&machine, 0) > 1000).then_some(()));
    let saved = save(machine, 1);
    let before = saved.read(MAILBOX + 8);
    let clock = |state: &MachineState| {
        crate::machine_state::Remaining::new(state.clone())
            .unwrap()
            .take::<crate::machine_state::clock::Clock>("clock")
            .unwrap()
    };
    // As if a long time had passed, and on a host that was started just now.
    let mut machine = saved.restore_as(saved.hardware(), Then::StayPaused).unwrap();
    let paused = machine.pause().unwrap();
    let again = paused.save().unwrap();
    let (first, second) = (clock(&saved.state), clock(&again));
    assert_eq!(first.frequency_hz, second.frequency_hz);
    assert!(first.virtual_count >= before);
    let elapsed = second.virtual_count - first.virtual_count;
    let deadline = first.frequency_hz * DEADLINE.as_secs();
    assert!(elapsed < deadline, "{elapsed} counts between save and restore");
    if let (Some(first), Some(second)) = (first.physical_count, second.physical_count) {
        assert!(second >= first && second - first < deadline);
    }
    paused.resume().unwrap();
    until(|| (counter_of(&machine, 0) > before).then_some(()));
    assert_eq!(complaint(&machine, 0), 0);
}

#[test]
fn interrupts_that_were_pending_or_in_progress_are_so_after_a_restore() {
    let (machine, _wake) = boot(&guests::interrupts(), 1);
    until(|| (mail(&machine, 0, 32) == 1).then_some(()));
    let mut saved = save(machine, 1);
    for _ in 0..2 {
        // Also by way of a machine that takes none of them, either.
        let mut machine = saved.restore_as(saved.hardware(), Then::StayPaused).unwrap();
        assert_eq!(interrupts(&machine), 0);
        machine.pause().unwrap().resume().unwrap();
        saved = save(machine, 1);
    }
    let machine = saved.restore();
    machine.memory.write_obj(1_u64, GO).unwrap();
    let expected = 1 << 3 | 1 << 27 | 1 << 50 | 1 << GENERATION_ID_INTID;
    until(|| (interrupts(&machine) == expected).then_some(()));
    assert_eq!(complaint(&machine, 0), 0, "taken before the end of one of higher priority");
    until(|| (count_of(&machine, 0) > 100).then_some(()));
    assert_eq!(interrupts(&machine), expected, "one came that nobody sent");
}

/// The second of the device table's interrupts, counted from the first shared one.
const GENERATION_ID_INTID: u64 = layout::FIRST_SPI_INTID as u64 + 1;

#[test]
fn a_timer_that_a_guest_sleeps_on_wakes_it_after_a_restore() {
    let (mut machine, _wake) = boot(&guests::ticks(), 1);
    for _ in 0..3 {
        let before = count_of(&machine, 0);
        until(|| (count_of(&machine, 0) > before + 2).then_some(()));
        machine = save(machine, 1).restore();
    }
    let before = count_of(&machine, 0);
    until(|| (count_of(&machine, 0) > before + 2).then_some(()));
    assert_eq!(complaint(&machine, 0), 0, "an interrupt came before its time");
}

#[test]
fn a_vcpu_that_was_off_stays_off_until_it_is_turned_on() {
    let (machine, _wake) = boot(&guests::late(), 2);
    let saved = save(machine, 2);
    let machine = saved.restore();
    assert_eq!((count_of(&machine, 0), count_of(&machine, 1)), (0, 0));
    machine.memory.write_obj(1_u64, GO).unwrap();
    until(|| (count_of(&machine, 0) == 1).then_some(()));
    assert_eq!(complaint(&machine, 0), 0, "PSCI CPU_ON");
    until(|| (count_of(&machine, 1) == 0x5afe).then_some(()));
}

#[test]
fn each_restore_gives_another_generation_identifier() {
    let (machine, _wake) = boot(&COUNT, 1);
    let saved = save(machine, 1);
    let id = |machine: &Machine| machine.memory.read_obj::<u128>(layout::VM_GENERATION_ID).unwrap();
    let ids = [id(&saved.restore()), id(&saved.restore())];
    assert_ne!(ids[0], ids[1]);
    let offset = (layout::VM_GENERATION_ID.0 - layout::RAM_START.0) as usize;
    let before = u128::from_le_bytes(saved.ram[offset..offset + 16].try_into().unwrap());
    assert!(!ids.contains(&before) && before != 0);
}

#[test]
fn another_machine_is_refused_by_what_differs() {
    let (machine, _wake) = boot(&COUNT, 1);
    let saved = save(machine, 1);
    let refuse = |change: &dyn Fn(&mut Hardware)| {
        let mut hardware = saved.hardware();
        change(&mut hardware);
        saved.refusal(hardware)
    };
    assert_eq!(
        refuse(&|hardware| hardware.vcpu_count = 2),
        "the state is of another machine: the number of vCPUs was 1 and is 2 here"
    );
    assert!(refuse(&|hardware| hardware.ram_bytes *= 2).contains("bytes of RAM was 16777216"));
    let text = refuse(&|hardware| hardware.devices.entropy = false);
    assert!(
        text.ends_with("device 4 was rng-a000000 with interrupt 2 and is missing here"),
        "{text}"
    );
}

#[test]
fn a_state_with_a_part_too_few_too_many_or_twice_is_refused_by_name() {
    let (machine, _wake) = boot(&COUNT, 1);
    let saved = save(machine, 1);
    let refuse = |change: &dyn Fn(&mut MachineState)| {
        let mut state = saved.state.clone();
        change(&mut state);
        let other = Saved { state, ram: Vec::new(), vcpu_count: 1 };
        other.refusal(other.hardware())
    };
    for index in 0..saved.state.sections.len() {
        let name = saved.state.sections[index].name.clone();
        let text = refuse(&|state| drop(state.sections.remove(index)));
        assert_eq!(text, format!("section {name} of the machine state is missing"));
        let text = refuse(&|state| state.sections.push(state.sections[index].clone()));
        assert_eq!(text, format!("section {name} of the machine state is there twice"));
        let text = refuse(&|state| state.sections[index].tag.version += 1);
        assert!(text.contains(&format!("section {name}")) && text.contains("v2"), "{text}");
    }
    let text = refuse(&|state| {
        let mut section = state.sections[0].clone();
        section.name = "vcpu-9".into();
        state.sections.push(section);
    });
    assert_eq!(text, "section vcpu-9 of the machine state belongs to no part of this machine");
}

#[test]
fn a_guest_that_has_ended_cannot_be_saved() {
    let (mut machine, wake) = boot(&SHUT_DOWN, 1);
    until(|| wake.read().ok());
    let paused = machine.pause().unwrap();
    assert!(matches!(paused.save(), Err(SaveError::Ended)));
}
