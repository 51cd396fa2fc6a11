//! Nothing is lost or changed on the way, register by register.

use super::*;
use crate::arch::aarch64::fdt;
use crate::machine_state::gic::{Register, Registers, Write};
use crate::machine_state::maker::Maker;

#[test]
fn the_state_of_a_restored_machine_is_the_one_it_was_restored_from() {
    for (guest, cpu_count) in [(guests::interrupts(), 1), (guests::cpus(), 2)] {
        let (machine, _wake) = boot(&guest, cpu_count);
        for cpu in 0..u64::from(cpu_count) {
            until(|| (count_of(&machine, cpu) + mail(&machine, cpu, 32) > 0).then_some(()));
        }
        let mut saved = save(machine, cpu_count);
        mark(&mut saved.state);
        let mut machine = saved.restore_as(saved.hardware(), Then::StayPaused).unwrap();
        let again = machine.pause().unwrap().save().unwrap();
        assert_eq!(saved.state.sections.len(), again.sections.len());
        for (before, after) in saved.state.sections.iter().zip(&again.sections) {
            if before.name == GicState::SECTION {
                let pending: GicState = section(&saved.state, GicState::SECTION);
                assert_eq!(except_generation_id(pending, &machine), section(&again, "gic"));
            } else if before.name != Clock::SECTION {
                assert_eq!(before, after, "{}", before.name);
            }
        }
    }
}

/// Gives values that no guest here makes to registers that hold whatever is put there.
fn mark(state: &mut MachineState) {
    let name = section_name(0);
    let mut vcpu: VcpuState = section(state, &name);
    let mut marked = VcpuState::new(vcpu.power, vcpu.pending_error);
    let ids: Vec<RegisterId> = vcpu.ids().collect();
    for (id, value) in vcpu.registers(&name, &ids).unwrap() {
        // TPIDR_EL0, TPIDRRO_EL0, the keys of pointer authentication, a breakpoint's address.
        let keeps_all = id == RegisterId::system(3, 3, 13, 0, 2)
            || id == RegisterId::system(3, 3, 13, 0, 3)
            || id == RegisterId::system(2, 0, 0, 1, 4)
            || (1..=3).any(|crm| (0..4).any(|op2| id == RegisterId::system(3, 0, 2, crm, op2)));
        let mark = (0x1234_5678_9abc_de00 | id.0 & 0xff).to_le_bytes();
        marked.push(id, if keeps_all { &mark } else { value });
    }
    vcpu = marked;
    replace(state, &name, &vcpu);
    let mut gic: GicState = section(state, GicState::SECTION);
    for (register, value) in Registers::of(gic_version(state)).shared.iter().zip(&mut gic.shared) {
        match (register.name, register.index) {
            // Priorities have five bits; INTID 60 goes to a CPU that is there.
            ("GICD_IPRIORITYR", 7) => *value = 0x10a0_f808,
            ("GICD_ISACTIVER", 1) => *value = 0x10,
            ("GICD_ICFGR", 5) => *value = 0x8000_0000,
            ("GICD_ITARGETSR", 7) => *value = 0x0100_0000,
            _ => {}
        }
    }
    replace(state, GicState::SECTION, &gic);
}

fn gic_version(state: &MachineState) -> fdt::Gic {
    if state.shape().unwrap().gic_version == 2 { fdt::Gic::V2 } else { fdt::Gic::V3 }
}

/// With the interrupt that tells of a new generation identifier, which nobody had before.
fn except_generation_id(mut gic: GicState, machine: &Machine) -> GicState {
    let registers = Registers::of(machine.gic.version()).shared;
    let is_pending = |register: &Register| register.name == "GICD_ISPENDR" && register.index == 0;
    let at = registers.iter().position(is_pending).unwrap();
    gic.shared[at] |= 1 << (GENERATION_ID_INTID - u64::from(layout::FIRST_SPI_INTID));
    gic
}

#[test]
fn a_new_machine_has_the_values_that_a_restore_does_not_write() {
    let wake = EventFd::new(EFD_NONBLOCK).unwrap();
    let Plan { vcpu_count, ram_bytes, disks, vsock, entropy, networks, console, .. } =
        plan(&COUNT, 2);
    let layers = DiskLayers::new();
    let devices = Wanted { console, disks, layers, vsock, entropy, networks };
    let machine = Assembled::new(Hardware { vcpu_count, ram_bytes, devices }, &wake).unwrap();
    let mut machine = machine.start(&wake).unwrap();
    let gic_version = machine.gic.version();
    let state = machine.pause().unwrap().save().unwrap();
    for index in 0..2 {
        let vcpu: VcpuState = section(&state, &section_name(index));
        let ids: Vec<RegisterId> = vcpu.ids().collect();
        for (id, value) in vcpu.registers("", &ids).unwrap() {
            let is_zero = value.iter().all(|byte| *byte == 0);
            assert!(is_zero || !id.is_zero_at_power_on(), "{id} is {value:?}");
        }
    }
    let gic: GicState = section(&state, GicState::SECTION);
    let registers = Registers::of(gic_version);
    let check = |registers: &[Register], values: &[u64]| {
        for (register, value) in registers.iter().zip(values) {
            let at_power_on = match register.write {
                Write::Unless(at_power_on) | Write::Bits { at_power_on, .. } => at_power_on,
                Write::IfPriorityBits(_) => 0,
                Write::Always | Write::Compare => continue,
            };
            assert_eq!(*value, at_power_on, "{} {}", register.name, register.index);
        }
    };
    check(&registers.shared, &gic.shared);
    gic.private.iter().for_each(|values| check(&registers.private, values));
}

#[test]
fn a_state_from_another_boot_of_the_host_or_another_like_it_makes_the_same_machine() {
    let (machine, _wake) = boot(&guests::cpus(), 2);
    until(|| (count_of(&machine, 1) > 100).then_some(()));
    let mut saved = save(machine, 2);
    let maker: Maker = section(&saved.state, Maker::SECTION);
    assert!(maker.is_the_same(&maker), "this host has a boot_id");
    let elsewhere = Maker { boot_id: "00000000-0000-4000-8000-000000000000".into(), ..maker };
    replace(&mut saved.state, Maker::SECTION, &elsewhere);
    let machine = saved.restore();
    let before = saved.read(MAILBOX + 64);
    until(|| (count_of(&machine, 1) > before).then_some(()));
    assert_eq!(complaint(&machine, 1), 0);
}
