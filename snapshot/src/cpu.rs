//! What a guest has seen of its CPU, and whether another CPU can go on from there.

use crate::name::Name;

/// One feature: usually a field of an ID register.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CpuFeature {
    /// Such as `ID_AA64PFR0_EL1.SVE`.
    pub name: Name,
    /// What the guest has seen. A field that counts from -1 is saved plus one.
    pub value: u64,
    /// What another CPU must have.
    pub rule: CpuRule,
}

/// What another CPU must have of a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuRule {
    /// The same value or a larger one.
    AtLeast,
    /// The same value.
    Equal,
    /// Every bit that is set, and maybe others.
    Bits,
}

/// This CPU lacks something that the guest has seen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this CPU cannot run the snapshot: the guest has seen {name} = {saved:#x}, here it is {}",
    shown(*.present)
)]
pub struct CpuMismatch {
    /// The feature.
    pub name: Name,
    /// What the guest has seen.
    pub saved: u64,
    /// What this CPU has; none if it does not know the feature.
    pub present: Option<u64>,
}

/// Compares what the guest has seen with what this CPU has. Features that only this CPU has are no
/// reason to refuse.
///
/// # Errors
/// [`CpuMismatch`] names the first feature that is missing.
pub fn compare(saved: &[CpuFeature], present: &[CpuFeature]) -> Result<(), CpuMismatch> {
    for feature in saved {
        let here = present.iter().find(|other| other.name == feature.name).map(|it| it.value);
        if !here.is_some_and(|here| feature.rule.allows(feature.value, here)) {
            let CpuFeature { name, value, .. } = feature.clone();
            return Err(CpuMismatch { name, saved: value, present: here });
        }
    }
    Ok(())
}

impl CpuRule {
    fn allows(self, saved: u64, present: u64) -> bool {
        match self {
            Self::AtLeast => present >= saved,
            Self::Equal => present == saved,
            Self::Bits => present & saved == saved,
        }
    }

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::AtLeast => 0,
            Self::Equal => 1,
            Self::Bits => 2,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::AtLeast, Self::Equal, Self::Bits].into_iter().find(|rule| rule.number() == number)
    }
}

fn shown(present: Option<u64>) -> String {
    present.map_or_else(|| "unknown".into(), |value| format!("{value:#x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(name: &str, value: u64, rule: CpuRule) -> CpuFeature {
        CpuFeature { name: Name::new(name).unwrap(), value, rule }
    }

    #[test]
    fn a_cpu_that_lacks_a_feature_is_refused_by_its_name() {
        let saved = [feature("PFR0.SVE", 1, CpuRule::AtLeast)];
        compare(&saved, &[feature("PFR0.SVE", 2, CpuRule::AtLeast)]).unwrap();
        let error = compare(&saved, &[feature("PFR0.SVE", 0, CpuRule::AtLeast)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this CPU cannot run the snapshot: the guest has seen PFR0.SVE = 0x1, here it is 0x0"
        );
        let error = compare(&saved, &[]).unwrap_err();
        assert!(error.to_string().ends_with("here it is unknown"));
    }

    #[test]
    fn rules_say_what_another_cpu_may_have() {
        let frequency = [feature("CNTFRQ", 100, CpuRule::Equal)];
        assert!(compare(&frequency, &[feature("CNTFRQ", 101, CpuRule::Equal)]).is_err());
        let bits = [feature("HWCAP", 0b101, CpuRule::Bits)];
        compare(&bits, &[feature("HWCAP", 0b111, CpuRule::Bits)]).unwrap();
        assert!(compare(&bits, &[feature("HWCAP", 0b110, CpuRule::Bits)]).is_err());
    }
}
