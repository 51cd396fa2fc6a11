//! What a configuration makes of a machine, as far as a guest can see it.

use rotifer_snapshot::Tag;
use serde::{Deserialize, Serialize};

use super::{SectionState, StateError};
use crate::arch::aarch64::{fdt, layout};
use crate::table::{Entry, Part, Table, Wanted};

/// What the configuration says of the machine itself: what a restore needs of it.
#[derive(Debug)]
#[expect(missing_docs, reason = "as in `Plan`")]
pub struct Hardware {
    pub vcpu_count: u8,
    pub ram_bytes: u64,
    pub devices: Wanted,
}

/// Everything that must be the same when a machine is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// How many vCPUs.
    pub vcpu_count: u8,
    /// How much RAM, the system area included.
    pub ram_bytes: u64,
    /// Architecture version of the interrupt controller.
    pub gic_version: u8,
    /// How many interrupts it has.
    pub interrupt_count: u32,
    /// In the order of the device table.
    pub devices: Vec<DeviceShape>,
}

/// One device: what it is and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceShape {
    /// What it is.
    pub kind: DeviceKind,
    /// Where its registers are.
    pub address: u64,
    /// Its interrupt.
    pub spi: Option<u32>,
}

/// What a device is. Encoded by position: new ones go to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum DeviceKind {
    Serial,
    Rtc,
    PanicNotifier,
    VmGenerationId,
    /// By its number in the specification.
    Virtio(u32),
}

impl SectionState for Shape {
    const TAG: Tag = Tag { kind: *b"SHAP", version: 1 };
}

impl Shape {
    /// Name of the section.
    pub const SECTION: &str = "shape";

    /// That of a machine.
    pub fn of(vcpu_count: usize, ram_bytes: u64, gic: fdt::Gic, table: &Table) -> Self {
        Self {
            // At most 16, and a machine with another number has another shape.
            vcpu_count: u8::try_from(vcpu_count).unwrap_or(u8::MAX),
            ram_bytes,
            gic_version: match gic {
                fdt::Gic::V2 => 2,
                fdt::Gic::V3 => 3,
            },
            interrupt_count: layout::INTERRUPT_COUNT,
            devices: table.entries.iter().map(DeviceShape::of).collect(),
        }
    }

    /// Refuses to take on the state of a machine that was `self` in one that is `here`.
    ///
    /// # Errors
    /// [`StateError::OtherMachine`] names the first difference.
    pub fn check(&self, here: &Self) -> Result<(), StateError> {
        let numbers = [
            ("the number of vCPUs", self.vcpu_count.into(), here.vcpu_count.into()),
            ("the number of bytes of RAM", self.ram_bytes, here.ram_bytes),
            ("the version of the GIC", self.gic_version.into(), here.gic_version.into()),
            ("the number of interrupts", self.interrupt_count.into(), here.interrupt_count.into()),
        ];
        for (what, saved, here) in numbers {
            if saved != here {
                let (saved, here) = (saved.to_string(), here.to_string());
                return Err(StateError::OtherMachine { what: what.into(), saved, here });
            }
        }
        let count = self.devices.len().max(here.devices.len());
        for index in 0..count {
            let (saved, here) = (self.devices.get(index), here.devices.get(index));
            if saved != here {
                let what = format!("device {index}");
                let (saved, here) = (shown(saved), shown(here));
                return Err(StateError::OtherMachine { what, saved, here });
            }
        }
        Ok(())
    }
}

fn shown(device: Option<&DeviceShape>) -> String {
    match device {
        Some(device @ DeviceShape { spi: Some(spi), .. }) => {
            format!("{} with interrupt {spi}", device.section_name())
        }
        Some(device) => device.section_name(),
        None => "missing".into(),
    }
}

impl DeviceShape {
    /// That of a device.
    pub fn of(entry: &Entry) -> Self {
        let kind = match &entry.part {
            Part::Serial(_) => DeviceKind::Serial,
            Part::Rtc(_) => DeviceKind::Rtc,
            Part::PanicNotifier(_) => DeviceKind::PanicNotifier,
            Part::VmGenerationId(_) => DeviceKind::VmGenerationId,
            Part::Virtio(transport) => DeviceKind::Virtio(transport.kind() as u32),
        };
        Self { kind, address: entry.window.base.0, spi: entry.spi.map(|spi| spi.0) }
    }

    /// How its section is called. Names of the configuration are not in it: a clone may call its
    /// disks otherwise.
    pub fn section_name(&self) -> String {
        let kind = match self.kind {
            DeviceKind::Serial => "serial",
            DeviceKind::Rtc => "rtc",
            DeviceKind::PanicNotifier => "panic-notifier",
            DeviceKind::VmGenerationId => "vm-generation-id",
            DeviceKind::Virtio(1) => "net",
            DeviceKind::Virtio(2) => "block",
            DeviceKind::Virtio(4) => "rng",
            DeviceKind::Virtio(19) => "vsock",
            DeviceKind::Virtio(_) => "virtio",
        };
        format!("{kind}-{:x}", self.address)
    }
}
