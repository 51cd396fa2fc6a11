//! The state of the machine, between [`MachineState`] and KVM.
//!
//! ```text
//!  save   vCPUs ─▶ GIC (flushes what it keeps in RAM) ─▶ clock ─▶ devices ... then RAM is dumped
//!  load   shape ─▶ vCPUs ─▶ GIC ─▶ devices ─▶ clock ─▶ generation identifier ─▶ doorbells
//! ```
//! Loading changes a fresh machine, which has run nothing; one whose state was refused half-way is
//! dropped.

mod clock;
mod gic;
mod vcpu;

use std::io;

use rotifer_devices::virtio::block::overlay::OverlayError;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::{Assembled, Machine, load};
use crate::arch::aarch64::layout;
use crate::machine_state::maker::Maker;
use crate::machine_state::shape::DeviceShape;
use crate::machine_state::vcpu::section_name;
use crate::machine_state::{MachineState, Remaining, Shape, StateError};
use crate::table::{Part, Table};

/// Why a machine cannot be saved. It goes on unharmed.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// There is nothing that could go on.
    #[error("save a machine whose guest has ended")]
    Ended,
    /// KVM refuses.
    #[error("read {what}")]
    Read {
        /// Which register or other part.
        what: String,
        /// The cause.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM says something that no machine of ours has.
    #[error("read {what}: {value:#x} is not known")]
    Unknown {
        /// Which part.
        what: String,
        /// Its value.
        value: u64,
    },
}

/// Why a machine cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state is refused.
    #[error(transparent)]
    State(#[from] StateError),
    /// KVM refuses a question.
    #[error("read {what}")]
    Read {
        /// Which register or other part.
        what: String,
        /// The cause.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM refuses a value.
    #[error("restore {what}")]
    Write {
        /// Which register or other part.
        what: String,
        /// The cause.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The file of an overlay cannot be made anew.
    #[error("make the overlay of a restored disk")]
    Overlay(#[source] OverlayError),
    /// RAM cannot be filled.
    #[error("fill the RAM of the machine")]
    Fill(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The host gives no random numbers.
    #[error("draw a new generation identifier")]
    Random(#[source] io::Error),
    /// RAM has no place for it.
    #[error("write the new generation identifier into RAM")]
    GenerationId(#[source] GuestMemoryError),
}

/// The state of a paused machine.
///
/// The GIC's part comes with a flush into RAM, so RAM must be dumped *after* this, and its pages
/// count as dirty.
pub(super) fn save(machine: &Machine) -> Result<MachineState, SaveError> {
    if machine.has_ended() {
        return Err(SaveError::Ended);
    }
    let vcpus: Vec<_> = machine.vcpus.stopped().collect();
    let Some(first) = vcpus.first() else { return Err(SaveError::Ended) };
    let list = first
        .register_list()
        .map_err(|source| SaveError::Read { what: "the list of registers".into(), source })?;
    let (table, gic) = (&machine.table, &machine.gic);
    let ram_bytes = machine.memory.iter().map(GuestMemoryRegion::len).sum();
    let mut state = MachineState::default();
    state.put(Shape::SECTION, &Shape::of(vcpus.len(), ram_bytes, gic.version(), table));
    state.put(Maker::SECTION, &vcpu::maker(first));
    for (index, vcpu) in vcpus.iter().enumerate() {
        state.put(&section_name(index), &vcpu.save(&list)?);
    }
    gic::save(gic, &vcpus, &mut state)?;
    clock::save(first, &list, &mut state)?;
    for entry in &table.entries {
        let name = DeviceShape::of(entry).section_name();
        entry.part.with_section(|device| state.put_device(&name, device));
    }
    Ok(state)
}

/// Has a machine that is like the saved one take on `state`. Its RAM is that of the saved one.
pub(super) fn load(machine: &Assembled, state: MachineState) -> Result<(), RestoreError> {
    let Assembled { gic, vcpus, memory, table, .. } = machine;
    let mut sections = Remaining::new(state)?;
    let ram_bytes = memory.iter().map(GuestMemoryRegion::len).sum();
    let here = Shape::of(vcpus.len(), ram_bytes, gic.version(), table);
    sections.take::<Shape>(Shape::SECTION)?.check(&here)?;
    vcpu::load(vcpus, &mut sections)?;
    tracing::debug!("timeline: vCPUs have their state");
    gic::load(gic, vcpus, &mut sections)?;
    tracing::debug!("timeline: the GIC has its state");
    load_devices(table, &mut sections)?;
    // Last of what takes long: the guest's clock runs from here.
    clock::load(vcpus, &mut sections)?;
    sections.finish()?;
    renew_generation_id(machine)?;
    for entry in &table.entries {
        match &entry.part {
            // What the driver made available while nobody was looking.
            Part::Virtio(transport) => transport.kick(),
            // A full counter interrupts as well.
            Part::VmGenerationId(event) => drop(event.write(1)),
            Part::Serial(_) | Part::Rtc(_) | Part::PanicNotifier(_) => {}
        }
    }
    Ok(())
}

fn load_devices(table: &Table, sections: &mut Remaining) -> Result<(), StateError> {
    for entry in &table.entries {
        let name = DeviceShape::of(entry).section_name();
        entry.part.with_section(|device| sections.load_device(&name, device)).transpose()?;
    }
    Ok(())
}

/// The guest must know that it is not the only one with this memory: its kernel then renews its
/// random numbers.
fn renew_generation_id(machine: &Assembled) -> Result<(), RestoreError> {
    let id: [u8; layout::VM_GENERATION_ID_BYTES as usize] =
        load::random().map_err(RestoreError::Random)?;
    let written = machine.memory.write_slice(&id, layout::VM_GENERATION_ID);
    written.map_err(RestoreError::GenerationId)
}
