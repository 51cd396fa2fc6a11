//! How a machine ends, and the exit status that tells.

/// How a machine has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest shut down.
    Shutdown,
    /// The guest wants to start anew, which is its owner's business.
    Reset,
    /// The guest's kernel panicked.
    Panicked,
    /// A signal asked for the end.
    Signal,
}

/// The VMM failed.
pub const FAILURE: u8 = 1;
/// The command line or the configuration is wrong.
pub const WRONG_USAGE: u8 = 2;

impl Outcome {
    /// The status of the process.
    pub fn status(self) -> u8 {
        match self {
            Self::Shutdown | Self::Signal => 0,
            Self::Reset => 3,
            Self::Panicked => 4,
        }
    }

    /// For the log.
    pub fn text(self) -> &'static str {
        match self {
            Self::Shutdown => "the guest shut down",
            Self::Reset => "the guest reset",
            Self::Panicked => "the guest's kernel panicked",
            Self::Signal => "a signal ended the machine",
        }
    }
}
