use super::*;

/// Core register X0: `KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE`.
const X0: RegisterId = RegisterId(0x6030_0000_0010_0000);

#[test]
fn sizes_come_from_the_identifier_and_impossible_ones_are_none() {
    assert_eq!(X0.bytes(), Some(8));
    assert_eq!(RegisterId(0x6080_0000_0015_0000).bytes(), Some(256));
    assert_eq!(RegisterId(0x6090_0000_0015_0000).bytes(), None);
    assert_eq!(RegisterId(0x60f0_0000_0015_0000).bytes(), None);
    assert_eq!(RegisterId(0x2030_0000_0010_0000).bytes(), None, "another architecture");
}

#[test]
fn counters_have_the_identifiers_of_the_interface_not_of_the_architecture() {
    // KVM_REG_ARM_TIMER_CNT and KVM_REG_ARM_PTIMER_CNT.
    assert_eq!(RegisterId::VIRTUAL_COUNT.0, 0x6030_0000_0013_df1a);
    assert_eq!(RegisterId::PHYSICAL_COUNT.0, 0x6030_0000_0013_df01);
    // KVM_REG_ARM_TIMER_CVAL has the encoding of CNTVCT_EL0, and is an ordinary register.
    assert!(!RegisterId::system(3, 3, 14, 0, 2).is_counter());
}

#[test]
fn only_what_tells_the_cpu_apart_is_identification() {
    let csselr_el1 = RegisterId::system(3, 2, 0, 0, 0);
    let sctlr_el1 = RegisterId::system(3, 0, 1, 0, 0);
    let ccsidr_el1 = RegisterId(0x6020_0000_0011_0000);
    for id in [X0, csselr_el1, sctlr_el1, RegisterId::VIRTUAL_COUNT] {
        assert!(!id.is_identification(), "{id}");
    }
    let id_aa64isar0_el1 = RegisterId::system(3, 0, 0, 6, 0);
    for id in [RegisterId::MPIDR_EL1, ccsidr_el1, id_aa64isar0_el1, RegisterId::SVE_VECTOR_LENGTHS]
    {
        assert!(id.is_identification(), "{id}");
    }
}

#[test]
fn only_what_has_a_known_value_at_power_on_is_taken_for_zero() {
    let pstate = RegisterId(X0.0 + 0x42);
    let tpidr_el1 = RegisterId::system(3, 0, 13, 0, 4);
    let mdscr_el1 = RegisterId::system(2, 0, 0, 2, 2);
    for id in [pstate, tpidr_el1, mdscr_el1, RegisterId::SVE_VECTOR_LENGTHS] {
        assert!(!id.is_zero_at_power_on(), "{id}");
    }
    let dbgbvr15_el1 = RegisterId::system(2, 0, 0, 15, 4);
    let z0 = RegisterId(0x6080_0000_0015_0000);
    for id in [X0, dbgbvr15_el1, z0] {
        assert!(id.is_zero_at_power_on(), "{id}");
    }
}

#[test]
fn a_difference_is_named_by_its_field() {
    let isar0 = RegisterId::system(3, 0, 0, 6, 0);
    let (with, without) = (0x0020_0000_u64.to_le_bytes(), 0_u64.to_le_bytes());
    let name = |id: RegisterId, a: &[u8], b: &[u8]| id.difference(a, b).unwrap();
    assert_eq!(name(isar0, &with, &without), ("ID_AA64ISAR0_EL1.Atomic".into(), 2, 0));
    assert_eq!(isar0.difference(&with, &with), None);
    // A bit that no field has a name for.
    assert_eq!(name(isar0, &[1, 0, 0, 0, 0, 0, 0, 0], &without).0, "ID_AA64ISAR0_EL1");
    assert_eq!(name(RegisterId::MPIDR_EL1, &with, &without).0, "MPIDR_EL1");
    assert_eq!(name(RegisterId::system(3, 0, 0, 3, 3), &with, &without).0, "S3_0_C0_C3_3");
    let (long, short) = ([1; 64], [0; 64]);
    assert_eq!(name(RegisterId::SVE_VECTOR_LENGTHS, &long, &short).0, "SVE_VLS.0");
}

#[test]
fn what_a_signed_field_says_grows_too() {
    let pfr0 = RegisterId::system(3, 0, 0, 4, 0);
    let advsimd = |value: u64| {
        let features = pfr0.features(&value.to_le_bytes());
        features.into_iter().find(|feature| feature.name.ends_with("AdvSIMD")).unwrap()
    };
    assert_eq!(advsimd(0xf << 20).value, 0, "not there");
    assert_eq!(advsimd(0).value, 1);
    assert!(advsimd(0).grows);
}

#[test]
fn names_are_of_letters_digits_and_dots() {
    for id in 0..=u16::MAX {
        for kind in [0x10, 0x11, 0x13, 0x14, 0x15, 0x16, 0x17] {
            let name = RegisterId(0x6030_0000_0000_0000 | kind << 16 | u64::from(id)).to_string();
            assert!(name.len() <= 40);
            assert!(
                name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b)),
                "{name}"
            );
        }
    }
}
