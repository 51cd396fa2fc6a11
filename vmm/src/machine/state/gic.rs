//! The interrupt controller: the registers that [`GicState`] lists, one by one.

use kvm_ioctls::Error;

use super::super::gic::Gic;
use super::super::vcpu::Vcpu;
use super::{RestoreError, SaveError};
use crate::arch::aarch64::fdt;
use crate::machine_state::gic::{GicState, Register, Registers, Write};
use crate::machine_state::{MachineState, Remaining, StateError};

/// Reads the whole controller, after it has written what it keeps in guest RAM there.
pub(super) fn save(gic: &Gic, vcpus: &[&Vcpu], state: &mut MachineState) -> Result<(), SaveError> {
    gic.flush_into_ram().map_err(|source| {
        let what = "pending interrupts out of the vGIC".into();
        SaveError::Read { what, source }
    })?;
    let registers = Registers::of(gic.version());
    let shared = read_all(gic, 0, &registers.shared)?;
    let private = vcpus
        .iter()
        .map(|vcpu| read_all(gic, selector(gic, vcpu), &registers.private))
        .collect::<Result<_, _>>()?;
    state.put(GicState::SECTION, &GicState { shared, private });
    Ok(())
}

fn read_all(gic: &Gic, cpu: u64, registers: &[Register]) -> Result<Vec<u64>, SaveError> {
    let mut priority_bits = 0;
    registers
        .iter()
        .map(|register| {
            if matches!(register.write, Write::IfPriorityBits(bits) if bits > priority_bits) {
                return Ok(0);
            }
            let value = gic
                .read(register, cpu)
                .map_err(|source| SaveError::Read { what: part(register), source })?;
            if register.name == "ICC_CTLR_EL1" {
                priority_bits = priority_bits_of(value);
            }
            Ok(value & register.mask)
        })
        .collect()
}

/// ICC_CTLR_EL1.PRIbits (ARM IHI 0069, section 12.2.4), which is one less.
fn priority_bits_of(control: u64) -> u32 {
    (control >> 8 & 7) as u32 + 1
}

/// Has a fresh controller take on its section.
pub(super) fn load(
    gic: &Gic,
    vcpus: &[Vcpu],
    sections: &mut Remaining,
) -> Result<(), RestoreError> {
    let state: GicState = sections.take(GicState::SECTION)?;
    let registers = Registers::of(gic.version());
    state.check(&registers, vcpus.len())?;
    write_all(gic, 0, registers.shared.iter().zip(&state.shared))?;
    for (vcpu, values) in vcpus.iter().zip(&state.private) {
        write_all(gic, selector(gic, vcpu), registers.private.iter().zip(values))?;
    }
    Ok(())
}

fn write_all<'a>(
    gic: &Gic,
    cpu: u64,
    values: impl Iterator<Item = (&'a Register, &'a u64)>,
) -> Result<(), RestoreError> {
    for (register, value) in values {
        let failed = |source| RestoreError::Write { what: part(register), source };
        let value = *value & register.mask;
        match register.write {
            Write::Compare => compare(gic, cpu, register, value)?,
            Write::Unless(at_power_on) if value == at_power_on => {}
            Write::IfPriorityBits(_) if value == 0 => {}
            Write::Always | Write::Unless(_) | Write::IfPriorityBits(_) => {
                gic.write(register, cpu, value).map_err(failed)?;
            }
            Write::Bits { at_power_on, clear } => {
                let unwanted = at_power_on & !value;
                if unwanted != 0 {
                    let clearing = Register { attribute: clear, ..*register };
                    gic.write(&clearing, cpu, unwanted).map_err(failed)?;
                }
                if value & !at_power_on != 0 {
                    gic.write(register, cpu, value).map_err(failed)?;
                }
            }
        }
    }
    Ok(())
}

fn compare(gic: &Gic, cpu: u64, register: &Register, saved: u64) -> Result<(), RestoreError> {
    let here = gic
        .read(register, cpu)
        .map_err(|source| RestoreError::Read { what: part(register), source })?;
    if here & register.mask == saved {
        return Ok(());
    }
    let (saved, here) = (format!("{saved:#x}"), format!("{here:#x}"));
    Err(StateError::OtherMachine { what: register.name.into(), saved, here }.into())
}

/// How attributes name a CPU: a GICv2 by number, a GICv3 by affinity.
fn selector(gic: &Gic, vcpu: &Vcpu) -> u64 {
    let cpu = match gic.version() {
        fdt::Gic::V2 => vcpu.index().into(),
        fdt::Gic::V3 => vcpu.affinity(),
    };
    cpu << u32::BITS
}

fn part(register: &Register) -> String {
    format!("{} {} of the vGIC", register.name, register.index)
}

impl Gic {
    fn read(&self, register: &Register, cpu: u64) -> Result<u64, Error> {
        self.get_attribute(register.group as u32, register.attribute | cpu, register.is_wide())
    }

    fn write(&self, register: &Register, cpu: u64, value: u64) -> Result<(), Error> {
        let attribute = register.attribute | cpu;
        self.set_attribute(register.group as u32, attribute, value, register.is_wide())
    }
}
