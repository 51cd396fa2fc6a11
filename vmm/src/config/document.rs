//! The JSON document, section by section, as Firecracker v1.x writes it.
//!
//! Nothing is checked here but names and types; the checks are with each section's own module.
//! Numbers are read as `u64` even where less would do, so that the refusal of 300 vCPUs speaks
//! of vCPUs and not of bytes.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A whole configuration: the file, or what the API was told so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// What to boot. Required by the time the machine starts.
    pub boot_source: Option<BootSource>,
    /// Block devices, in the order the guest sees them after the root device.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// vCPUs and memory.
    #[serde(default)]
    pub machine_config: MachineConfig,
    /// The socket device.
    pub vsock: Option<Vsock>,
    /// The random number device.
    pub entropy: Option<Entropy>,
    /// Where our own log goes.
    pub logger: Option<Logger>,
    /// Where the guest's console goes.
    pub serial: Option<Serial>,
    /// Network devices, in the order the guest sees them.
    #[serde(default)]
    pub network_interfaces: Vec<NetworkInterface>,
    /// Not supported yet.
    pub balloon: Option<Unsupported>,
    /// Not supported.
    pub cpu_config: Option<Unsupported>,
    /// Not supported yet.
    pub metrics: Option<Unsupported>,
    /// Not supported.
    pub mmds_config: Option<Unsupported>,
    /// Not supported.
    pub memory_hotplug: Option<Unsupported>,
    /// Not supported.
    #[serde(default)]
    pub pmem: Vec<Unsupported>,
}

/// `boot-source`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// An arm64 `Image`.
    pub kernel_image_path: PathBuf,
    /// An initial RAM file system.
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line; [`super::boot::DEFAULT_ARGS`] when absent.
    pub boot_args: Option<String>,
}

/// `drives[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// The name the API uses.
    pub drive_id: String,
    /// A raw disk image or a block device.
    pub path_on_host: Option<PathBuf>,
    /// Whether the kernel is told to mount it as `/`.
    pub is_root_device: bool,
    /// Whether the guest may only read it. False when absent.
    pub is_read_only: Option<bool>,
    /// The partition to mount as `/`.
    pub partuuid: Option<String>,
    /// Whether the guest can make its writes durable.
    #[serde(default)]
    pub cache_type: CacheType,
    /// How the host does the I/O.
    pub io_engine: Option<IoEngine>,
    /// Not supported yet.
    pub rate_limiter: Option<RateLimiter>,
    /// A vhost-user back end: not supported.
    pub socket: Option<PathBuf>,
    /// Ours: the file that takes the writes, while `path_on_host` is only read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay_path: Option<PathBuf>,
}

/// `PATCH /drives/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrivePatch {
    /// Which.
    pub drive_id: String,
    /// The file to use from now on.
    pub path_on_host: Option<PathBuf>,
    /// Not supported yet.
    pub rate_limiter: Option<RateLimiter>,
}

/// Whether a drive offers the guest a flush request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// No flush is offered: a crash of the host may lose what the guest thinks is written.
    #[default]
    Unsafe,
    /// The guest can flush.
    Writeback,
}

/// How the host does a drive's I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// With ordinary system calls.
    #[default]
    Sync,
    /// With io_uring.
    Async,
}

/// `network-interfaces[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// The name the API uses.
    pub iface_id: String,
    /// A tap of the host.
    pub host_dev_name: String,
    /// The guest's address; a random one when absent.
    pub guest_mac: Option<String>,
    /// The longest packet, if the guest shall be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// Limits on what the guest receives.
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits on what the guest sends.
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// `PATCH /network-interfaces/{id}`: what is absent stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of NetworkInterface")]
pub struct NetworkInterfacePatch {
    pub iface_id: String,
    pub rx_rate_limiter: Option<RateLimiter>,
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// Limits on a device's traffic. Only network interfaces have any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Bytes.
    pub bandwidth: Option<TokenBucket>,
    /// Requests.
    pub ops: Option<TokenBucket>,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Tokens it holds.
    pub size: u64,
    /// Tokens it starts with besides.
    pub one_time_burst: Option<u64>,
    /// Milliseconds to refill it.
    pub refill_time: u64,
}

/// `machine-config`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// How many vCPUs.
    pub vcpu_count: u64,
    /// Guest memory in MiB.
    pub mem_size_mib: u64,
    /// Simultaneous multithreading: x86 only.
    #[serde(default)]
    pub smt: bool,
    /// A named CPU template: only `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<String>,
    /// Of no effect: what has changed is found without tracking.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// How guest memory is backed.
    #[serde(default)]
    pub huge_pages: HugePages,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

/// `PATCH /machine-config`: what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of MachineConfig")]
pub struct MachineConfigPatch {
    pub vcpu_count: Option<u64>,
    pub mem_size_mib: Option<u64>,
    pub smt: Option<bool>,
    pub cpu_template: Option<String>,
    pub track_dirty_pages: Option<bool>,
    pub huge_pages: Option<HugePages>,
}

/// How guest memory is backed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// By the host's base pages.
    #[default]
    None,
    /// By huge pages where the kernel finds any: not supported yet.
    Transparent,
    /// From hugetlbfs: not supported yet.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// `vsock`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// Deprecated by Firecracker; read and of no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
    /// The guest's address.
    pub guest_cid: u64,
    /// The Unix socket on the host.
    pub uds_path: PathBuf,
}

/// `entropy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// Not supported yet.
    pub rate_limiter: Option<RateLimiter>,
}

/// `serial`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// A file or FIFO for the console's output; standard input and output when absent.
    pub serial_out_path: Option<PathBuf>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucket>,
}

/// `logger`. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// A file or FIFO; standard error when absent.
    pub log_path: Option<PathBuf>,
    /// The least severe level that is written.
    pub level: Option<LogLevel>,
    /// Whether lines carry their level.
    pub show_level: Option<bool>,
    /// Whether lines carry the file and line that wrote them.
    pub show_log_origin: Option<bool>,
    /// Only lines of this module and those inside it.
    pub module: Option<String>,
}

/// A log level; read in any mixture of upper and lower case, as Firecracker does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum LogLevel {
    /// Nothing is written.
    Off,
    /// An operation failed.
    Error,
    /// The host is odd.
    #[serde(rename = "Warning")]
    Warn,
    /// What an operator wants to know.
    #[default]
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

impl std::str::FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "off" => Ok(Self::Off),
            "error" => Ok(Self::Error),
            "warn" | "warning" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            _ => Err(format!(
                "unknown log level {text:?}, expected Error, Warning, Info, Debug, Trace or Off"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A section this VMM knows by name only: any value is read over, to be refused afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported;

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl Serialize for Unsupported {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}
