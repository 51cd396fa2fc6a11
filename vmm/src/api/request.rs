//! Everything that can be asked of the VMM.

use std::path::PathBuf;

use serde::Deserialize;

use crate::config::{
    BootSource, Drive, DrivePatch, Entropy, Logger, MachineConfig, MachineConfigPatch,
    NetworkInterface, NetworkInterfacePatch, Serial, Vsock,
};

/// A request, its body read but not yet checked against the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `GET /`
    InstanceInfo,
    /// `GET /version`
    Version,
    /// `GET /vm/config`
    VmConfig,
    /// `GET /machine-config`
    MachineConfig,
    /// `PUT /machine-config`
    SetMachineConfig(MachineConfig),
    /// `PATCH /machine-config`
    PatchMachineConfig(MachineConfigPatch),
    /// `PUT /boot-source`
    SetBootSource(BootSource),
    /// `PUT /drives/{id}`
    SetDrive(Drive),
    /// `PATCH /drives/{id}`
    PatchDrive(DrivePatch),
    /// `PUT /network-interfaces/{id}`
    SetNetworkInterface(NetworkInterface),
    /// `PATCH /network-interfaces/{id}`
    PatchNetworkInterface(NetworkInterfacePatch),
    /// `PUT /vsock`
    SetVsock(Vsock),
    /// `PUT /entropy`
    SetEntropy(Entropy),
    /// `PUT /serial`
    SetSerial(Serial),
    /// `PUT /logger`
    SetLogger(Logger),
    /// `PUT /actions`, `InstanceStart`
    Start,
    /// `PUT /actions`, `FlushMetrics`
    FlushMetrics,
    /// `PUT /actions`, `SendCtrlAltDel`
    SendCtrlAltDel,
    /// `PATCH /vm`, `Paused`
    Pause,
    /// `PATCH /vm`, `Resumed`
    Resume,
    /// `PUT /snapshot/create`
    CreateSnapshot(SnapshotCreate),
    /// `PUT /snapshot/load`
    LoadSnapshot(SnapshotLoad),
    /// Write the snapshot that the machine comes from with what was touched since.
    RecordWorkingSet(WorkingSet),
    /// Hold a snapshot of the machine in memory.
    Fork,
    /// Tell which forks are held.
    Forks,
    /// Hold this fork no longer.
    EndFork(String),
    /// A route of Firecracker's that this VMM has nothing behind; the section it belongs to.
    Unsupported(&'static str),
}

impl Request {
    /// What it is called in logs and refusals.
    pub fn name(&self) -> &'static str {
        match self {
            Request::InstanceInfo => "GET /",
            Request::Version => "GET /version",
            Request::VmConfig => "GET /vm/config",
            Request::MachineConfig => "GET /machine-config",
            Request::SetMachineConfig(_) => "PUT /machine-config",
            Request::PatchMachineConfig(_) => "PATCH /machine-config",
            Request::SetBootSource(_) => "PUT /boot-source",
            Request::SetDrive(_) => "PUT /drives",
            Request::PatchDrive(_) => "PATCH /drives",
            Request::SetNetworkInterface(_) => "PUT /network-interfaces",
            Request::PatchNetworkInterface(_) => "PATCH /network-interfaces",
            Request::SetVsock(_) => "PUT /vsock",
            Request::SetEntropy(_) => "PUT /entropy",
            Request::SetSerial(_) => "PUT /serial",
            Request::SetLogger(_) => "PUT /logger",
            Request::Start => "InstanceStart",
            Request::FlushMetrics => "FlushMetrics",
            Request::SendCtrlAltDel => "SendCtrlAltDel",
            Request::Pause => "PATCH /vm (Paused)",
            Request::Resume => "PATCH /vm (Resumed)",
            Request::CreateSnapshot(SnapshotCreate { live: true, .. }) => {
                "PUT /snapshot/create with \"live\""
            }
            Request::CreateSnapshot(_) => "PUT /snapshot/create without \"live\"",
            Request::LoadSnapshot(_) => "PUT /snapshot/load",
            Request::RecordWorkingSet(_) => "PUT /snapshot/working-set",
            Request::Fork => "PUT /fork",
            Request::Forks => "GET /forks",
            Request::EndFork(_) => "DELETE /fork",
            Request::Unsupported(section) => section,
        }
    }
}

/// The body of `PUT /snapshot/create`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// Where guest memory goes.
    pub mem_file_path: PathBuf,
    /// Where the machine's state goes.
    pub snapshot_path: PathBuf,
    /// Whether all memory is written.
    #[serde(default)]
    pub snapshot_type: SnapshotKind,
    /// Ours: the machine runs, and stands still only while its own pages are copied.
    #[serde(default)]
    pub live: bool,
}

/// How much memory a snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum SnapshotKind {
    /// All of it.
    #[default]
    Full,
    /// What was written since the last one.
    Diff,
}

/// The body of `PUT /snapshot/working-set`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkingSet {
    /// Where the snapshot goes that has it; its packs stay where they are.
    pub snapshot_path: PathBuf,
}

/// The body of `PUT /snapshot/load`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotLoad {
    /// The machine's state.
    pub snapshot_path: PathBuf,
    /// Guest memory; deprecated in favour of `mem_backend`.
    pub mem_file_path: Option<PathBuf>,
    /// Guest memory.
    pub mem_backend: Option<MemoryBackend>,
    /// Deprecated name of `track_dirty_pages`.
    #[serde(default)]
    pub enable_diff_snapshots: bool,
    /// Whether later snapshots may be `Diff`.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Whether the machine runs at once.
    #[serde(default)]
    pub resume_vm: bool,
    /// Other tap devices than those of the snapshot.
    #[serde(default)]
    pub network_overrides: Vec<NetworkOverride>,
    /// Another Unix socket than that of the snapshot.
    pub vsock_override: Option<VsockOverride>,
    /// x86 only.
    #[serde(default)]
    pub clock_realtime: bool,
    /// Ours: remember what memory is touched, for `PUT /snapshot/working-set`.
    #[serde(default)]
    pub record_working_set: bool,
    /// Ours: load all memory before the machine runs.
    #[serde(default)]
    pub load_eagerly: bool,
    /// Ours: with `Uffd`, a snapshot that this one is based on, and whose memory the pager keeps.
    pub base_snapshot_path: Option<PathBuf>,
    /// Ours: the host file, if it is not the one beside the manifest.
    pub host_file_path: Option<PathBuf>,
}

impl SnapshotLoad {
    /// Loads this snapshot as it was saved, and lets the machine run; its memory comes through this
    /// pager, if there is one.
    pub fn and_run(snapshot_path: PathBuf, pager_socket: Option<PathBuf>) -> Self {
        let backend = |backend_path| MemoryBackend { backend_type: "Uffd".into(), backend_path };
        Self {
            snapshot_path,
            mem_file_path: None,
            mem_backend: pager_socket.map(backend),
            enable_diff_snapshots: false,
            track_dirty_pages: false,
            resume_vm: true,
            network_overrides: Vec::new(),
            vsock_override: None,
            clock_realtime: false,
            record_working_set: false,
            load_eagerly: false,
            base_snapshot_path: None,
            host_file_path: None,
        }
    }
}

/// Where the memory of a loaded snapshot comes from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are Firecracker's and say it")]
pub struct MemoryBackend {
    pub backend_type: String,
    pub backend_path: PathBuf,
}

/// Another tap device for one interface.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are Firecracker's and say it")]
pub struct NetworkOverride {
    pub iface_id: String,
    pub host_dev_name: String,
}

/// Another Unix socket for the vsock device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are Firecracker's and say it")]
pub struct VsockOverride {
    pub uds_path: PathBuf,
}
