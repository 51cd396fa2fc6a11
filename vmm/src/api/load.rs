//! `PUT /snapshot/load`: what it means, before anything is opened.

use std::path::PathBuf;

use super::request::{MemoryBackend, NetworkOverride, SnapshotLoad};
use crate::config::Config;
use crate::snapshots::{HostFile, HostFileError};

/// A snapshot to load: where it and its packs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// The manifest.
    pub snapshot_path: PathBuf,
    /// A pack, or a directory of packs; absent if the host file or the manifest's directory says
    /// where they are.
    pub memory_path: Option<PathBuf>,
    /// The socket of the pager through which memory is shared; absent if the machine has its own.
    pub pager_socket: Option<PathBuf>,
    /// The snapshot whose memory the pager shares with this machine, if it is not the machine's own: what is
    /// the same in both comes from there, and the rest is the machine's.
    pub base: Option<PathBuf>,
    /// Whether it is remembered what memory is touched.
    pub record_working_set: bool,
    /// Whether all memory is loaded before the machine runs.
    pub load_eagerly: bool,
    /// What is beside the manifest, or nothing.
    pub host: HostFile,
}

/// Why a snapshot cannot be loaded as the request says.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum LoadError {
    #[error("mem_file_path and mem_backend contradict each other: give mem_backend only")]
    TwoMemories,
    #[error("mem_backend.backend_type is {given:?}; there are \"File\" and \"Uffd\"")]
    Backend { given: String },
    #[error(
        "record_working_set and mem_backend \"Uffd\" contradict each other: what is shared is not \
         touched page by page"
    )]
    SharedRecording,
    #[error(
        "load_eagerly and mem_backend \"Uffd\" contradict each other: what is shared is loaded when it is \
         touched"
    )]
    SharedEagerly,
    #[error(
        "base_snapshot_path needs mem_backend \"Uffd\", with the socket of the pager that keeps that \
         snapshot's memory"
    )]
    BaseWithoutPager,
    #[error(
        "load_eagerly and record_working_set contradict each other: what is loaded before it is touched \
         is not seen to be touched"
    )]
    EagerRecording,
    #[error(
        "network_overrides names the interface {given:?}, which the machine does not have; it has \
         {here:?}"
    )]
    NoInterface { given: String, here: Vec<String> },
    #[error(
        "clock_realtime is not supported: the guest's counter goes on from where it was, and its \
         agent sets the wall clock after every restore; leave the key out"
    )]
    Clock,
    #[error("vsock_override is given, but the machine has no vsock device")]
    NoVsock,
    #[error(
        "nothing says what the host provides to the machine: there is no host file beside {}; \
         configure the machine first, or give --config-file", path.display()
    )]
    NoConfig { path: PathBuf },
    #[error(transparent)]
    HostFile(#[from] HostFileError),
}

impl Load {
    /// What the request asks for, and what the host provides to the machine: `config`, if anything
    /// was configured, and otherwise what it provided when the machine was saved.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn of(request: SnapshotLoad, config: &Config) -> Result<(Self, Config), LoadError> {
        if request.clock_realtime {
            return Err(LoadError::Clock);
        }
        let (memory_path, pager_socket) = match (request.mem_file_path, request.mem_backend) {
            (Some(_), Some(_)) => return Err(LoadError::TwoMemories),
            (path, None) => (path, None),
            (None, Some(MemoryBackend { backend_type, backend_path })) => {
                match backend_type.as_str() {
                    "File" => (Some(backend_path), None),
                    "Uffd" => (None, Some(backend_path)),
                    _ => return Err(LoadError::Backend { given: backend_type }),
                }
            }
        };
        let record_working_set = request.record_working_set;
        if record_working_set && pager_socket.is_some() {
            return Err(LoadError::SharedRecording);
        }
        let load_eagerly = request.load_eagerly;
        if load_eagerly && pager_socket.is_some() {
            return Err(LoadError::SharedEagerly);
        }
        let base = request.base_snapshot_path;
        if base.is_some() && pager_socket.is_none() {
            return Err(LoadError::BaseWithoutPager);
        }
        if load_eagerly && record_working_set {
            return Err(LoadError::EagerRecording);
        }
        let host = match request.host_file_path {
            Some(path) => Some(HostFile::read(path)?),
            None => HostFile::beside(&request.snapshot_path)?,
        };
        let is_configured = *config != Config::default();
        let mut config = match (is_configured, &host) {
            (true, _) => config.clone(),
            (false, Some(host)) => host.config.clone(),
            (false, None) => return Err(LoadError::NoConfig { path: request.snapshot_path }),
        };
        if let Some(new) = request.vsock_override {
            config.vsock.as_mut().ok_or(LoadError::NoVsock)?.uds_path = new.uds_path;
        }
        for NetworkOverride { iface_id, host_dev_name } in request.network_overrides {
            override_tap(&mut config, iface_id, host_dev_name)?;
        }
        let host = host.unwrap_or_default();
        let snapshot_path = request.snapshot_path;
        let load = Self {
            snapshot_path,
            memory_path,
            pager_socket,
            base,
            record_working_set,
            load_eagerly,
            host,
        };
        Ok((load, config))
    }
}

fn override_tap(config: &mut Config, given: String, tap: String) -> Result<(), LoadError> {
    let interfaces = &mut config.network_interfaces;
    match interfaces.iter_mut().find(|interface| interface.iface_id == given) {
        Some(interface) => {
            interface.host_dev_name = tap;
            Ok(())
        }
        None => {
            let here = interfaces.iter().map(|interface| interface.iface_id.clone()).collect();
            Err(LoadError::NoInterface { given, here })
        }
    }
}
