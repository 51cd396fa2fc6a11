//! Which KVM the vCPUs were made by, and how: what makes it say the same of two vCPUs.
//!
//! A hint, and nothing that a guest can see. What a vCPU *is* takes some 75 system calls to read,
//! half of what a restore on the host that saved would otherwise cost.

use rotifer_snapshot::Tag;
use serde::{Deserialize, Serialize};

use super::SectionState;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// The host's name of its present boot, which is random; empty where it has none.
    pub boot_id: String,
    /// `kvm_vcpu_init.target`
    pub target: u32,
    /// `kvm_vcpu_init.features`, of the first vCPU.
    pub features: u32,
}

impl SectionState for Maker {
    const TAG: Tag = Tag { kind: *b"MAKR", version: 1 };
}

impl Maker {
    /// Name of the section.
    pub const SECTION: &str = "maker";

    /// Whether vCPUs of `here` tell the guest what these told it. Whoever forges this deceives
    /// the guest in the same file, and nobody else.
    pub fn is_the_same(&self, here: &Self) -> bool {
        !self.boot_id.is_empty() && self == here
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_known_boot_with_the_same_kind_of_vcpus_is_the_same() {
        let maker = Maker { boot_id: "b".into(), target: 5, features: 12 };
        assert!(maker.is_the_same(&maker.clone()));
        for other in [
            Maker { boot_id: "c".into(), ..maker.clone() },
            Maker { target: 6, ..maker.clone() },
            Maker { features: 4, ..maker.clone() },
        ] {
            assert!(!maker.is_the_same(&other));
        }
        let nobody = Maker { boot_id: String::new(), ..maker };
        assert!(!nobody.is_the_same(&nobody));
    }
}
