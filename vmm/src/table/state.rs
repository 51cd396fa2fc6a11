//! What of a device survives a suspend.

use rotifer_snapshot::Section;

use super::Part;

impl Part {
    /// Lends the device's state, if it has one.
    pub fn with_section<R>(&self, work: impl FnOnce(&mut dyn Section) -> R) -> Option<R> {
        match self {
            Self::Serial(serial) => Some(work(&mut serial.as_ref())),
            Self::Rtc(rtc) => Some(work(&mut rtc.as_ref())),
            Self::Virtio(transport) => Some(work(&mut transport.as_ref())),
            // A guest that has panicked is not saved, and before that there is nothing to know.
            Self::PanicNotifier(_) => None,
            // It lies in RAM, and is another one after a restore.
            Self::VmGenerationId(_) => None,
        }
    }
}
