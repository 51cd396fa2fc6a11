//! vCPUs: registers, power state, pending errors.
//!
//! With SVE the vector lengths were fixed when the vCPU was made; they are compared like the ID
//! registers. Everything else can be written in any order, before the vCPU has run for the first
//! time.

use std::fmt::Display;

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, RegList, kvm_mp_state, kvm_vcpu_events,
};
use kvm_ioctls::Error;

use super::super::vcpu::Vcpu;
use super::{RestoreError, SaveError};
use crate::machine_state::register::RegisterId;
use crate::machine_state::vcpu::{PendingError, Power, VcpuState, section_name};
use crate::machine_state::{Remaining, StateError};

/// KVM tells about 270, with SVE 320; the bindings' limit.
const REGISTERS_MAX: usize = 500;
/// The largest register, one of SVE.
const REGISTER_BYTES_MAX: usize = 256;

impl Vcpu {
    /// Which registers KVM has, in its order. All vCPUs of a machine have the same.
    pub(super) fn register_list(&self) -> Result<Vec<RegisterId>, Error> {
        let mut list = RegList::new(REGISTERS_MAX).map_err(|_| Error::new(libc::ENOMEM))?;
        self.fd().get_reg_list(&mut list)?;
        Ok(list.as_slice().iter().copied().map(RegisterId).collect())
    }

    /// Reads one register into a part of `buffer`.
    fn read<'a>(
        &self,
        id: RegisterId,
        buffer: &'a mut [u8; REGISTER_BYTES_MAX],
    ) -> Result<&'a [u8], Error> {
        let bytes = id.bytes().and_then(|bytes| buffer.get_mut(..bytes));
        let value = bytes.ok_or(Error::new(libc::EINVAL))?;
        self.fd().get_one_reg(id.0, value)?;
        Ok(value)
    }

    /// Its state, with the registers of `list`.
    pub(super) fn save(&self, list: &[RegisterId]) -> Result<VcpuState, SaveError> {
        let failed = |what: &dyn Display, source| SaveError::Read { what: self.part(what), source };
        let power = self.fd().get_mp_state().map_err(|e| failed(&"the power state", e))?;
        let power = match power.mp_state {
            KVM_MP_STATE_RUNNABLE => Power::On,
            KVM_MP_STATE_STOPPED => Power::Off,
            other => {
                let what = self.part(&"the power state");
                return Err(SaveError::Unknown { what, value: other.into() });
            }
        };
        let events = self.fd().get_vcpu_events().map_err(|e| failed(&"pending errors", e))?;
        let events = events.exception;
        let pending_error = (events.serror_pending != 0).then(|| PendingError {
            syndrome: (events.serror_has_esr != 0).then_some(events.serror_esr),
        });
        let mut state = VcpuState::new(power, pending_error);
        let mut buffer = [0; REGISTER_BYTES_MAX];
        for id in list.iter().copied().filter(|id| !id.is_counter()) {
            state.push(id, self.read(id, &mut buffer).map_err(|source| failed(&id, source))?);
        }
        Ok(state)
    }

    /// Takes on the state of `section`.
    fn load(
        &self,
        section: &str,
        state: &VcpuState,
        list: &[RegisterId],
    ) -> Result<(), RestoreError> {
        let failed =
            |what: &dyn Display, source| RestoreError::Write { what: self.part(what), source };
        let registers = state.registers(section, list)?;
        let mut buffer = [0; REGISTER_BYTES_MAX];
        for (id, saved) in registers.iter().filter(|(id, _)| id.is_identification()) {
            let here = self.read(*id, &mut buffer).map_err(|source| {
                let what = self.part(id);
                RestoreError::Read { what, source }
            })?;
            if let Some((feature, saved, here)) = id.difference(saved, here) {
                return Err(StateError::OtherCpu { feature, saved, here }.into());
            }
        }
        for (id, value) in registers.iter().filter(|(id, _)| !id.is_identification()) {
            self.fd().set_one_reg(id.0, value).map_err(|source| failed(id, source))?;
        }
        if let Some(PendingError { syndrome }) = state.pending_error {
            let mut events = kvm_vcpu_events::default();
            events.exception.serror_pending = 1;
            events.exception.serror_has_esr = syndrome.is_some().into();
            events.exception.serror_esr = syndrome.unwrap_or(0);
            self.fd()
                .set_vcpu_events(&events)
                .map_err(|source| failed(&"pending errors", source))?;
        }
        let mp_state = match state.power {
            Power::On => KVM_MP_STATE_RUNNABLE,
            Power::Off => KVM_MP_STATE_STOPPED,
        };
        self.fd()
            .set_mp_state(kvm_mp_state { mp_state })
            .map_err(|source| failed(&"the power state", source))
    }

    /// A part of this vCPU, for messages.
    pub(super) fn part(&self, what: &dyn Display) -> String {
        format!("{what} of vCPU {}", self.index())
    }
}

/// Has each vCPU take on its section.
pub(super) fn load(vcpus: &[Vcpu], sections: &mut Remaining) -> Result<(), RestoreError> {
    let Some(first) = vcpus.first() else { return Ok(()) };
    let list = first
        .register_list()
        .map_err(|source| RestoreError::Read { what: "the list of registers".into(), source })?;
    for (index, vcpu) in vcpus.iter().enumerate() {
        let name = section_name(index);
        vcpu.load(&name, &sections.take(&name)?, &list)?;
    }
    Ok(())
}
