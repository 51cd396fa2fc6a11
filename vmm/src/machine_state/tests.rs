use proptest::prelude::*;
use rotifer_snapshot::Tag;

use super::gic::{GicState, Registers};
use super::register::RegisterId;
use super::vcpu::{Power, VcpuState, section_name};
use super::*;
use crate::arch::aarch64::fdt;

fn shape() -> Shape {
    let rng = shape::DeviceShape {
        kind: shape::DeviceKind::Virtio(4),
        address: 0xa00_0000,
        spi: Some(2),
    };
    Shape {
        vcpu_count: 1,
        ram_bytes: 1 << 24,
        gic_version: 3,
        interrupt_count: 128,
        devices: vec![rng],
    }
}

/// That of a machine with one vCPU.
pub fn state() -> MachineState {
    let mut vcpu = VcpuState::new(Power::On, None);
    vcpu.push(RegisterId(0x6030_0000_0010_0000), &7_u64.to_le_bytes());
    vcpu.push(RegisterId::system(3, 0, 0, 6, 0), &0x0021_1120_u64.to_le_bytes());
    let clock = Clock { frequency_hz: 54_000_000, virtual_count: 1, physical_count: None };
    let mut state = MachineState::default();
    state.put(Shape::SECTION, &shape());
    state.put(&section_name(0), &vcpu);
    state.put(Clock::SECTION, &clock);
    state
}

#[test]
fn what_was_put_is_taken_and_nothing_is_left() {
    let mut remaining = Remaining::new(state()).unwrap();
    assert_eq!(remaining.take::<Shape>("shape").unwrap(), shape());
    assert_eq!(remaining.take::<Clock>("clock").unwrap().frequency_hz, 54_000_000);
    let vcpu: VcpuState = remaining.take("vcpu-0").unwrap();
    assert_eq!(vcpu.power, Power::On);
    remaining.finish().unwrap();
}

#[test]
fn sections_missing_doubled_left_over_or_of_another_version_are_refused_by_name() {
    let mut remaining = Remaining::new(state()).unwrap();
    let text = |error: StateError| error.to_string();
    let error = remaining.take::<VcpuState>("vcpu-1").unwrap_err();
    assert_eq!(text(error), "section vcpu-1 of the machine state is missing");
    let error = remaining.finish().unwrap_err();
    assert_eq!(
        text(error),
        "section clock of the machine state belongs to no part of this machine"
    );

    let mut doubled = state();
    doubled.sections.extend(state().sections.pop());
    let error = Remaining::new(doubled).err().unwrap();
    assert_eq!(text(error), "section clock of the machine state is there twice");

    let mut newer = state();
    newer.sections[0].tag = Tag { version: 2, ..newer.sections[0].tag };
    let error = newer.shape().unwrap_err();
    assert_eq!(
        text(error),
        "section shape of the machine state is SHAP v2; this VMM knows SHAP v1"
    );

    let mut longer = state();
    longer.sections[0].bytes.push(0);
    assert!(matches!(longer.shape(), Err(StateError::Load { .. })));
}

#[test]
fn features_are_told_field_by_field_with_the_frequency() {
    let features = state().cpu_features().unwrap();
    let value = |name: &str| features.iter().find(|feature| feature.name == name).unwrap().value;
    assert_eq!(value("ID_AA64ISAR0_EL1.AES"), 2);
    assert_eq!(value("ID_AA64ISAR0_EL1.Atomic"), 2);
    assert_eq!(value("ID_AA64ISAR0_EL1.RNDR"), 0);
    assert_eq!(value("CNTFRQ_EL0"), 54_000_000);
}

#[test]
fn the_first_difference_of_two_machines_is_named() {
    let here = shape();
    here.check(&shape()).unwrap();
    let refusal = |change: &dyn Fn(&mut Shape)| {
        let mut saved = shape();
        change(&mut saved);
        saved.check(&here).unwrap_err().to_string()
    };
    let text = refusal(&|shape| shape.gic_version = 2);
    assert_eq!(text, "the state is of another machine: the version of the GIC was 2 and is 3 here");
    let text = refusal(&|shape| shape.devices[0].kind = shape::DeviceKind::Virtio(2));
    assert!(
        text.ends_with(
            "device 0 was block-a000000 with interrupt 2 and is rng-a000000 with interrupt 2 here"
        ),
        "{text}"
    );
    assert!(refusal(&|shape| shape.devices.clear()).contains("device 0 was missing and is rng"));
}

proptest! {
    /// Whatever is in a section: it is decoded and checked, or refused.
    #[test]
    fn no_bytes_of_a_section_confuse_the_decoder(
        index in 0_usize..4,
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut state = state();
        state.put(GicState::SECTION, &GicState { shared: vec![1], private: vec![vec![2]] });
        state.sections[index].bytes = bytes;
        exercise(state);
    }

    /// The same for a state with a few wrong bytes, which gets further.
    #[test]
    fn no_flipped_bytes_confuse_the_decoder(
        flips in prop::collection::vec((0_usize..4, any::<prop::sample::Index>(), 1_u8..), 1..4),
    ) {
        let mut state = state();
        let registers = Registers::of(fdt::Gic::V3);
        let zeroes = |registers: &[gic::Register]| vec![0; registers.len()];
        let private = vec![zeroes(&registers.private)];
        state.put(GicState::SECTION, &GicState { shared: zeroes(&registers.shared), private });
        for (section, at, bits) in flips {
            let bytes = &mut state.sections[section].bytes;
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
        }
        exercise(state);
    }
}

/// Everything that needs no KVM.
fn exercise(state: MachineState) {
    let _ = state.cpu_features();
    let list = [RegisterId(0x6030_0000_0010_0000), RegisterId::system(3, 0, 0, 6, 0)];
    let mut remaining = Remaining::new(state).unwrap();
    if let Ok(saved) = remaining.take::<Shape>(Shape::SECTION) {
        let _ = saved.check(&shape());
    }
    if let Ok(vcpu) = remaining.take::<VcpuState>("vcpu-0")
        && let Ok(registers) = vcpu.registers("vcpu-0", &list)
    {
        for (id, value) in registers {
            assert_eq!(id.bytes(), Some(value.len()));
            let _ = (id.difference(value, value), id.features(value));
        }
    }
    if let Ok(gic) = remaining.take::<GicState>(GicState::SECTION) {
        let _ = gic.check(&Registers::of(fdt::Gic::V3), 1);
    }
    let _ = remaining.finish();
}
