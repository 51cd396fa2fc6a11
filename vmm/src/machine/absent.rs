//! The machine on a host that can have none: not an ARM64 Linux. Everything around it is the
//! same, so that it can be built and tested there.

use std::sync::Arc;

use rotifer_devices::GuestMemory;
use rotifer_devices::virtio::net::Limits;
use vmm_sys_util::eventfd::EventFd;

use crate::boot::{Boot, BootError};
use crate::config::Plan;
use crate::machine_state::MachineState;
pub use crate::machine_state::{Hardware, Then};
use crate::outcome::Outcome;
use crate::table::DiskOverlay;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// What is wrong with the boot is found on every host.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Everything else needs the processor.
    #[error(
        "microVMs are ARM64 machines, and this host is not one; use `./x host` for an emulated one"
    )]
    WrongHost,
}

impl MachineError {
    /// Whether another configuration would help, on this host.
    pub fn is_users_mistake(&self) -> bool {
        matches!(self, Self::Boot(_))
    }
}

/// Why a machine cannot be paused.
pub type PauseError = MachineError;

/// Why a machine cannot be saved.
pub type SaveError = MachineError;

/// There is none.
pub enum Machine {}

/// There is none.
pub enum Paused {}

impl Machine {
    /// Refuses, after the checks that need no machine.
    ///
    /// # Errors
    /// Always.
    pub fn boot(plan: Plan, _wake: &EventFd) -> Result<Self, MachineError> {
        Boot::prepare(plan.boot, plan.ram_bytes)?;
        Err(MachineError::WrongHost)
    }

    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn restore<E>(
        _hardware: Hardware,
        _state: MachineState,
        _fill: impl FnOnce(&Arc<GuestMemory>) -> Result<(), E>,
        _wake: &EventFd,
        _then: Then,
    ) -> Result<Self, MachineError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        Err(MachineError::WrongHost)
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn pause(&mut self) -> Result<Paused, PauseError> {
        match *self {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn take_outcome(&mut self) -> Result<Option<Outcome>, MachineError> {
        match *self {}
    }

    /// Cannot be called.
    pub fn memory(&self) -> &GuestMemory {
        match *self {}
    }

    /// Cannot be called.
    pub fn overlays(&self) -> &[DiskOverlay] {
        match *self {}
    }

    /// Cannot be called.
    pub fn is_paused(&self) -> bool {
        match *self {}
    }

    /// Cannot be called.
    pub fn limit_network(&self, _id: &str, _limits: Limits) {
        match *self {}
    }

    /// Cannot be called.
    pub fn finish_output(&self) {
        match *self {}
    }
}

impl Paused {
    /// Cannot be called.
    pub fn memory(&self) -> &GuestMemory {
        match *self {}
    }

    /// Cannot be called.
    pub fn overlays(&self) -> &[DiskOverlay] {
        match *self {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn save(&self) -> Result<MachineState, SaveError> {
        match *self {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn resume(self) -> Result<(), PauseError> {
        match self {}
    }

    /// Cannot be called.
    pub fn stay(self) {
        match self {}
    }
}
