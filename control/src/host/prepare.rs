//! The second half of an image build: from a root disk to the snapshot that launches restore.
//!
//! ```text
//!  boot ─▶ start the app ─▶ /ready, or its port answers ─▶ snapshot
//!                                   restore, remembering ─▶ /validate, or its port answers ─▶ working set
//! ```

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::hooks::{Hook, HookError, Name};
use super::lines::Lines;
use super::machines::{MachineError, OVERLAY, ROOT, SNAPSHOT, SNAPSHOT_HOST};
use super::networks::{self, Network, NetworkError, Networks};
use super::vmm::{Vmm, VmmError, vsock};
use super::wire;
use super::{files, follow};
use crate::fleet::records::{SnapshotBuild, Version};
use crate::settings::HostSettings;

/// Where an app without a `/ready` hook is expected.
const APP_PORT: u16 = 8080;
/// How long it is waited for there. An app need not listen: the snapshot is taken then as it is.
const APP_TIMEOUT: Duration = Duration::from_secs(120);
const APP_RETRY_PERIOD: Duration = Duration::from_millis(200);
/// How long the agent may take to answer.
const AGENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Where guests look names up.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Memory for each of a machine's processors.
const MIB_PER_VCPU: u64 = 2048;
/// The unit of a snapshot's counts.
const PAGE_BYTES: u64 = 4096;

/// What a version is prepared with.
pub struct Place<'a> {
    /// Programs and files of this host.
    pub settings: &'a HostSettings,
    /// The version's directory, with the root disk in it.
    pub directory: &'a Path,
    /// Where its machines are, if they have networks.
    pub networks: Option<&'a Arc<Networks>>,
    /// What the app finds in its environment.
    pub variables: Vec<(&'static str, String)>,
}

impl Place<'_> {
    fn network(&self, version: &Version) -> Result<Option<Network>, NetworkError> {
        let egress = &version.spec.egress_network_connectors;
        self.networks.map(|networks| networks.of_build(egress)).transpose()
    }
}

/// Why a version cannot be prepared. The texts are for users.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error("CONTAINER_BUILD_FAILED: the app cannot be started: {reason}")]
    App { reason: String },
    #[error("CONTAINER_BUILD_FAILED: the app ended before it was ready: {how}")]
    AppEnded { how: String },
    #[error("INTERNAL_PLATFORM_ERROR: {}", crate::report(.0))]
    Vmm(#[from] VmmError),
    #[error("INTERNAL_PLATFORM_ERROR: {}", crate::report(.0))]
    Host(#[from] MachineError),
    #[error("INTERNAL_PLATFORM_ERROR: {}", crate::report(.0))]
    Network(#[from] NetworkError),
    #[error("INTERNAL_PLATFORM_ERROR: cannot {attempt}: {source}")]
    Attempt { attempt: &'static str, source: io::Error },
}

/// Makes a version's snapshot beside its root disk. Nothing else is left in the directory.
pub async fn prepare(
    place: &Place<'_>,
    version: &Version,
    app: Value,
    lines: &Lines,
) -> Result<SnapshotBuild, PrepareError> {
    let directory = place.directory;
    boot_and_save(place, version, app, lines).await?;
    restore_and_record(place, version, lines).await?;
    for path in files::list(directory)? {
        let name = path.file_name().unwrap_or_default();
        let is_kept =
            [ROOT, SNAPSHOT, SNAPSHOT_HOST, follow::TAKEN].iter().any(|kept| name == *kept);
        if !is_kept && path.extension().is_none_or(|extension| extension != "pack") {
            files::remove_file(&path)?;
        }
    }
    sizes(place).await
}

async fn boot_and_save(
    place: &Place<'_>,
    version: &Version,
    app: Value,
    lines: &Lines,
) -> Result<(), PrepareError> {
    let directory = place.directory;
    let config = configuration(place, version);
    lines.say("Starting the app in a MicroVM.");
    let network = place.network(version)?;
    let vmm = Vmm::boot(&place.settings.vmm, directory, network, &config).await?;
    if place.networks.is_some() {
        let written = wire::write_file(&vmm.vsock(), RESOLV_CONF, networks::resolv_conf()).await;
        written.map_err(|source| PrepareError::Attempt { attempt: "set up names", source })?;
    }
    start(&vmm.vsock(), &described(app, place, version)).await?;
    match Hook::of(version.spec.hooks.as_ref(), Name::Ready) {
        Some(hook) => hook.call(&vmm.vsock(), None).await?,
        None => await_app(&vmm.vsock(), lines).await?,
    }
    // Launches go on behind what the app has said here.
    let said = follow::catch_up(&vmm.vsock(), directory, lines).await;
    said.map_err(|source| PrepareError::Attempt { attempt: "read the app's log", source })?;
    lines.say("Saving a snapshot of the MicroVM.");
    vmm.pause().await?;
    let create = json!({
        "snapshot_path": directory.join(SNAPSHOT), "mem_file_path": directory, "snapshot_type": "Full",
    });
    vmm.put("/snapshot/create", &create).await?;
    vmm.end().await;
    Ok(())
}

/// What an app touches until it has answered is loaded first from then on.
async fn restore_and_record(
    place: &Place<'_>,
    version: &Version,
    lines: &Lines,
) -> Result<(), PrepareError> {
    let snapshot = place.directory.join(SNAPSHOT);
    lines.say("Restoring the snapshot once.");
    let network = place.network(version)?;
    let vmm = Vmm::start(&place.settings.vmm, place.directory, network)?;
    vmm.load(&snapshot, json!({ "record_working_set": true })).await?;
    match Hook::of(version.spec.hooks.as_ref(), Name::Validate) {
        Some(hook) => hook.call(&vmm.vsock(), None).await?,
        // Whether somebody listens there or not: what it takes to find out is needed by every launch.
        None => drop(wire::connect(&vmm.vsock(), APP_PORT).await),
    }
    vmm.pause().await?;
    vmm.put("/snapshot/working-set", &json!({ "snapshot_path": snapshot })).await?;
    vmm.end().await;
    Ok(())
}

fn configuration(place: &Place<'_>, version: &Version) -> Value {
    let HostSettings { kernel, initramfs, .. } = place.settings;
    let directory = place.directory;
    let memory_mib = version.memory_mib();
    // What the disk says of the app lacks the version's own variables.
    let mut boot_args = String::from(
        "quiet console=ttyS0 panic=-1 rotifer.root=/dev/vda rotifer.rootfstype=ext4 rw rotifer.app=none",
    );
    let mut interfaces = json!([]);
    if place.networks.is_some() {
        boot_args = format!("{boot_args} {}", rotifer_network::guest::boot_argument());
        interfaces = networks::interface();
    }
    json!({
        "boot-source": {
            "kernel_image_path": kernel, "initrd_path": initramfs, "boot_args": boot_args,
        },
        "network-interfaces": interfaces,
        "drives": [{
            "drive_id": "root", "is_root_device": false, "is_read_only": false, "cache_type": "Writeback",
            "path_on_host": directory.join(ROOT), "overlay_path": directory.join(OVERLAY),
        }],
        "machine-config": {
            "vcpu_count": (memory_mib / MIB_PER_VCPU).max(1), "mem_size_mib": memory_mib,
        },
        "vsock": { "guest_cid": 3, "uds_path": vsock(directory) },
        "entropy": {},
    })
}

/// The image's app, with what the version and the platform add to it.
fn described(mut app: Value, place: &Place<'_>, version: &Version) -> Value {
    let own = version.spec.environment_variables.iter().flatten();
    for (name, value) in own {
        app["env"][name.as_str()] = json!(value);
    }
    for (name, value) in &place.variables {
        app["env"][*name] = json!(value);
    }
    let capabilities = version.spec.additional_os_capabilities.iter().flatten();
    if capabilities.into_iter().any(|word| word == "ALL") {
        app["capabilities"] = json!("all");
    }
    app
}

async fn start(vsock: &Path, app: &Value) -> Result<(), PrepareError> {
    let (status, answer) = ask_agent(vsock, Method::POST, Some(app)).await?;
    if status == StatusCode::CREATED {
        return Ok(());
    }
    let reason = answer["error"]["message"].as_str().unwrap_or_default().to_owned();
    Err(PrepareError::App { reason })
}

/// Waits until somebody listens where apps usually do.
async fn await_app(vsock: &Path, lines: &Lines) -> Result<(), PrepareError> {
    let listens = async {
        while wire::connect(vsock, APP_PORT).await.is_err() {
            let (_, app) = ask_agent(vsock, Method::GET, None).await?;
            if app["state"] != "running" {
                let how = app["exit"].to_string();
                return Err(PrepareError::AppEnded { how });
            }
            sleep(APP_RETRY_PERIOD).await;
        }
        Ok(())
    };
    timeout(APP_TIMEOUT, listens).await.unwrap_or_else(|_| {
        lines.say(&format!(
            "Nobody listens on port {APP_PORT}; the snapshot is taken all the same."
        ));
        Ok(())
    })
}

async fn ask_agent(
    vsock: &Path,
    method: Method,
    body: Option<&Value>,
) -> Result<(StatusCode, Value), PrepareError> {
    let failed = |source| PrepareError::Attempt { attempt: "ask the guest's agent", source };
    let asked = async {
        let stream = wire::agent(vsock).await?;
        wire::ask(stream, method, "agent", "/v1/app", body).await
    };
    let slow = |_| failed(io::ErrorKind::TimedOut.into());
    let (status, answer) = timeout(AGENT_TIMEOUT, asked).await.map_err(slow)?.map_err(failed)?;
    Ok((status, serde_json::from_slice(&answer).unwrap_or_default()))
}

/// What the version takes: its snapshot as the VMM counts it, and the disk's file.
async fn sizes(place: &Place<'_>) -> Result<SnapshotBuild, PrepareError> {
    use std::os::unix::fs::MetadataExt;
    let mut inspect = Command::new(&place.settings.vmm);
    inspect.args(["snapshot", "inspect", "--json"]).arg(place.directory.join(SNAPSHOT));
    let failed = |attempt| move |source| PrepareError::Attempt { attempt, source };
    let output =
        inspect.kill_on_drop(true).output().await.map_err(failed("inspect the snapshot"))?;
    let inspection: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| failed("understand the snapshot's description")(error.into()))?;
    let images = inspection["images"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_memory = |image: &&Value| image["kind"] == "memory";
    let bytes = |image: &Value| image["page_count"].as_u64().unwrap_or_default() * PAGE_BYTES;
    let root =
        std::fs::metadata(place.directory.join(ROOT)).map_err(failed("look at the root disk"))?;
    Ok(SnapshotBuild {
        memory_snapshot_size_in_bytes: images.iter().filter(is_memory).map(bytes).sum(),
        code_install_size_in_bytes: root.blocks() * 512,
        disk_snapshot_size_in_bytes: images.iter().filter(|it| !is_memory(it)).map(bytes).sum(),
    })
}
