//! vCPUs: registers, power state, pending errors.
//!
//! With SVE the vector lengths were fixed when the vCPU was made; they are compared like the ID
//! registers. Everything else can be written in any order, before the vCPU has run for the first
//! time.
//!
//! Each register costs a system call, and a vCPU has some 260. So the ID registers, which all
//! vCPUs of a machine share, are read from the first only, and not at all where the same KVM made
//! the saved vCPUs; and what is zero in a new vCPU anyway, most of it breakpoints that nobody
//! uses, is not written.

use std::collections::BTreeMap;
use std::fmt::Display;

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, RegList, kvm_mp_state, kvm_vcpu_events,
};
use kvm_ioctls::Error;

use super::super::vcpu::Vcpu;
use super::{RestoreError, SaveError};
use crate::machine_state::maker::Maker;
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

    /// What this vCPU is.
    fn identification(&self, list: &[RegisterId]) -> Result<Identification, RestoreError> {
        let ids = list.iter().copied().filter(|id| id.is_identification());
        ids.map(|id| Ok((id, self.read_here(id)?))).collect()
    }

    fn read_here(&self, id: RegisterId) -> Result<Vec<u8>, RestoreError> {
        let mut buffer = [0; REGISTER_BYTES_MAX];
        let value = self.read(id, &mut buffer);
        let failed = |source| RestoreError::Read { what: self.part(&id), source };
        Ok(value.map_err(failed)?.to_vec())
    }

    /// Takes on the state of `section`; `here` is what the first vCPU is, if that must be compared.
    fn load(
        &self,
        section: &str,
        state: &VcpuState,
        list: &[RegisterId],
        here: Option<&Identification>,
    ) -> Result<(), RestoreError> {
        let failed =
            |what: &dyn Display, source| RestoreError::Write { what: self.part(what), source };
        if let Some(here) = here {
            // First: a CPU without a feature has not its registers either, which says less.
            compare_all(&state.values(section)?, here)?;
        }
        for (id, value) in state.registers(section, list)? {
            if id == RegisterId::MPIDR_EL1 {
                compare(id, value, &self.read_here(id)?)?;
                continue;
            }
            let is_there = id.is_zero_at_power_on() && value.iter().all(|byte| *byte == 0);
            if !is_there && !id.is_identification() {
                self.fd().set_one_reg(id.0, value).map_err(|source| failed(&id, source))?;
            }
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

/// The identification registers of a vCPU.
type Identification = BTreeMap<RegisterId, Vec<u8>>;

fn compare(id: RegisterId, saved: &[u8], here: &[u8]) -> Result<(), StateError> {
    match id.difference(saved, here) {
        Some((feature, saved, here)) => Err(StateError::OtherCpu { feature, saved, here }),
        None => Ok(()),
    }
}

fn compare_all(saved: &[(RegisterId, &[u8])], here: &Identification) -> Result<(), StateError> {
    let saved = saved.iter().filter(|(id, _)| *id != RegisterId::MPIDR_EL1);
    for (id, value) in saved {
        if let Some(here) = here.get(id) {
            compare(*id, value, here)?;
        }
    }
    Ok(())
}

/// What is known of who made this vCPU.
pub(super) fn maker(vcpu: &Vcpu) -> Maker {
    let (target, features) = vcpu.kind();
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Maker { boot_id: boot_id.trim_end().into(), target, features }
}

/// Has each vCPU take on its section.
pub(super) fn load(vcpus: &[Vcpu], sections: &mut Remaining) -> Result<(), RestoreError> {
    let Some(first) = vcpus.first() else { return Ok(()) };
    let list = first
        .register_list()
        .map_err(|source| RestoreError::Read { what: "the list of registers".into(), source })?;
    let saved_by: Maker = sections.take(Maker::SECTION)?;
    let here =
        if saved_by.is_the_same(&maker(first)) { None } else { Some(first.identification(&list)?) };
    for (index, vcpu) in vcpus.iter().enumerate() {
        let name = section_name(index);
        vcpu.load(&name, &sections.take(&name)?, &list, here.as_ref())?;
    }
    Ok(())
}
