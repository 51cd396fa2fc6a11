//! Saving a machine, dropping it, and restoring it in another one with a copy of its RAM.

mod exact;
mod refusals;

use std::convert::Infallible;
use std::error::Error as _;

use vm_memory::GuestMemoryBackend;

use super::*;
use crate::arch::aarch64::layout;
use crate::machine_state::clock::Clock;
use crate::machine_state::gic::GicState;
use crate::machine_state::register::RegisterId;
use crate::machine_state::vcpu::{VcpuState, section_name};
use crate::machine_state::{MachineState, Remaining, SectionState};

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
        let Plan { ram_bytes, disks, vsock, entropy, networks, console, .. } =
            plan(&COUNT, self.vcpu_count);
        let layers = DiskLayers::new();
        let devices = Wanted { console, disks, layers, vsock, entropy, networks };
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
fn a_guest_that_is_saved_while_it_turns_its_cpus_on_turns_them_on() {
    for _ in 0..10 {
        let (machine, _wake) = boot(&guests::cpus(), 4);
        let machine = save(machine, 4).restore();
        for cpu in 0..4 {
            until(|| (count_of(&machine, cpu) > 10).then_some(()));
            assert_eq!(complaint(&machine, cpu), 0, "CPU {cpu}");
        }
    }
}

#[test]
fn the_guests_counter_goes_on_from_where_it_was() {
    let (machine, _wake) = boot(&guests::cpus(), 1);
    until(|| (count_of(&machine, 0) > 1000).then_some(()));
    let mut saved = save(machine, 1);
    let before = saved.read(MAILBOX + 8);
    let mut clock: Clock = section(&saved.state, Clock::SECTION);
    assert!(clock.virtual_count >= before);
    // A guest that has lived for a day, on a host that was started not so long ago.
    let day = clock.frequency_hz * 86400;
    clock.virtual_count += day;
    clock.physical_count = clock.physical_count.map(|count| count + 2 * day);
    replace(&mut saved.state, Clock::SECTION, &clock);
    let mut machine = saved.restore_as(saved.hardware(), Then::StayPaused).unwrap();
    let paused = machine.pause().unwrap();
    let again: Clock = section(&paused.save().unwrap(), Clock::SECTION);
    let near = |before: u64, after: u64| {
        assert!(after >= before, "the counter went from {before} back to {after}");
        assert!(after - before < clock.frequency_hz * DEADLINE.as_secs());
    };
    near(clock.virtual_count, again.virtual_count);
    if let (Some(before), Some(after)) = (clock.physical_count, again.physical_count) {
        near(before, after);
    }
    paused.resume().unwrap();
    until(|| (counter_of(&machine, 0) > clock.virtual_count).then_some(()));
    assert_eq!(complaint(&machine, 0), 0);
    clock.frequency_hz += 1;
    replace(&mut saved.state, Clock::SECTION, &clock);
    let text = saved.refusal(saved.hardware());
    assert!(text.contains("CNTFRQ_EL0 was"), "{text}");
}

fn section<T: SectionState>(state: &MachineState, name: &str) -> T {
    Remaining::new(state.clone()).unwrap().take(name).unwrap()
}

fn replace<T: SectionState>(state: &mut MachineState, name: &str, value: &T) {
    let at = state.sections.iter().position(|section| section.name == name).unwrap();
    state.put(name, value);
    // The new one goes to the place of the old one.
    state.sections.swap_remove(at);
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
