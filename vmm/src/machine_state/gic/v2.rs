//! Registers of a GICv2 (ARM IHI 0048B, chapter 4). KVM tells no line levels of it: its timers
//! raise theirs anew, and all our devices signal by edges.

use super::{Bank, Group, Registers, Write, expand, private_words, shared_offset, shared_words};

/// SGIs are enabled at power-on.
const SGIS: u64 = 0xffff;
/// In KVM's, shared interrupts are edges at power-on.
const EDGES: u64 = 0xaaaa_aaaa;
/// Of the private interrupts, these are pending by themselves: SGIs are in GICD_SPENDSGIR, with
/// their senders; the lines of the two timers, INTID 27 and 30, are raised anew.
const PENDING_OTHERWISE: u64 = SGIS | 1 << 27 | 1 << 30;

pub(super) fn registers() -> Registers {
    Registers { shared: expand(&SHARED), private: expand(&PRIVATE) }
}

const SHARED: [Bank; 10] = [
    // KVM ignores GICD_IGROUPR until this has been written.
    Bank { name: "GICD_IIDR", attribute: 0x8, write: Write::Always, ..Bank::WORD },
    Bank { name: "GICD_TYPER", attribute: 0x4, write: Write::Compare, ..Bank::WORD },
    Bank { name: "GICD_CTLR", attribute: 0x0, ..Bank::WORD },
    Bank {
        name: "GICD_IGROUPR",
        attribute: 0x80 + shared_offset(1),
        count: shared_words(1),
        ..Bank::WORD
    },
    Bank {
        name: "GICD_ICFGR",
        attribute: 0xc00 + shared_offset(2),
        count: shared_words(2),
        write: Write::Unless(EDGES),
        ..Bank::WORD
    },
    Bank {
        name: "GICD_ITARGETSR",
        attribute: 0x800 + shared_offset(8),
        count: shared_words(8),
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
    Bank {
        name: "GICD_ISPENDR",
        attribute: 0x200 + shared_offset(1),
        count: shared_words(1),
        ..Bank::WORD
    },
];

const INTERFACE: Bank = Bank { group: Group::CpuInterface, ..Bank::WORD };

const PRIVATE: [Bank; 12] = [
    Bank { name: "GICD_IGROUPR0", attribute: 0x80, ..Bank::WORD },
    Bank { name: "GICD_ICFGR1", attribute: 0xc04, ..Bank::WORD },
    Bank { name: "GICD_IPRIORITYR", attribute: 0x400, count: private_words(8), ..Bank::WORD },
    Bank {
        name: "GICD_ISENABLER0",
        attribute: 0x100,
        write: Write::Bits { at_power_on: SGIS, clear: 0x180 },
        ..Bank::WORD
    },
    Bank { name: "GICD_ISACTIVER0", attribute: 0x300, ..Bank::WORD },
    Bank {
        name: "GICD_ISPENDR0",
        attribute: 0x200,
        mask: u32::MAX as u64 & !PENDING_OTHERWISE,
        ..Bank::WORD
    },
    Bank { name: "GICD_SPENDSGIR", attribute: 0xf20, count: 4, ..Bank::WORD },
    Bank { name: "GICC_CTLR", attribute: 0x0, ..INTERFACE },
    Bank { name: "GICC_PMR", attribute: 0x4, ..INTERFACE },
    Bank { name: "GICC_BPR", attribute: 0x8, write: Write::Always, ..INTERFACE },
    Bank { name: "GICC_ABPR", attribute: 0x1c, write: Write::Always, ..INTERFACE },
    Bank { name: "GICC_APR", attribute: 0xd0, count: 4, ..INTERFACE },
];
