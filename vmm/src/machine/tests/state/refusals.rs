//! What a machine does not take on, and what it says then.

use super::*;
use crate::machine_state::maker::Maker;

#[test]
fn a_foreign_register_and_another_cpu_are_refused_by_name() {
    let (machine, _wake) = boot(&COUNT, 2);
    let saved = save(machine, 2);
    let refuse = |cpu: usize, from: RegisterId, to: RegisterId, flip: u8| {
        let mut state = saved.state.clone();
        let name = section_name(cpu);
        let vcpu: VcpuState = section(&state, &name);
        let mut changed = VcpuState::new(vcpu.power, vcpu.pending_error);
        let ids: Vec<RegisterId> = vcpu.ids().collect();
        for (id, value) in vcpu.registers(&name, &ids).unwrap() {
            if id == from {
                let mut value = value.to_vec();
                value[2] ^= flip;
                changed.push(to, &value);
            } else {
                changed.push(id, value);
            }
        }
        replace(&mut state, &name, &changed);
        // As if it came from elsewhere.
        let maker: Maker = section(&state, Maker::SECTION);
        let maker = Maker { boot_id: format!("not {}", maker.boot_id), ..maker };
        replace(&mut state, Maker::SECTION, &maker);
        let other = Saved { state, ram: Vec::new(), vcpu_count: 2 };
        other.refusal(other.hardware())
    };
    let isar0 = RegisterId::system(3, 0, 0, 6, 0);
    let tpidr = RegisterId::system(3, 3, 13, 0, 2);
    let text = refuse(1, tpidr, RegisterId(tpidr.0 ^ 1 << 14), 0);
    assert!(
        text.starts_with("section vcpu-1 of the machine state: register S2_3_C13_C0_2"),
        "{text}"
    );
    let text = refuse(0, isar0, isar0, 0x40);
    assert!(text.contains("another CPU: ID_AA64ISAR0_EL1.Atomic was 0x"), "{text}");
    let text = refuse(1, RegisterId::MPIDR_EL1, RegisterId::MPIDR_EL1, 1);
    assert!(text.contains("another CPU: MPIDR_EL1 was 0x80010001 and is 0x80000001"), "{text}");
    // The counter belongs to no vCPU.
    let text = refuse(0, tpidr, RegisterId::VIRTUAL_COUNT, 0);
    assert!(text.contains("register CNTVCT_EL0 is none"), "{text}");
}

/// Nothing that is in a state makes the VMM panic, whether KVM takes it or not.
#[test]
fn a_state_with_any_wrong_byte_is_refused_or_makes_a_machine() {
    let (machine, _wake) = boot(&guests::interrupts(), 1);
    let saved = save(machine, 1);
    let sections = saved.state.sections.len();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut made, mut refused) = (0, 0);
    for round in 0..200 {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut state = saved.state.clone();
        let bytes = &mut state.sections[round % sections].bytes;
        let at = (random >> 8) as usize % bytes.len();
        bytes[at] ^= (random as u8).max(1);
        let other = Saved { state, ram: Vec::new(), vcpu_count: 1 };
        match other.restore_as(other.hardware(), Then::StayPaused) {
            Ok(_) => made += 1,
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
        }
    }
    assert!(made > 0 && refused > 0, "{made} machines, {refused} refusals");
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
