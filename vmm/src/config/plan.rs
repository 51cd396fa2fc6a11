//! The plan: a configuration after every check, which a machine is assembled from.

use std::path::PathBuf;

pub use super::boot::Boot;
pub use super::drive::Disk;
use super::drive::check_together;
use super::network::{self, Network};
use super::{Config, Error, Unsupported, Vsock};
use crate::machine_state::Hardware;
use crate::table::{DiskLayers, Wanted};

/// Everything a machine is assembled from. Numbers are in range and files are open: what can
/// still fail is the host.
#[derive(Debug)]
pub struct Plan {
    /// 1 to 16.
    pub vcpu_count: u8,
    /// 1 MiB to 32 GiB, a multiple of 1 MiB.
    pub ram_bytes: u64,
    /// What is booted.
    pub boot: Boot,
    /// The root disk first, if there is one; the others in the order of the configuration.
    pub disks: Vec<Disk>,
    /// The socket device, if wanted.
    pub vsock: Option<VsockPlan>,
    /// Whether there is a random number device.
    pub entropy: bool,
    /// The network devices.
    pub networks: Vec<Network>,
    /// Where the serial console is connected.
    pub console: Console,
}

/// The socket device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockPlan {
    /// 3 to `u32::MAX - 1`.
    pub guest_cid: u32,
    /// Short enough for `_` and any port number to be appended.
    pub uds_path: PathBuf,
}

/// Where the serial console is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// Input from standard input, output to standard output.
    Stdio,
    /// No input; output to this file or FIFO, which is created when missing.
    File(PathBuf),
}

impl Config {
    /// Checks everything and opens the files, which makes a plan of a configuration.
    pub fn plan(&self) -> Result<Plan, Error> {
        self.check()?;
        let root = self.drives.iter().find(|drive| drive.is_root_device);
        let boot_source =
            self.boot_source.as_ref().ok_or(Error::Missing { path: "boot-source".into() })?;
        let boot = boot_source.open(root)?;
        let Hardware { vcpu_count, ram_bytes, devices } = self.hardware()?;
        let Wanted { console, disks, vsock, entropy, networks, layers: _ } = devices;
        Ok(Plan { vcpu_count, ram_bytes, boot, disks, vsock, entropy, networks, console })
    }

    /// As [`Self::plan`], without what is booted: what a machine is restored in.
    pub fn hardware(&self) -> Result<Hardware, Error> {
        self.check()?;
        let mut disks = Vec::with_capacity(self.drives.len());
        for (index, drive) in self.drives.iter().enumerate() {
            disks.push(drive.open(index)?);
        }
        // Stable: the others keep their order. The guest must see the root disk as /dev/vda.
        disks.sort_by_key(|disk| !disk.root);
        if let Some(entropy) = &self.entropy {
            entropy.check()?;
        }
        let interfaces = self.network_interfaces.iter().enumerate();
        let networks = interfaces.map(|(index, interface)| interface.open(index));
        let devices = Wanted {
            disks,
            layers: DiskLayers::new(),
            vsock: self.vsock.as_ref().map(Vsock::plan).transpose()?,
            entropy: self.entropy.is_some(),
            networks: networks.collect::<Result<_, _>>()?,
            console: self.serial.as_ref().map_or(Ok(Console::Stdio), |serial| serial.check())?,
        };
        Ok(Hardware {
            vcpu_count: u8::try_from(self.machine_config.vcpu_count).expect("checked above"),
            ram_bytes: self.machine_config.mem_size_mib << 20,
            devices,
        })
    }

    fn check(&self) -> Result<(), Error> {
        self.refuse_unsupported()?;
        self.machine_config.check()?;
        check_together(&self.drives)?;
        network::check_together(&self.network_interfaces)
    }

    /// Refuses the sections that are known by name only.
    fn refuse_unsupported(&self) -> Result<(), Error> {
        let present = |section: &Option<Unsupported>| section.is_some();
        let sections = [
            ("balloon", present(&self.balloon)),
            ("cpu-config", present(&self.cpu_config)),
            ("metrics", present(&self.metrics)),
            ("mmds-config", present(&self.mmds_config)),
            ("memory-hotplug", present(&self.memory_hotplug)),
            ("pmem", !self.pmem.is_empty()),
        ];
        match sections.iter().find(|(_, present)| *present) {
            None => Ok(()),
            Some((name, _)) => Err(Error::Unsupported {
                path: (*name).into(),
                reason: why_unsupported(name),
                remedy: "remove the key",
            }),
        }
    }
}

/// Why a section of Firecracker's configuration is refused.
pub(crate) fn why_unsupported(section: &str) -> &'static str {
    match section {
        "balloon" => "there is no balloon device yet",
        "cpu-config" => "there are no CPU templates; guests see the host's CPU",
        "metrics" => "metrics are not collected yet",
        "mmds-config" => "there is no metadata service yet",
        "memory-hotplug" => "there is no virtio-mem device",
        "pmem" => "there is no virtio-pmem device",
        _ => "this VMM does not have it",
    }
}
