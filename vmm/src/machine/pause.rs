//! A machine that stands still.

use rotifer_devices::GuestMemory;
use rotifer_devices::io::IoThreadError;

use super::Machine;
use super::state::{self, SaveError};
use super::threads::ThreadError;
use crate::machine_state::MachineState;
use crate::table::DiskOverlay;

/// Why a machine cannot be paused. Without its threads it is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// A vCPU does not stop.
    #[error("stop the vCPUs")]
    Vcpus(#[source] ThreadError),
    /// The io thread does not stop.
    #[error("stop the io thread")]
    Io(#[source] IoThreadError),
    /// A vCPU does not start.
    #[error("let the vCPUs go on")]
    Resume(#[source] ThreadError),
}

/// Proof that nothing of the machine moves: every vCPU is in the main thread's hands, no device
/// works, none has anything in flight. The machine goes on when this is dropped.
pub struct Paused<'a> {
    machine: &'a mut Machine,
    /// Whether the end of this value leaves the machine paused.
    stays: bool,
}

impl<'a> Paused<'a> {
    /// Guest code first, since it makes work for devices; then their thread; then what they have
    /// begun is finished. All of it is a no-operation on a machine that is paused already.
    pub(super) fn new(machine: &'a mut Machine) -> Result<Self, PauseError> {
        if machine.parked.is_none() {
            machine.vcpus.stop().map_err(PauseError::Vcpus)?;
            machine.parked = Some(machine.io.park().map_err(PauseError::Io)?);
            for transport in machine.table.transports() {
                transport.drain();
            }
        }
        Ok(Self { machine, stays: false })
    }

    /// Guest RAM, which nobody changes now.
    pub fn memory(&self) -> &GuestMemory {
        &self.machine.memory
    }

    /// The overlays of its disks, whose files have all that the guest wrote.
    pub fn overlays(&self) -> &[DiskOverlay] {
        self.machine.overlays()
    }

    /// Everything that the guest can see of the machine, but RAM, which is to be read *after*
    /// this: the interrupt controller writes what it keeps there.
    ///
    /// # Errors
    /// See [`SaveError`]; the machine is as it was.
    pub fn save(&self) -> Result<MachineState, SaveError> {
        state::save(self.machine)
    }

    /// Lets the machine go on.
    ///
    /// # Errors
    /// [`PauseError::Resume`].
    pub fn resume(mut self) -> Result<(), PauseError> {
        self.stays = true;
        self.machine.go_on()
    }

    /// Leaves the machine paused; another [`Machine::pause`] gives the proof again.
    pub fn stay(mut self) {
        self.stays = true;
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        if let Err(error) = self.machine.go_on() {
            tracing::error!(error = &error as &dyn std::error::Error, "resume the machine");
        }
    }
}

impl Machine {
    fn go_on(&mut self) -> Result<(), PauseError> {
        // The io thread goes on when this is dropped.
        self.parked = None;
        if self.has_ended() {
            // Whoever asks for the outcome will be told.
            return Ok(());
        }
        self.vcpus.run().map_err(PauseError::Resume)
    }
}
