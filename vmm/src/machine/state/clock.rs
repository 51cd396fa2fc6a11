//! The counter. KVM keeps what it is ahead or behind of the host's for the whole machine, so it is
//! read and written through one vCPU, and only while none runs.

use std::arch::asm;

use super::super::vcpu::Vcpu;
use super::{RestoreError, SaveError};
use crate::machine_state::clock::Clock;
use crate::machine_state::register::RegisterId;
use crate::machine_state::{MachineState, Remaining};

/// Reads the counter.
pub(super) fn save(
    vcpu: &Vcpu,
    list: &[RegisterId],
    state: &mut MachineState,
) -> Result<(), SaveError> {
    let read = |id: RegisterId| {
        let mut value = [0; 8];
        match vcpu.fd().get_one_reg(id.0, &mut value) {
            Ok(_) => Ok(u64::from_le_bytes(value)),
            Err(source) => Err(SaveError::Read { what: id.to_string(), source }),
        }
    };
    let physical = list.contains(&RegisterId::PHYSICAL_COUNT);
    let clock = Clock {
        frequency_hz: frequency_hz(),
        virtual_count: read(RegisterId::VIRTUAL_COUNT)?,
        physical_count: physical.then(|| read(RegisterId::PHYSICAL_COUNT)).transpose()?,
    };
    state.put(Clock::SECTION, &clock);
    Ok(())
}

/// Has the counter go on from where it was.
pub(super) fn load(vcpus: &[Vcpu], sections: &mut Remaining) -> Result<(), RestoreError> {
    let clock: Clock = sections.take(Clock::SECTION)?;
    clock.check(frequency_hz())?;
    let Some(vcpu) = vcpus.first() else { return Ok(()) };
    let counts = [
        (RegisterId::VIRTUAL_COUNT, Some(clock.virtual_count)),
        (RegisterId::PHYSICAL_COUNT, clock.physical_count),
    ];
    for (id, count) in counts {
        if let Some(count) = count {
            vcpu.fd()
                .set_one_reg(id.0, &count.to_le_bytes())
                .map_err(|source| RestoreError::Write { what: id.to_string(), source })?;
        }
    }
    Ok(())
}

/// How fast the host's counter counts, which a guest reads directly.
fn frequency_hz() -> u64 {
    let frequency: u64;
    // SAFETY: reads a register that Linux lets user space read, and touches nothing else.
    unsafe {
        asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack, preserves_flags));
    }
    frequency
}
