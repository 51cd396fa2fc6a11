//! Registers of a GICv3 (ARM IHI 0069, chapter 12).

use super::{Bank, Group, Registers, Write, expand, private_words, shared_offset, shared_words};
use crate::arch::aarch64::layout;

/// The frame of a redistributor that has the private interrupts.
const SGI_BASE: u64 = 0x1_0000;
/// GICD_CTLR of a GIC that is off: ARE and DS, which are read-only in KVM's.
const DISABLED: u64 = 0x50;
/// SGIs are enabled at power-on.
const SGIS: u64 = 0xffff;
/// In KVM's, shared interrupts are edges at power-on.
const EDGES: u64 = 0xaaaa_aaaa;

/// The attribute of a system register (arm-vgic-v3.rst, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS).
const fn system(op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    3 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

const SYSTEM: Bank =
    Bank { group: Group::CpuSystemRegisters, stride: 1, mask: u64::MAX, ..Bank::WORD };

pub(super) fn registers() -> Registers {
    Registers { shared: expand(&SHARED), private: expand(&PRIVATE) }
}

const SHARED: [Bank; 12] = [
    Bank { name: "GICD_IIDR", attribute: 0x8, write: Write::Always, ..Bank::WORD },
    Bank { name: "GICD_TYPER", attribute: 0x4, write: Write::Compare, ..Bank::WORD },
    Bank { name: "GICD_CTLR", attribute: 0x0, write: Write::Unless(DISABLED), ..Bank::WORD },
    Bank {
        name: "GICD_IGROUPR",
        attribute: 0x80 + shared_offset(1),
        count: shared_words(1),
        write: Write::Unless(u32::MAX as u64),
        ..Bank::WORD
    },
    Bank {
        name: "GICD_ICFGR",
        attribute: 0xc00 + shared_offset(2),
        count: shared_words(2),
        write: Write::Unless(EDGES),
        ..Bank::WORD
    },
    // KVM's have no upper half: affinity 3 is always 0.
    Bank {
        name: "GICD_IROUTER",
        attribute: 0x6000 + shared_offset(64),
        count: shared_words(32),
        stride: 8,
        ..Bank::WORD
    },
    Bank {
        name: "GICD_IPRIORITYR",
        attribute: 0x400 + shared_offset(8),
        count: shared_words(8),
        ..Bank::WORD
    },
    Bank {
        name: "GICD_ISENABLER",
        attribute: 0x100 + shared_offset(1),
        count: shared_words(1),
        ..Bank::WORD
    },
    Bank {
        name: "GICD_ISACTIVER",
        attribute: 0x300 + shared_offset(1),
        count: shared_words(1),
        ..Bank::WORD
    },
    // The latches only; what a line makes pending is in its level.
    Bank {
        name: "GICD_ISPENDR",
        attribute: 0x200 + shared_offset(1),
        count: shared_words(1),
        ..Bank::WORD
    },
    // GICv4.1 only; KVM reads zero and takes zero elsewhere.
    Bank { name: "GICD_TYPER2", attribute: 0xc, write: Write::Compare, ..Bank::WORD },
    Bank {
        name: "line levels",
        group: Group::LineLevels,
        attribute: layout::FIRST_SPI_INTID as u64,
        count: shared_words(1),
        stride: u32::BITS as u64,
        ..Bank::WORD
    },
];

const REDISTRIBUTOR: Bank = Bank { group: Group::Redistributor, ..Bank::WORD };

const PRIVATE: [Bank; 22] = [
    Bank {
        name: "GICR_IGROUPR0",
        attribute: SGI_BASE + 0x80,
        write: Write::Unless(u32::MAX as u64),
        ..REDISTRIBUTOR
    },
    // That of the SGIs, GICR_ICFGR0, is read-only.
    Bank { name: "GICR_ICFGR1", attribute: SGI_BASE + 0xc04, ..REDISTRIBUTOR },
    Bank {
        name: "GICR_IPRIORITYR",
        attribute: SGI_BASE + 0x400,
        count: private_words(8),
        ..REDISTRIBUTOR
    },
    Bank {
        name: "GICR_ISENABLER0",
        attribute: SGI_BASE + 0x100,
        write: Write::Bits { at_power_on: SGIS, clear: SGI_BASE + 0x180 },
        ..REDISTRIBUTOR
    },
    Bank { name: "GICR_ISACTIVER0", attribute: SGI_BASE + 0x300, ..REDISTRIBUTOR },
    Bank { name: "GICR_ISPENDR0", attribute: SGI_BASE + 0x200, ..REDISTRIBUTOR },
    Bank { name: "line levels", group: Group::LineLevels, attribute: 0, ..Bank::WORD },
    Bank { name: "ICC_SRE_EL1", attribute: system(0, 12, 12, 5), write: Write::Compare, ..SYSTEM },
    // Before the active priorities: it says how many priority bits there are.
    Bank { name: "ICC_CTLR_EL1", attribute: system(0, 12, 12, 4), write: Write::Always, ..SYSTEM },
    Bank { name: "ICC_PMR_EL1", attribute: system(0, 4, 6, 0), ..SYSTEM },
    Bank { name: "ICC_BPR0_EL1", attribute: system(0, 12, 8, 3), write: Write::Always, ..SYSTEM },
    Bank { name: "ICC_BPR1_EL1", attribute: system(0, 12, 12, 3), write: Write::Always, ..SYSTEM },
    Bank { name: "ICC_IGRPEN0_EL1", attribute: system(0, 12, 12, 6), ..SYSTEM },
    Bank { name: "ICC_IGRPEN1_EL1", attribute: system(0, 12, 12, 7), ..SYSTEM },
    active_priorities("ICC_AP0R0_EL1", system(0, 12, 8, 4), 5),
    active_priorities("ICC_AP0R1_EL1", system(0, 12, 8, 5), 6),
    active_priorities("ICC_AP0R2_EL1", system(0, 12, 8, 6), 7),
    active_priorities("ICC_AP0R3_EL1", system(0, 12, 8, 7), 7),
    active_priorities("ICC_AP1R0_EL1", system(0, 12, 9, 0), 5),
    active_priorities("ICC_AP1R1_EL1", system(0, 12, 9, 1), 6),
    active_priorities("ICC_AP1R2_EL1", system(0, 12, 9, 2), 7),
    active_priorities("ICC_AP1R3_EL1", system(0, 12, 9, 3), 7),
];

const fn active_priorities(name: &'static str, attribute: u64, priority_bits: u32) -> Bank {
    Bank { name, attribute, write: Write::IfPriorityBits(priority_bits), ..SYSTEM }
}
