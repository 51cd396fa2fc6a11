//! The state of the interrupt controller: which registers it consists of, and in which order KVM
//! must be given them (Documentation/virt/kvm/devices/arm-vgic*.rst of Linux).
//!
//! ```text
//!  shared        GICD_IIDR first: it says how KVM is to take the rest
//!                GICD_CTLR second: what becomes pending while the GIC is off is not delivered
//!                what each interrupt is like; which are enabled, active, pending; line levels
//!  per vCPU      its private interrupts the same way, then its CPU interface
//! ```
//! A register that has its value of power-on already is not written. Without an ITS there are no
//! LPIs, so GICR_CTLR, GICR_PROPBASER and GICR_PENDBASER hold nothing.

mod v2;
mod v3;

use rotifer_snapshot::Tag;
use serde::{Deserialize, Serialize};

use super::{SectionState, StateError};
use crate::arch::aarch64::{fdt, layout};

/// Values of all registers, in the order of [`Registers`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GicState {
    /// What all CPUs share.
    pub shared: Vec<u64>,
    /// What each CPU has of its own.
    pub private: Vec<Vec<u64>>,
}

impl SectionState for GicState {
    const TAG: Tag = Tag { kind: *b"VGIC", version: 1 };
}

/// The registers of one version of the controller.
#[derive(Debug)]
pub struct Registers {
    /// What all CPUs share.
    pub shared: Vec<Register>,
    /// What each CPU has of its own.
    pub private: Vec<Register>,
}

/// One register as KVM's device attributes name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    /// The architecture's name of it or of its bank.
    pub name: &'static str,
    /// Its place in the bank.
    pub index: u32,
    /// The attribute's group.
    pub group: Group,
    /// The attribute; a CPU goes into its upper half.
    pub attribute: u64,
    /// What is saved of it.
    pub mask: u64,
    /// How its value is brought back.
    pub write: Write,
}

/// Groups of attributes, by KVM's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Group {
    /// `KVM_DEV_ARM_VGIC_GRP_DIST_REGS`
    Distributor = 1,
    /// `KVM_DEV_ARM_VGIC_GRP_CPU_REGS`, GICv2.
    CpuInterface = 2,
    /// `KVM_DEV_ARM_VGIC_GRP_REDIST_REGS`, GICv3.
    Redistributor = 5,
    /// `KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS`, GICv3: the only ones of 64 bits.
    CpuSystemRegisters = 6,
    /// `KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO`, GICv3.
    LineLevels = 7,
}

/// How a value is brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// It cannot be, and must be the same.
    Compare,
    /// Always: KVM takes notice of the writing itself, or the value at power-on is the host's.
    Always,
    /// Unless it is this value, which the register has at power-on.
    Unless(u64),
    /// Bits are set here; those of `at_power_on` that are not wanted are cleared at another
    /// attribute.
    Bits {
        /// What is set at power-on.
        at_power_on: u64,
        /// Where to clear it.
        clear: u64,
    },
    /// Like `Unless(0)`, but KVM has this register only if the interface has that many priority
    /// bits.
    IfPriorityBits(u32),
}

impl Register {
    /// Whether it has 64 bits and not 32.
    pub fn is_wide(&self) -> bool {
        self.group == Group::CpuSystemRegisters
    }
}

impl Registers {
    /// Those of a version, for machines of ours.
    pub fn of(version: fdt::Gic) -> Self {
        match version {
            fdt::Gic::V2 => v2::registers(),
            fdt::Gic::V3 => v3::registers(),
        }
    }
}

impl GicState {
    /// Name of the section.
    pub const SECTION: &str = "gic";

    /// Whether there is a value for each of `registers`, shared and of each of `vcpu_count` CPUs.
    ///
    /// # Errors
    /// [`StateError::Count`].
    pub fn check(&self, registers: &Registers, vcpu_count: usize) -> Result<(), StateError> {
        let check = |what, found, expected| {
            if found == expected {
                return Ok(());
            }
            Err(StateError::Count { name: Self::SECTION.into(), what, found, expected })
        };
        check("shared registers", self.shared.len(), registers.shared.len())?;
        check("CPUs", self.private.len(), vcpu_count)?;
        self.private.iter().try_for_each(|private| {
            check("registers of a CPU", private.len(), registers.private.len())
        })
    }
}

/// A run of registers of the same kind.
struct Bank {
    name: &'static str,
    group: Group,
    attribute: u64,
    count: u32,
    /// From one attribute to the next.
    stride: u64,
    mask: u64,
    write: Write,
}

impl Bank {
    const WORD: Self = Self {
        name: "",
        group: Group::Distributor,
        attribute: 0,
        count: 1,
        stride: 4,
        mask: u32::MAX as u64,
        write: Write::Unless(0),
    };

    fn registers(&self) -> impl Iterator<Item = Register> + use<> {
        let Self { name, group, attribute, count, stride, mask, write } = *self;
        (0..count).map(move |index| {
            let offset = u64::from(index) * stride;
            let write = match write {
                Write::Bits { at_power_on, clear } => {
                    Write::Bits { at_power_on, clear: clear + offset }
                }
                other => other,
            };
            Register { name, index, group, attribute: attribute + offset, mask, write }
        })
    }
}

fn expand(banks: &[Bank]) -> Vec<Register> {
    banks.iter().flat_map(Bank::registers).collect()
}

/// Banks with `bits` for each interrupt: how many words the private interrupts have, and how many
/// the shared ones behind them.
const fn private_words(bits: u32) -> u32 {
    layout::FIRST_SPI_INTID * bits / u32::BITS
}

const fn shared_words(bits: u32) -> u32 {
    (layout::INTERRUPT_COUNT - layout::FIRST_SPI_INTID) * bits / u32::BITS
}

/// Where the words of the shared interrupts begin in such a bank.
const fn shared_offset(bits: u32) -> u64 {
    private_words(bits) as u64 * 4
}

#[cfg(test)]
mod tests;
