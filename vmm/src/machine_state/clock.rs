//! The guest's counter. All vCPUs of a machine read the same one, so it is saved once.
//!
//! It stands still while the machine does not exist: to the guest, a suspend takes no time. Timers
//! that were to run out later run out that much later, and none runs out all at once. The wall clock
//! stands still with it, until the guest's agent hears of the new generation and sets it.

use rotifer_snapshot::Tag;
use serde::{Deserialize, Serialize};

use super::{Feature, SectionState, StateError};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// How fast the counter counts. A guest reads it once, at boot.
    pub frequency_hz: u64,
    /// CNTVCT_EL0, which Linux uses.
    pub virtual_count: u64,
    /// CNTPCT_EL0, where KVM lets us set it (Linux 6.4).
    pub physical_count: Option<u64>,
}

impl SectionState for Clock {
    const TAG: Tag = Tag { kind: *b"CLCK", version: 1 };
}

/// Its name where features are told.
const FREQUENCY: &str = "CNTFRQ_EL0";

impl Clock {
    /// Name of the section.
    pub const SECTION: &str = "clock";

    /// The frequency as a feature of the CPU.
    pub fn feature(&self) -> Feature {
        Feature::exact(FREQUENCY, self.frequency_hz)
    }

    /// A guest computes with the frequency that it has read.
    ///
    /// # Errors
    /// [`StateError::OtherCpu`].
    pub fn check(&self, frequency_hz: u64) -> Result<(), StateError> {
        if self.frequency_hz == frequency_hz {
            return Ok(());
        }
        let (feature, saved) = (FREQUENCY.into(), self.frequency_hz);
        Err(StateError::OtherCpu { feature, saved, here: frequency_hz })
    }
}
