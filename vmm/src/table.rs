//! The device table: the one place that knows which devices a machine has.
//!
//! A device more is its own directory plus one line in [`Table::build`]. The order is part of
//! what a guest sees (addresses, interrupts, `/dev/vda` before `/dev/vdb`), so new lines go to
//! the end.

mod state;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use rotifer_devices::io::Subscriber;
use rotifer_devices::rtc::Rtc;
use rotifer_devices::serial::Serial;
use rotifer_devices::virtio::block::overlay::{Layer, OverlayError, OverlayFile};
use rotifer_devices::virtio::block::{self, Block, BlockError, Cache};
use rotifer_devices::virtio::net::{LimitSender, Limits, Net, NetError};
use rotifer_devices::virtio::rng::Rng;
use rotifer_devices::virtio::vsock::{Vsock, VsockError};
use rotifer_devices::virtio::{Kind, Transport, TransportError, VirtioDevice};
use rotifer_devices::{GuestMemory, MmioDevice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::aarch64::fdt::{Node, NodeKind};
use crate::arch::aarch64::layout;
use crate::bus::Bus;
use crate::config::{CacheType, Console, Disk, Network, VsockPlan};
use crate::console::{self, ConsoleError};
use crate::machine_state::shape::{DeviceKind, DeviceShape};
use crate::panic_notifier::PanicNotifier;
use crate::slots::{Exhausted, Slots, Spi, Window};

/// What devices are made from.
#[derive(Debug)]
pub struct Wanted {
    /// Where the serial console is connected.
    pub console: Console,
    /// The root disk first.
    pub disks: Vec<Disk>,
    /// What a snapshot has of disks; nothing at a boot.
    pub layers: DiskLayers,
    /// The socket device.
    pub vsock: Option<VsockPlan>,
    /// Whether there is a random number device.
    pub entropy: bool,
    /// The network devices.
    pub networks: Vec<Network>,
}

/// What a snapshot has of disks, by the names of their devices ([`DeviceShape::section_name`]).
pub type DiskLayers = BTreeMap<String, Layer>;

/// The overlay of a disk, for who saves and restores the machine.
#[derive(Debug)]
pub struct DiskOverlay {
    /// What the configuration calls the drive.
    pub drive: String,
    /// What snapshots call it.
    pub device: String,
    /// Its file.
    pub file: OverlayFile,
}

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// There are too many devices.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The console cannot be connected.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// A disk cannot be used.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A snapshot has a disk that the machine has not.
    #[error("the snapshot has content of disk {device}, and the machine has no such disk")]
    LeftOver {
        /// The disk's device.
        device: String,
    },
    /// The socket device cannot listen.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A network device cannot be made.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The host has no descriptor left.
    #[error("make device {name}")]
    Device {
        /// The device's name.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A virtio device cannot be put behind a transport.
    #[error("make device {name}")]
    Transport {
        /// The device's name.
        name: String,
        /// The cause.
        #[source]
        source: TransportError,
    },
}

/// One device in its place.
pub struct Entry {
    /// What messages call it.
    pub name: String,
    /// Where its registers are.
    pub window: Window,
    /// Its interrupt.
    pub spi: Option<Spi>,
    /// The device.
    pub part: Part,
}

/// A device by what it must be connected to.
pub enum Part {
    /// The console.
    Serial(Arc<Serial>),
    /// The clock.
    Rtc(Arc<Rtc>),
    /// Hears of kernel panics.
    PanicNotifier(Arc<PanicNotifier>),
    /// 16 bytes in RAM; the eventfd tells the guest that they have changed.
    VmGenerationId(EventFd),
    /// Everything else.
    Virtio(Arc<Transport>),
}

/// All devices of a machine, and the bus they are on.
pub struct Table {
    /// In the order of their making.
    pub entries: Vec<Entry>,
    /// Flushes console output that had to wait.
    pub console: Arc<console::Output>,
    /// Hears of kernel panics.
    pub panic_notifier: Arc<PanicNotifier>,
    /// Of those disks that have one.
    pub overlays: Vec<DiskOverlay>,
    /// How to change the limits of network devices.
    limits: Vec<NetworkLimits>,
}

/// A network device whose limits can be changed.
struct NetworkLimits {
    id: String,
    sender: LimitSender,
    transport: Arc<Transport>,
}

impl Table {
    /// Makes the devices that are `wanted`, with queues for so many vCPUs. `wake` is written when
    /// the guest panics.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn build(
        wanted: Wanted,
        vcpu_count: u8,
        memory: &Arc<GuestMemory>,
        wake: EventFd,
    ) -> Result<Self, TableError> {
        let (output, input) = console::connect(&wanted.console)?;
        let panic_notifier = Arc::new(PanicNotifier::new(wake));
        let (entries, overlays) = (Vec::new(), Vec::new());
        let mut maker = Maker { slots: Slots::new(), entries, overlays, memory };
        maker.serial(&output, input)?;
        maker.platform("rtc", Part::Rtc(Arc::default()))?;
        maker.platform("panic notifier", Part::PanicNotifier(panic_notifier.clone()))?;
        maker.generation_id()?;
        let mut layers = wanted.layers;
        for disk in wanted.disks {
            maker.disk(disk, vcpu_count, &mut layers)?;
        }
        if let Some((device, _)) = layers.pop_first() {
            return Err(TableError::LeftOver { device });
        }
        if wanted.entropy {
            maker.virtio("rng".into(), Box::new(Rng::new()))?;
        }
        if let Some(VsockPlan { guest_cid, uds_path }) = wanted.vsock {
            maker.virtio("vsock".into(), Box::new(Vsock::new(guest_cid.into(), &uds_path)?))?;
        }
        let mut limits = Vec::with_capacity(wanted.networks.len());
        for Network { id, tap, options } in wanted.networks {
            let (net, sender) = Net::new(tap, &options)?;
            let transport = maker.virtio(id.clone(), Box::new(net))?;
            limits.push(NetworkLimits { id, sender, transport });
        }
        let Maker { entries, overlays, .. } = maker;
        Ok(Self { entries, console: output, panic_notifier, overlays, limits })
    }

    /// Lets the overlays of a restored machine take the place of what is in their files. The last
    /// step: what they replace is lost.
    ///
    /// # Errors
    /// [`OverlayError`] names the file.
    pub fn begin_overlays(&self) -> Result<(), OverlayError> {
        self.overlays.iter().try_for_each(|overlay| overlay.file.begin())
    }

    /// Changes the limits of the network device `id`, if there is one, as soon as the io thread
    /// runs.
    pub fn limit_network(&self, id: &str, limits: Limits) {
        if let Some(network) = self.limits.iter().find(|network| network.id == id) {
            // The device has the other end for as long as the transport has the device.
            let _ = network.sender.send(limits);
            network.transport.kick();
        }
    }

    /// What the device tree tells of them.
    pub fn nodes(&self) -> Vec<Node> {
        let node =
            |entry: &Entry| Node { kind: entry.part.kind(), window: entry.window, spi: entry.spi };
        self.entries.iter().map(node).collect()
    }

    /// A bus with all of them.
    pub fn bus(&self) -> Bus {
        let mut bus = Bus::default();
        for entry in &self.entries {
            if let Some(device) = entry.part.on_bus() {
                bus.attach(entry.window, device);
            }
        }
        bus
    }

    /// What the io thread serves.
    pub fn subscribers(&self) -> Vec<Subscriber> {
        let devices = self.entries.iter().filter_map(|entry| entry.part.subscriber());
        devices.chain([self.console.clone() as Subscriber]).collect()
    }

    /// The virtio devices.
    pub fn transports(&self) -> impl Iterator<Item = &Transport> {
        self.entries.iter().filter_map(|entry| match &entry.part {
            Part::Virtio(transport) => Some(transport.as_ref()),
            _ => None,
        })
    }
}

impl Part {
    /// The eventfd that KVM turns into the interrupt.
    pub fn interrupt_fd(&self) -> Option<&EventFd> {
        match self {
            Self::Serial(serial) => Some(serial.interrupt_fd()),
            Self::VmGenerationId(event) => Some(event),
            Self::Virtio(transport) => Some(transport.interrupt_fd()),
            Self::Rtc(_) | Self::PanicNotifier(_) => None,
        }
    }

    /// The eventfd that KVM writes instead of leaving the guest.
    pub fn kick_fd(&self) -> Option<&EventFd> {
        match self {
            Self::Virtio(transport) => Some(transport.kick_fd()),
            _ => None,
        }
    }

    fn kind(&self) -> NodeKind {
        match self {
            Self::Serial(_) => NodeKind::Serial,
            Self::Rtc(_) => NodeKind::Rtc,
            Self::PanicNotifier(_) => NodeKind::PanicNotifier,
            Self::VmGenerationId(_) => NodeKind::VmGenerationId,
            Self::Virtio(_) => NodeKind::Virtio,
        }
    }

    fn on_bus(&self) -> Option<Arc<dyn MmioDevice>> {
        Some(match self {
            Self::Serial(device) => device.clone(),
            Self::Rtc(device) => device.clone(),
            Self::PanicNotifier(device) => device.clone(),
            Self::Virtio(device) => device.clone(),
            Self::VmGenerationId(_) => return None,
        })
    }

    fn subscriber(&self) -> Option<Subscriber> {
        Some(match self {
            Self::Serial(device) => device.clone(),
            Self::Virtio(device) => device.clone(),
            Self::Rtc(_) | Self::PanicNotifier(_) | Self::VmGenerationId(_) => return None,
        })
    }
}

fn block(disk: Disk, vcpu_count: u8, layer: Option<Layer>) -> Result<Block, BlockError> {
    let cache = match disk.cache {
        CacheType::Unsafe => Cache::Unsafe,
        CacheType::Writeback => Cache::Writeback,
    };
    let Disk { id, path, file, read_only, engine, overlay, .. } = disk;
    let queue_count = vcpu_count.into();
    let options = block::Options { id, path, read_only, cache, engine, queue_count, overlay };
    match layer {
        None => Block::with_file(file, &options),
        Some(layer) => Block::restored(file, &options, layer),
    }
}

/// Gives each device its slot.
struct Maker<'a> {
    slots: Slots,
    entries: Vec<Entry>,
    overlays: Vec<DiskOverlay>,
    memory: &'a Arc<GuestMemory>,
}

impl Maker<'_> {
    fn serial(
        &mut self,
        output: &Arc<console::Output>,
        input: Option<std::fs::File>,
    ) -> Result<(), TableError> {
        let name = "serial";
        let writer = Box::new(console::Writer::from(output.clone()));
        let serial = Serial::new(writer, input)
            .map_err(|source| TableError::Device { name: name.into(), source })?;
        self.platform(name, Part::Serial(Arc::new(serial)))
    }

    fn platform(&mut self, name: &str, part: Part) -> Result<(), TableError> {
        let window = self.slots.platform_window(name)?;
        self.add(name.into(), window, part)
    }

    fn generation_id(&mut self) -> Result<(), TableError> {
        let name = "generation identifier";
        let event = EventFd::new(EFD_NONBLOCK)
            .map_err(|source| TableError::Device { name: name.into(), source })?;
        let window =
            Window { base: layout::VM_GENERATION_ID, bytes: layout::VM_GENERATION_ID_BYTES };
        self.add(name.into(), window, Part::VmGenerationId(event))
    }

    /// Takes what a snapshot has of the disk from `layers`.
    fn disk(
        &mut self,
        disk: Disk,
        vcpu_count: u8,
        layers: &mut DiskLayers,
    ) -> Result<(), TableError> {
        let drive = disk.id.clone();
        let window = self.slots.virtio_window(&drive)?;
        let kind = DeviceKind::Virtio(Kind::Block as u32);
        let device = DeviceShape { kind, address: window.base.0, spi: None }.section_name();
        let block = block(disk, vcpu_count, layers.remove(&device))?;
        if let Some(file) = block.overlay_file().map_err(BlockError::from)? {
            self.overlays.push(DiskOverlay { drive: drive.clone(), device, file });
        }
        self.add_virtio(drive, window, Box::new(block))?;
        Ok(())
    }

    fn virtio(
        &mut self,
        name: String,
        device: Box<dyn VirtioDevice>,
    ) -> Result<Arc<Transport>, TableError> {
        let window = self.slots.virtio_window(&name)?;
        self.add_virtio(name, window, device)
    }

    fn add_virtio(
        &mut self,
        name: String,
        window: Window,
        device: Box<dyn VirtioDevice>,
    ) -> Result<Arc<Transport>, TableError> {
        let transport = Transport::new(device, self.memory.clone())
            .map_err(|source| TableError::Transport { name: name.clone(), source })?;
        let transport = Arc::new(transport);
        self.add(name, window, Part::Virtio(transport.clone()))?;
        Ok(transport)
    }

    fn add(&mut self, name: String, window: Window, part: Part) -> Result<(), TableError> {
        let spi = match part.interrupt_fd() {
            Some(_) => Some(self.slots.interrupt(&name)?),
            None => None,
        };
        self.entries.push(Entry { name, window, spi, part });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
