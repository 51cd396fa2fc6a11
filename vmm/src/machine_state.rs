//! What a machine is, besides its RAM, when it stands still: sections that a snapshot keeps without
//! looking into them.
//!
//! ```text
//!  shape       how many vCPUs, how much RAM, which GIC, which device where
//!  maker       whether what the host says of its vCPUs need not be compared
//!  vcpu-N      registers, power state and pending errors of one vCPU
//!  gic         distributor, redistributors, CPU interfaces, pending interrupts, line levels
//!  clock       the guest's counter, once for all vCPUs
//!  block-a000000 ...  each device that has a state, by its kind and address
//! ```
//! A state may come from a hostile file. Nothing in here needs KVM, so that all of the decoding is
//! tested, and fuzzed, on any Linux.

pub mod clock;
pub mod gic;
pub mod maker;
pub mod register;
pub mod shape;
pub mod vcpu;

use std::collections::BTreeMap;

use rotifer_snapshot::{LoadError, Section, Tag};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::clock::Clock;
pub use self::register::Feature;
pub use self::shape::{Hardware, Shape};
use self::vcpu::VcpuState;

/// The whole state, in the order of saving.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineState {
    /// One for each part of the machine.
    pub sections: Vec<StateSection>,
}

/// The state of one part of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateSection {
    /// Which part: letters, digits and `-`. Unique.
    pub name: String,
    /// Which layout the bytes have.
    pub tag: Tag,
    /// The state, encoded.
    pub bytes: Vec<u8>,
}

/// What a restored machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It goes on at once.
    Run,
    /// It stands still; [`crate::machine::Machine::pause`] gives the proof of it.
    StayPaused,
}

/// Why a state cannot be taken on.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Without it the machine would begin with a part in its state of power-on.
    #[error("section {name} of the machine state is missing")]
    Missing {
        /// The section.
        name: String,
    },
    /// Which one would be the right one?
    #[error("section {name} of the machine state is there twice")]
    Doubled {
        /// The section.
        name: String,
    },
    /// Something would be lost.
    #[error("section {name} of the machine state belongs to no part of this machine")]
    Unknown {
        /// The section.
        name: String,
    },
    /// Saved by another version of the VMM.
    #[error("section {name} of the machine state is {found}; this VMM knows {known}")]
    Version {
        /// The section.
        name: String,
        /// What is there.
        found: Tag,
        /// What is known.
        known: Tag,
    },
    /// The section's content.
    #[error("section {name} of the machine state")]
    Load {
        /// The section.
        name: String,
        /// What is wrong with it.
        #[source]
        source: LoadError,
    },
    /// A list in a section has not the length that this machine has.
    #[error("section {name} of the machine state has {found} {what}, this machine {expected}")]
    Count {
        /// The section.
        name: String,
        /// Of what.
        what: &'static str,
        /// In the section.
        found: usize,
        /// In the machine.
        expected: usize,
    },
    /// A register that the section has and the machine has not, or the other way round.
    #[error("section {name} of the machine state: register {register} is {problem}")]
    Register {
        /// The section.
        name: String,
        /// Which register.
        register: String,
        /// What about it.
        problem: &'static str,
    },
    /// The guest would find itself in another machine.
    #[error("the state is of another machine: {what} was {saved} and is {here} here")]
    OtherMachine {
        /// Which part.
        what: String,
        /// As it was saved.
        saved: String,
        /// As the configuration makes it.
        here: String,
    },
    /// The guest would find itself on another CPU.
    #[error("the state is of another CPU: {feature} was {saved:#x} and is {here:#x} here")]
    OtherCpu {
        /// The feature, as the architecture names it.
        feature: String,
        /// What the guest has seen.
        saved: u64,
        /// What it would see.
        here: u64,
    },
}

/// A state that is a section of its own and no device's.
pub trait SectionState: Serialize + DeserializeOwned {
    /// Kind and version.
    const TAG: Tag;
}

impl MachineState {
    /// What kind of machine this is the state of, without looking at the rest.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn shape(&self) -> Result<Shape, StateError> {
        self.peek(Shape::SECTION)
    }

    /// What the guest has seen of its CPUs, for those who choose a host for it: fields of ID
    /// registers by their architectural names. [`StateError::OtherCpu`] uses the same names.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn cpu_features(&self) -> Result<Vec<Feature>, StateError> {
        let name = vcpu::section_name(0);
        let vcpu: VcpuState = self.peek(&name)?;
        let clock: Clock = self.peek(Clock::SECTION)?;
        let mut features = vcpu.features(&name)?;
        features.push(clock.feature());
        Ok(features)
    }

    fn peek<T: SectionState>(&self, name: &str) -> Result<T, StateError> {
        match self.sections.iter().find(|section| section.name == name) {
            Some(section) => section.decode(),
            None => Err(StateError::Missing { name: name.into() }),
        }
    }

    /// Appends the state of a part that is no device.
    pub fn put<T: SectionState>(&mut self, name: &str, state: &T) {
        let bytes =
            postcard::to_stdvec(state).expect("encoding into memory meets no I/O that can fail");
        self.sections.push(StateSection { name: name.into(), tag: T::TAG, bytes });
    }

    /// Appends the state of a device.
    pub fn put_device(&mut self, name: &str, device: &dyn Section) {
        let (tag, bytes) = (device.tag(), device.save_section());
        self.sections.push(StateSection { name: name.into(), tag, bytes });
    }
}

impl StateSection {
    fn check_tag(&self, known: Tag) -> Result<(), StateError> {
        if self.tag == known {
            return Ok(());
        }
        Err(StateError::Version { name: self.name.clone(), found: self.tag, known })
    }

    fn decode<T: SectionState>(&self) -> Result<T, StateError> {
        self.check_tag(T::TAG)?;
        let failed = |source| StateError::Load { name: self.name.clone(), source };
        let (state, rest) = postcard::take_from_bytes::<T>(&self.bytes)
            .map_err(|source| failed(LoadError::Decode { tag: T::TAG, source }))?;
        if rest.is_empty() {
            return Ok(state);
        }
        Err(failed(LoadError::LeftOver { tag: T::TAG, count: rest.len() }))
    }
}

/// The sections that nobody has consumed yet.
pub struct Remaining(BTreeMap<String, StateSection>);

impl Remaining {
    /// All of them.
    ///
    /// # Errors
    /// [`StateError::Doubled`].
    pub fn new(state: MachineState) -> Result<Self, StateError> {
        let mut remaining = BTreeMap::new();
        for section in state.sections {
            if let Some(other) = remaining.insert(section.name.clone(), section) {
                return Err(StateError::Doubled { name: other.name });
            }
        }
        Ok(Self(remaining))
    }

    fn take_section(&mut self, name: &str) -> Result<StateSection, StateError> {
        self.0.remove(name).ok_or_else(|| StateError::Missing { name: name.into() })
    }

    /// Consumes one.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn take<T: SectionState>(&mut self, name: &str) -> Result<T, StateError> {
        self.take_section(name)?.decode()
    }

    /// Consumes the one of a device, which takes it on.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn load_device(&mut self, name: &str, device: &mut dyn Section) -> Result<(), StateError> {
        let section = self.take_section(name)?;
        section.check_tag(device.tag())?;
        device
            .load_section(&section.bytes)
            .map_err(|source| StateError::Load { name: name.into(), source })
    }

    /// Everything must have been consumed by now.
    ///
    /// # Errors
    /// [`StateError::Unknown`].
    pub fn finish(mut self) -> Result<(), StateError> {
        match self.0.pop_first() {
            Some((name, _)) => Err(StateError::Unknown { name }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
