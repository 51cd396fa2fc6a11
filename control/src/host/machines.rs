//! The life of a microVM's process: launched, suspended, resumed, ended, and found again.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use super::follow::{self, TAKEN};
use super::hooks::{Hook, HookError, Name};
use super::laps::Laps;
use super::networks::{Network, NetworkError};
use super::process::{self, Process};
use super::vmm::{Vmm, VmmError, vsock};
use super::{Inner, files};
use crate::fleet::microvm::{Event, Phase};
use crate::fleet::records::{Hooks, Microvm, Version};
use crate::fleet::{Change, Measured, Report};
use crate::lambda::records;
use crate::store::StoreError;

/// A snapshot's manifest, in a version's directory and in that of a suspended microVM.
pub const SNAPSHOT: &str = "snapshot";
/// What is beside it: what this host provided to the machine.
pub const SNAPSHOT_HOST: &str = "snapshot.host.json";
/// A version's root disk.
pub const ROOT: &str = "root.ext4";
/// What a machine has written to it.
pub const OVERLAY: &str = "root.overlay";
/// What this host provides to a machine that is launched.
const HOST: &str = "host.json";

/// Why something does not succeed with a microVM. Users see it in `stateReason`.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Vmm(#[from] VmmError),
    #[error("cannot {attempt} {path:?}")]
    File { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("the pager of this host does not run")]
    Pager { source: io::Error },
    #[error("the MicroVM was terminated")]
    Ended,
    #[error("the MicroVM's process has ended")]
    Gone,
    #[error("cannot look for processes")]
    Processes { source: io::Error },
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where one microVM's process is, and whose turn it is to do something with it.
#[derive(Debug)]
pub struct Slot {
    machine: Mutex<Option<Machine>>,
    is_ending: watch::Sender<bool>,
}

impl Default for Slot {
    fn default() -> Self {
        Self { machine: Mutex::default(), is_ending: watch::Sender::new(false) }
    }
}

impl Slot {
    /// Whatever is being done with the microVM is given up.
    pub fn end(&self) {
        self.is_ending.send_replace(true);
    }

    /// Does something unless the microVM is to end, or until it is.
    async fn unless_ending<T>(
        &self,
        work: impl Future<Output = Result<T, MachineError>>,
    ) -> Result<T, MachineError> {
        let mut ending = self.is_ending.subscribe();
        tokio::select! {
            biased;
            // The sender is ours, so the wait ends only with the value.
            _ = ending.wait_for(|is_ending| *is_ending) => Err(MachineError::Ended),
            result = work => result,
        }
    }
}

/// A VMM that runs, and who waits for its end.
#[derive(Debug)]
struct Machine {
    vmm: Arc<Vmm>,
    watcher: JoinHandle<()>,
    follower: JoinHandle<()>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.watcher.abort();
        self.follower.abort();
    }
}

impl Machine {
    /// Reports the process's end, if it comes by itself, and follows what the app says.
    fn watched(
        inner: &Arc<Inner>,
        vmm: Vmm,
        (microvm, version): (&Microvm, &Version),
        reports: &Sender<Report>,
    ) -> Self {
        let (vmm, id) = (Arc::new(vmm), microvm.id.as_str());
        let (socket, directory) = (vmm.vsock(), inner.directory_of(id));
        let _runtime = inner.runtime.enter();
        let lines = inner.parts.logs.of_microvm(microvm, version);
        let follower =
            inner.runtime.spawn(async move { follow::follow(&socket, &directory, &lines).await });
        let (watched, id, reports) = (Arc::clone(&vmm), id.to_owned(), reports.clone());
        let watcher = inner.runtime.spawn(async move {
            watched.process().ended().await;
            let _nobody_listens = reports.send(gone(&id));
        });
        Self { vmm, watcher, follower }
    }

    async fn end(self) {
        self.watcher.abort();
        self.vmm.end().await;
    }

    /// What it has used until now, and how it came to run.
    fn measured(&self, laps: Laps) -> Measured {
        let processor_time = self.vmm.process().guest_time().ok();
        Measured { steps: laps.steps(), processor_time, stored_bytes: None }
    }
}

impl Inner {
    /// Restores a version's snapshot into a process of its own, and tells the app.
    pub(super) async fn launch(
        self: &Arc<Self>,
        id: &str,
        reports: &Sender<Report>,
    ) -> Result<Measured, MachineError> {
        let slot = self.slot(id);
        let mut machine = slot.machine.lock().await;
        let launch = async {
            let mut laps = Laps::begin();
            if let Some(of_an_earlier_try) = machine.take() {
                of_an_earlier_try.end().await;
            }
            let record = self.microvm(id)?;
            let version = self.version(&record.version)?;
            let (origin, directory) =
                (self.version_directory(&record.version), self.directory_of(id));
            files::empty(&directory).await?;
            let host = directory.join(HOST);
            let content =
                clone_of(files::read_json(&origin.join(SNAPSHOT_HOST))?, &origin, &directory);
            files::write(&host, &content.to_string())?;
            files::copy(&origin.join(TAKEN), &directory.join(TAKEN))?;
            laps.end_of("files");
            let pager = self.pager.socket().await?;
            laps.end_of("pager");
            let network = self.network_of(&record)?;
            laps.end_of("network");
            let mut vmm = Vmm::start(self.vmm_program(), &directory, network)?;
            laps.end_of("process");
            let backend = json!({ "backend_type": "Uffd", "backend_path": pager });
            let more = json!({ "host_file_path": host, "mem_backend": backend });
            vmm.load(&origin.join(SNAPSHOT), more).await?;
            laps.end_of("snapshot");
            if let Some(hook) = Hook::of(version.spec.hooks.as_ref(), Name::Run) {
                let payload = record.run_hook_payload.as_deref().unwrap_or_default();
                let body = json!({ "microvmId": id, "runHookPayload": payload });
                hook.call(&vmm.vsock(), Some(&body)).await?;
                laps.end_of("hook");
            }
            vmm.keep();
            tracing::info!(microvm = id, "launched in {laps}");
            Ok((vmm, record, version, laps))
        };
        let (vmm, record, version, laps) = slot.unless_ending(launch).await?;
        let launched = machine.insert(Machine::watched(self, vmm, (&record, &version), reports));
        Ok(launched.measured(laps))
    }

    /// Writes what a microVM is to the disk, and ends its process.
    pub(super) async fn suspend(
        self: &Arc<Self>,
        id: &str,
        reports: &Sender<Report>,
    ) -> Result<Measured, MachineError> {
        let slot = self.slot(id);
        let mut machine = slot.machine.lock().await;
        let directory = self.directory_of(id);
        let snapshot = directory.join(SNAPSHOT);
        let Some(running) = machine.as_ref() else {
            // An earlier daemon had come to this.
            if snapshot.exists() {
                let stored_bytes = files::stored_bytes(&directory);
                return Ok(Measured { stored_bytes, ..Measured::default() });
            }
            let _nobody_listens = reports.send(gone(id));
            return Err(MachineError::Gone);
        };
        let vmm = Arc::clone(&running.vmm);
        let hooks = self.hooks_of(id)?;
        let suspend = async {
            // An earlier daemon may have come as far as to pause it.
            vmm.resume().await?;
            if let Some(hook) = Hook::of(hooks.as_ref(), Name::Suspend) {
                hook.call(&vmm.vsock(), None).await?;
            }
            vmm.pause().await?;
            let create = json!({
                "snapshot_path": snapshot, "mem_file_path": directory, "snapshot_type": "Diff",
            });
            if let Err(error) = vmm.put("/snapshot/create", &create).await {
                vmm.resume().await?;
                return Err(error.into());
            }
            Ok(())
        };
        slot.unless_ending(suspend).await?;
        // All that its guest has had: it is paused.
        let processor_time = vmm.process().guest_time().ok();
        if let Some(machine) = machine.take() {
            machine.end().await;
        }
        self.prune(&directory).await;
        let stored_bytes = files::stored_bytes(&directory);
        Ok(Measured { processor_time, stored_bytes, ..Measured::default() })
    }

    /// Has a new process take up what was suspended.
    pub(super) async fn resume(
        self: &Arc<Self>,
        id: &str,
        reports: &Sender<Report>,
    ) -> Result<Measured, MachineError> {
        let slot = self.slot(id);
        let mut machine = slot.machine.lock().await;
        let directory = self.directory_of(id);
        let snapshot = directory.join(SNAPSHOT);
        if let Some(resumed) = machine.as_ref().filter(|_| !snapshot.exists()) {
            // An earlier daemon had come to this.
            return Ok(resumed.measured(Laps::begin()));
        }
        let resume = async {
            let mut laps = Laps::begin();
            if let Some(of_an_earlier_try) = machine.take() {
                of_an_earlier_try.end().await;
            }
            let record = self.microvm(id)?;
            let version = self.version(&record.version)?;
            let pager = self.pager.socket().await?;
            laps.end_of("pager");
            let network = self.network_of(&record)?;
            laps.end_of("network");
            let vmm = Vmm::start(self.vmm_program(), &directory, network)?;
            laps.end_of("process");
            // Most of its memory is still what it was launched with, and is there.
            let launched_from = self.version_directory(&record.version).join(SNAPSHOT);
            let backend = json!({ "backend_type": "Uffd", "backend_path": pager });
            let more = json!({ "mem_backend": backend, "base_snapshot_path": launched_from });
            vmm.load(&snapshot, more).await?;
            laps.end_of("snapshot");
            if let Some(hook) = Hook::of(version.spec.hooks.as_ref(), Name::Resume) {
                hook.call(&vmm.vsock(), None).await?;
                laps.end_of("hook");
            }
            tracing::info!(microvm = id, "resumed in {laps}");
            Ok((vmm, record, version, laps))
        };
        let (mut vmm, record, version, laps) = slot.unless_ending(resume).await?;
        // From here on the process is what the microVM is; going back would undo what it has done since. Its
        // packs stay: the next snapshot is written on top of them.
        files::remove_file(&snapshot)?;
        vmm.keep();
        let resumed = machine.insert(Machine::watched(self, vmm, (&record, &version), reports));
        Ok(resumed.measured(laps))
    }

    /// Ends a microVM, whatever it is doing, and removes what it has.
    pub(super) async fn terminate(self: &Arc<Self>, id: &str) -> Result<Measured, MachineError> {
        let mut measured = Measured::default();
        let slot = self.slot(id);
        slot.end();
        let mut machine = slot.machine.lock().await;
        if let Some(machine) = machine.take() {
            // It is told, and has no say. One that is paused, or never ran, has a time-out.
            if let Some(hook) = Hook::of(self.hooks_of(id)?.as_ref(), Name::Terminate)
                && let Err(error) = hook.call(&machine.vmm.vsock(), None).await
            {
                tracing::debug!(microvm = id, "{}", crate::report(&error));
            }
            measured.processor_time = machine.vmm.process().guest_time().ok();
            machine.end().await;
        }
        files::remove(&self.directory_of(id)).await?;
        self.forget(id);
        Ok(measured)
    }

    /// Takes up what an earlier daemon left: what runs goes on, and what belongs to nobody is removed.
    pub(super) fn adopt(self: &Arc<Self>, reports: &Sender<Report>) -> Result<(), MachineError> {
        let (mut microvms, mut versions) = (Vec::new(), BTreeSet::new());
        let mut ended = BTreeSet::new();
        for change in records::all(&self.parts.store)? {
            match change {
                Change::PutMicrovm(microvm) => {
                    ended.insert(microvm.id.clone());
                    if microvm.phase != Phase::Terminated {
                        microvms.push(*microvm);
                    }
                }
                Change::PutVersion(version) => {
                    versions.insert(self.version_directory(&version.id));
                }
                _ => {}
            }
        }
        let found = process::find(&self.parts.directory);
        let mut found = found.map_err(|source| MachineError::Processes { source })?;
        for microvm in &microvms {
            let directory = self.directory_of(&microvm.id);
            let place = found.iter().position(|(home, _)| *home == directory);
            let process = place.map(|place| found.swap_remove(place).1);
            if process.is_some() && microvm.phase != Phase::Suspended {
                ended.remove(&microvm.id);
            }
            self.take_up(microvm, process, reports)?;
        }
        for (home, process) in found {
            tracing::info!("the VMM of {home:?} belongs to nobody, and is ended");
            process.kill();
        }
        if let Some(networks) = &self.networks {
            networks.clean(&ended)?;
        }
        let known = microvms.iter().map(|it| self.directory_of(&it.id)).collect();
        remove_others(&self.parts.directory.join("microvms"), &known)?;
        for image in files::list(&self.parts.directory.join("versions"))? {
            remove_others(&image, &versions)?;
            // One without versions is nobody's.
            let _it_has_versions = std::fs::remove_dir(&image);
        }
        Ok(())
    }

    fn take_up(
        self: &Arc<Self>,
        microvm: &Microvm,
        found: Option<Process>,
        reports: &Sender<Report>,
    ) -> Result<(), MachineError> {
        let id = &microvm.id;
        match (microvm.phase, found) {
            (Phase::Running, None) => {
                let _nobody_listens = reports.send(gone(id));
            }
            // Nothing of it can have run since its snapshot.
            (Phase::Suspended, Some(process)) => process.kill(),
            (_, Some(process)) => {
                tracing::info!(microvm = %id, "goes on");
                let network = self.networks.as_ref().and_then(|networks| networks.adopted(id));
                let vmm = Vmm::adopted(process, self.directory_of(id), network);
                let version = self.version(&microvm.version)?;
                let machine = Machine::watched(self, vmm, (microvm, &version), reports);
                let slot = self.slot(id);
                if let Ok(mut place) = slot.machine.try_lock() {
                    *place = Some(machine);
                }
            }
            (_, None) => {}
        }
        Ok(())
    }

    /// What a microVM's guest has had since its process was started, unless something is being done with it.
    pub(super) fn processor_time(&self, id: &str) -> Option<Duration> {
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()?;
        let machine = slot.machine.try_lock().ok()?;
        machine.as_ref()?.vmm.process().guest_time().ok()
    }

    fn network_of(&self, microvm: &Microvm) -> Result<Option<Network>, NetworkError> {
        let networks = self.networks.as_ref();
        networks.map(|it| it.of_microvm(&microvm.id, &microvm.egress)).transpose()
    }

    fn hooks_of(&self, id: &str) -> Result<Option<Hooks>, StoreError> {
        Ok(self.version(&self.microvm(id)?.version)?.spec.hooks)
    }

    /// Removes the packs that the last snapshot does not need. What fails is tried again the next time.
    async fn prune(&self, directory: &Path) {
        let mut prune = Command::new(self.vmm_program());
        prune.args(["snapshot", "prune"]).arg(directory).kill_on_drop(true);
        match prune.output().await {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                tracing::warn!("the packs of {directory:?} are not pruned: {}", said.trim());
            }
            Err(error) => tracing::warn!("the packs of {directory:?} are not pruned: {error}"),
        }
    }
}

/// What the fleet hears of a microVM whose process has ended by itself.
fn gone(id: &str) -> Report {
    let reason = Some(crate::report(&MachineError::Gone));
    let (id, measured) = (id.to_owned(), Measured::default());
    Report::Microvm { id, event: Event::Exited, reason, measured }
}

/// What the host provides to a clone: the version's disk and packs, and its own sockets and overlay.
fn clone_of(mut host: Value, origin: &Path, directory: &Path) -> Value {
    let config = &mut host["config"];
    config["vsock"]["uds_path"] = json!(vsock(directory));
    for drive in config["drives"].as_array_mut().into_iter().flatten() {
        drive["path_on_host"] = json!(origin.join(ROOT));
        drive["overlay_path"] = json!(directory.join(OVERLAY));
    }
    // The version had another name when its packs were written.
    for path in host["packs"].as_object_mut().into_iter().flat_map(|packs| packs.values_mut()) {
        if let Some(name) = path.as_str().and_then(|path| Path::new(path).file_name()) {
            *path = json!(origin.join(name));
        }
    }
    host
}

fn remove_others(directory: &Path, known: &BTreeSet<PathBuf>) -> Result<(), MachineError> {
    for path in files::list(directory)?.iter().filter(|path| !known.contains(*path)) {
        let removed = std::fs::remove_dir_all(path);
        let failed = |source| MachineError::File { attempt: "remove", path: path.clone(), source };
        removed.map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_has_the_versions_disk_and_packs_and_sockets_of_its_own() {
        let host = json!({
            "config": {
                "drives": [{ "drive_id": "root", "path_on_host": "/s/versions/a/1.new/root.ext4" }],
                "vsock": { "guest_cid": 3, "uds_path": "/s/versions/a/1.new/v" },
            },
            "packs": { "00ff": "/s/versions/a/1.new/00ff.pack" },
        });
        let made = clone_of(host, Path::new("/s/versions/a/1"), Path::new("/s/microvms/m"));
        let drive = json!({
            "drive_id": "root", "path_on_host": "/s/versions/a/1/root.ext4",
            "overlay_path": "/s/microvms/m/root.overlay",
        });
        assert_eq!(made["config"]["drives"], json!([drive]));
        assert_eq!(made["config"]["vsock"]["uds_path"], "/s/microvms/m/v");
        assert_eq!(made["packs"], json!({ "00ff": "/s/versions/a/1/00ff.pack" }));
    }

    #[tokio::test]
    async fn what_is_being_done_with_a_microvm_is_given_up_when_it_is_to_end() {
        let slot = Slot::default();
        let forever = slot.unless_ending(std::future::pending::<Result<(), MachineError>>());
        let (ended, ()) = futures::future::join(forever, async { slot.end() }).await;
        assert!(matches!(ended, Err(MachineError::Ended)));
        // And nothing is begun any more.
        let late = slot.unless_ending(async { Ok::<(), MachineError>(()) }).await;
        assert!(matches!(late, Err(MachineError::Ended)));
    }
}
