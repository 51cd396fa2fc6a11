//! Registers of a vCPU by the identifiers that KVM gives them
//! (Documentation/virt/kvm/api.rst of Linux, "KVM_SET_ONE_REG"): what they are called, how large
//! they are, and which of them tell what the CPU is.

use std::fmt;

mod features;

use features::{ID_REGISTERS, IdRegister};

/// KVM's identifier of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegisterId(pub u64);

/// What a guest has seen of its CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// Such as `ID_AA64ISAR0_EL1.Atomic`: letters, digits, `_` and `.`.
    pub name: String,
    /// Its value.
    pub value: u64,
    /// Whether a CPU with a larger value has everything that one with this value has. Signed
    /// fields are told plus one, so that this holds for them.
    pub grows: bool,
}

impl Feature {
    /// One that a CPU has or has not.
    pub fn exact(name: &str, value: u64) -> Self {
        Self { name: name.into(), value, grows: false }
    }
}

/// `KVM_REG_ARM64`.
const ARM64: u64 = 0x6000_0000_0000_0000;
const ARCH_MASK: u64 = 0xff00_0000_0000_0000;
const SIZE_SHIFT: u32 = 52;
const SIZE_MASK: u64 = 0xf;
/// `KVM_REG_SIZE_U2048`: the largest SVE register.
const SIZE_MAX: u64 = 8;
const SIZE_U64: u64 = 3;

/// Where PSTATE lies in `struct kvm_regs`, in words of 32 bits.
const PSTATE_INDEX: u64 = 0x42;

/// Kinds of registers, in bits 16 to 27.
mod kind {
    pub const CORE: u64 = 0x10;
    pub const DEMUX: u64 = 0x11;
    pub const SYSTEM: u64 = 0x13;
    pub const FIRMWARE: u64 = 0x14;
    pub const SVE: u64 = 0x15;
    pub const FIRMWARE_FEATURES: u64 = 0x16;
}

impl RegisterId {
    /// CNTVCT_EL0, by the name `KVM_REG_ARM_TIMER_CNT`. Its encoding is that of CNTV_CVAL_EL0 and
    /// the other way round: the interface has them swapped, for ever.
    pub const VIRTUAL_COUNT: Self = Self::system(3, 3, 14, 3, 2);
    /// CNTPCT_EL0.
    pub const PHYSICAL_COUNT: Self = Self::system(3, 3, 14, 0, 1);
    /// The affinity of the vCPU.
    pub const MPIDR_EL1: Self = Self::system(3, 0, 0, 0, 5);
    /// The vector lengths that SVE has, a bit for each.
    pub const SVE_VECTOR_LENGTHS: Self = Self(ARM64 | 6 << SIZE_SHIFT | kind::SVE << 16 | 0xffff);

    /// A system register of 64 bits.
    pub const fn system(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> Self {
        let encoding = op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2;
        Self(ARM64 | SIZE_U64 << SIZE_SHIFT | kind::SYSTEM << 16 | encoding)
    }

    /// How many bytes its value has; none if this is no identifier.
    pub fn bytes(self) -> Option<usize> {
        let size = self.0 >> SIZE_SHIFT & SIZE_MASK;
        (self.0 & ARCH_MASK == ARM64 && size <= SIZE_MAX).then_some(1 << size)
    }

    /// The counters, which are the machine's and not the vCPU's.
    pub fn is_counter(self) -> bool {
        self == Self::VIRTUAL_COUNT || self == Self::PHYSICAL_COUNT
    }

    /// Whether it tells what the CPU is. Such registers are compared, never written.
    pub fn is_identification(self) -> bool {
        match self.parts() {
            // The ID registers proper, cache geometry, and CTR_EL0; CSSELR_EL1 has op1 2.
            Parts::System { op0: 3, op1: 0 | 1 | 3, crn: 0, .. } => true,
            Parts::Other { kind: kind::DEMUX, .. } => true,
            Parts::Other { .. } => self == Self::SVE_VECTOR_LENGTHS,
            Parts::System { .. } => false,
        }
    }

    /// Whether a vCPU that has run nothing has zero in it (api.rst, KVM_ARM_VCPU_INIT; the debug
    /// registers by KVM's implementation), so that writing zero would change nothing.
    pub fn is_zero_at_power_on(self) -> bool {
        match self.parts() {
            Parts::Other { kind: kind::CORE, index } => index != PSTATE_INDEX,
            Parts::Other { kind: kind::SVE, .. } => self != Self::SVE_VECTOR_LENGTHS,
            // Breakpoints and watchpoints.
            Parts::System { op0: 2, op1: 0, crn: 0, op2, .. } => op2 >= 4,
            _ => false,
        }
    }

    fn parts(self) -> Parts {
        let kind = self.0 >> 16 & 0xfff;
        let index = self.0 & 0xffff;
        if kind != kind::SYSTEM {
            return Parts::Other { kind, index };
        }
        let bits = |shift: u32, mask: u64| index >> shift & mask;
        Parts::System {
            op0: bits(14, 3),
            op1: bits(11, 7),
            crn: bits(7, 15),
            crm: bits(3, 15),
            op2: bits(0, 7),
        }
    }

    fn id_register(self) -> Option<&'static IdRegister> {
        ID_REGISTERS.iter().find(|register| register.id == self)
    }

    /// What an identification register of this value says, field by field where the fields are
    /// known. The affinity is none of it: it is the vCPU's number.
    pub fn features(self, value: &[u8]) -> Vec<Feature> {
        if self == Self::MPIDR_EL1 {
            return Vec::new();
        }
        let words: Vec<u64> = value.chunks(8).map(little_endian).collect();
        match (self.id_register(), words.as_slice()) {
            (Some(register), [value]) if !register.fields.is_empty() => register.features(*value),
            (_, [value]) => vec![Feature::exact(&self.to_string(), *value)],
            (_, words) => (0..)
                .zip(words)
                .map(|(index, word): (u32, _)| Feature::exact(&format!("{self}.{index}"), *word))
                .collect(),
        }
    }

    /// The first thing that two values of an identification register say differently: its name
    /// and both values.
    pub fn difference(self, saved: &[u8], here: &[u8]) -> Option<(String, u64, u64)> {
        if saved == here {
            return None;
        }
        let (before, after) = (self.features(saved), self.features(here));
        let differs = before.into_iter().zip(after).find(|(a, b)| a.value != b.value);
        Some(match differs {
            Some((before, after)) => (before.name, before.value, after.value),
            // The affinity, or a bit outside of the known fields.
            None => (self.to_string(), little_endian(saved), little_endian(here)),
        })
    }
}

/// Up to eight bytes as a number.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

enum Parts {
    System { op0: u64, op1: u64, crn: u64, crm: u64, op2: u64 },
    Other { kind: u64, index: u64 },
}

/// The architecture's name where it says more than the number.
impl fmt::Display for RegisterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(register) = self.id_register() {
            return f.write_str(register.name);
        }
        match self.parts() {
            _ if *self == Self::VIRTUAL_COUNT => f.write_str("CNTVCT_EL0"),
            _ if *self == Self::PHYSICAL_COUNT => f.write_str("CNTPCT_EL0"),
            _ if *self == Self::SVE_VECTOR_LENGTHS => f.write_str("SVE_VLS"),
            _ if self.bytes().is_none() => write!(f, "{:#x}", self.0),
            Parts::System { op0, op1, crn, crm, op2 } => {
                write!(f, "S{op0}_{op1}_C{crn}_C{crm}_{op2}")
            }
            Parts::Other { kind, index } => match kind {
                kind::CORE => write!(f, "CORE.{index:x}"),
                kind::DEMUX => write!(f, "CCSIDR_EL1.{index:x}"),
                kind::FIRMWARE => write!(f, "FIRMWARE.{index:x}"),
                kind::SVE => write!(f, "SVE.{index:x}"),
                kind::FIRMWARE_FEATURES => write!(f, "FIRMWARE_FEATURES.{index:x}"),
                _ => write!(f, "{:#x}", self.0),
            },
        }
    }
}

#[cfg(test)]
mod tests;
