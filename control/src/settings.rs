//! What an operator can set: one JSON file, every member optional, none ignored.

mod code;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rotifer_network::policy::{self, Policy};
use serde::Deserialize;

pub use code::{CodeEndpoint, KeyPair};

/// The settings of a daemon.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Settings {
    /// The region that all resources are in.
    pub region: String,
    /// The account that all resources belong to: twelve digits.
    pub account: String,
    /// Endpoints of microVMs are `<uuid>.lambda-microvm.<region>.<this>`.
    pub endpoint_domain: String,
    /// What may exist.
    pub quotas: Quotas,
    /// How often operations may be called.
    pub rates: Rates,
    /// What clients of the port may use up.
    pub limits: Limits,
    /// A certificate for the endpoints, in place of ours.
    pub certificate: Option<Certificate>,
    /// What microVMs run with. Without it none do.
    pub host: Option<HostSettings>,
}

/// Programs and files of a host that runs microVMs. Paths are relative to the file of the settings.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct HostSettings {
    /// `rotifer-vmm`
    pub vmm: PathBuf,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The initramfs that holds the agent.
    pub initramfs: PathBuf,
    /// The settings of image builds (`docs/image-builds.md`). Without them no images are built.
    pub builds: Option<PathBuf>,
    /// Networks of microVMs (`docs/networks.md`). Without them no microVM has a network interface.
    pub networks: Option<NetworkSettings>,
    /// Buckets of code artifacts that are directories of this host.
    #[serde(default)]
    pub code_directories: BTreeMap<String, PathBuf>,
    /// Those that other S3-compatible services have.
    #[serde(default)]
    pub code_endpoints: BTreeMap<String, CodeEndpoint>,
}

/// How microVMs reach the world.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct NetworkSettings {
    /// Where networks are written down: one directory, and one daemon, for each host.
    pub directory: PathBuf,
    /// Networks that are ready at any time.
    pub pool: usize,
    /// Who resolves names; those of `/etc/resolv.conf` if there are none.
    pub resolvers: Vec<SocketAddr>,
    /// What the subnets that connectors name let through.
    pub subnets: BTreeMap<String, Policy>,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            directory: rotifer_network::files::ROOT.into(),
            pool: 4,
            resolvers: Vec::new(),
            subnets: BTreeMap::new(),
        }
    }
}

impl NetworkSettings {
    fn check(&self) -> Result<(), SettingsError> {
        let refuse = |value: &str, rule| {
            Err(SettingsError::Value { name: "host.networks", value: value.to_owned(), rule })
        };
        if self.pool > POOL_MAX {
            return refuse(&self.pool.to_string(), "a pool has at most 256 networks");
        }
        for (id, policy) in &self.subnets {
            let name = id.strip_prefix("subnet-").unwrap_or_default();
            let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            if name.is_empty() || !name.bytes().all(is_name) {
                return refuse(id, "a subnet is called subnet-, and then small letters and digits");
            }
            policy
                .check()
                .map_err(|source| SettingsError::Policy { subnet: id.clone(), source })?;
        }
        Ok(())
    }
}

/// Namespaces take memory of the kernel's.
const POOL_MAX: usize = 256;

impl HostSettings {
    fn relative_to(&mut self, directory: &Path) {
        let named = [&mut self.vmm, &mut self.kernel, &mut self.initramfs].into_iter();
        for path in named.chain(&mut self.builds).chain(self.code_directories.values_mut()) {
            *path = directory.join(&path);
        }
        self.code_endpoints.values_mut().for_each(|endpoint| endpoint.relative_to(directory));
    }

    fn check(&self) -> Result<(), SettingsError> {
        for (bucket, endpoint) in &self.code_endpoints {
            let is_twice = self.code_directories.contains_key(bucket);
            let fault = match endpoint.fault() {
                _ if !s3s::path::check_bucket_name(bucket) => Some("that is no name of a bucket"),
                _ if is_twice => Some("that bucket is one of host.code-directories, too"),
                fault => fault,
            };
            if let Some(rule) = fault {
                let (name, value) = ("host.code-endpoints", bucket.clone());
                return Err(SettingsError::Value { name, value, rule });
            }
        }
        self.networks.as_ref().map_or(Ok(()), NetworkSettings::check)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            region: "us-east-1".into(),
            account: "000000000000".into(),
            endpoint_domain: "localhost".into(),
            quotas: Quotas::default(),
            rates: Rates::default(),
            limits: Limits::default(),
            certificate: None,
            host: None,
        }
    }
}

/// How much may exist.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Quotas {
    /// Images of the account.
    pub images: usize,
    /// Versions of one image.
    pub versions_per_image: usize,
    /// Network connectors of the account.
    pub network_connectors: usize,
    /// Memory of all microVMs that are not terminated.
    pub memory_mib: u64,
    /// Terminated microVMs are forgotten after this time.
    pub terminated_retention_seconds: i64,
    /// Terminated microVMs that are remembered at most; the oldest go first.
    pub terminated_microvms: usize,
    /// Roles.
    pub roles: usize,
    /// Buckets.
    pub buckets: usize,
    /// Bytes in all buckets together.
    pub object_bytes: u64,
    /// Bytes of all log events together; the oldest go first.
    pub log_bytes: u64,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            images: 100,
            versions_per_image: 50,
            network_connectors: 100,
            memory_mib: 400 * 1024,
            terminated_retention_seconds: 24 * 3600,
            terminated_microvms: 10_000,
            roles: 1000,
            buckets: 100,
            object_bytes: 100 << 30,
            log_bytes: 1 << 30,
        }
    }
}

/// How many requests a second, and as many at once.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Rates {
    /// `RunMicrovm`.
    pub run: u32,
    /// `ResumeMicrovm`.
    pub resume: u32,
    /// `SuspendMicrovm`.
    pub suspend: u32,
    /// `TerminateMicrovm`.
    pub terminate: u32,
    /// The two operations that make tokens.
    pub token: u32,
    /// Each other operation.
    pub other: u32,
}

impl Default for Rates {
    fn default() -> Self {
        Self { run: 5, resume: 5, suspend: 2, terminate: 10, token: 50, other: 100 }
    }
}

/// What clients may use up, so that one of them costs the others nothing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Limits {
    /// Connections at the same time; more wait in the kernel's queue.
    pub connections: usize,
    /// How long a client may take for the TLS handshake.
    pub handshake_seconds: u64,
    /// How long it may take to send the head of a request, and to think of the next one.
    pub head_seconds: u64,
    /// Requests and WebSockets to all microVMs at the same time.
    pub streams: usize,
    /// Those to one microVM.
    pub streams_per_microvm: usize,
    /// Those that wait for one microVM to be resumed.
    pub held_per_microvm: usize,
    /// How long they wait.
    pub hold_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            handshake_seconds: 10,
            head_seconds: 30,
            streams: 4096,
            streams_per_microvm: 128,
            held_per_microvm: 64,
            hold_seconds: 60,
        }
    }
}

/// Where a certificate is, as PEM. The files are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Certificate {
    /// The certificate, and those that it is signed by.
    pub chain: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Why settings are refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum SettingsError {
    #[error("cannot read the settings {path:?}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the settings {path:?} are not understood")]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("the policy of {subnet} cannot be used")]
    Policy { subnet: String, source: policy::Error },
    #[error("the settings' {name} is {value:?}: {rule}")]
    Value { name: &'static str, value: String, rule: &'static str },
}

impl Settings {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = fs::read_to_string(path)
            .map_err(|source| SettingsError::Read { path: path.into(), source })?;
        let mut settings: Self = serde_json::from_str(&text)
            .map_err(|source| SettingsError::Parse { path: path.into(), source })?;
        // VMMs are found again by their paths, which therefore are whole.
        let path = std::path::absolute(path)
            .map_err(|source| SettingsError::Read { path: path.into(), source })?;
        if let (Some(host), Some(directory)) = (&mut settings.host, path.parent()) {
            host.relative_to(directory);
        }
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), SettingsError> {
        let refuse = |name, value: &str, rule| {
            Err(SettingsError::Value { name, value: value.to_owned(), rule })
        };
        let is_digits = self.account.bytes().all(|byte| byte.is_ascii_digit());
        if self.account.len() != 12 || !is_digits {
            return refuse("account", &self.account, "an account is twelve digits");
        }
        let region = regex::Regex::new(REGION).is_ok_and(|rule| rule.is_match(&self.region));
        if !region {
            return refuse("region", &self.region, "a region looks like us-east-1");
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        if self.endpoint_domain.is_empty() || !self.endpoint_domain.bytes().all(is_name) {
            return refuse("endpoint-domain", &self.endpoint_domain, "it is a DNS name");
        }
        let Rates { run, resume, suspend, terminate, token, other } = self.rates;
        if [run, resume, suspend, terminate, token, other].contains(&0) {
            return refuse("rates", "0", "a rate of 0 would refuse every request");
        }
        let Limits { connections, streams, streams_per_microvm, held_per_microvm, .. } =
            self.limits;
        if [connections, streams, streams_per_microvm, held_per_microvm].contains(&0) {
            return refuse("limits", "0", "a limit of 0 would let nobody in");
        }
        let Limits { handshake_seconds, head_seconds, hold_seconds, .. } = self.limits;
        self.host.as_ref().map_or(Ok(()), HostSettings::check)?;
        let is_time = |seconds: &u64| (1..=SECONDS_MAX).contains(seconds);
        if ![handshake_seconds, head_seconds, hold_seconds].iter().all(is_time) {
            return refuse("limits", "its seconds", "a time is from a second to an hour");
        }
        Ok(())
    }
}

/// The longest patience with a client.
const SECONDS_MAX: u64 = 3600;

/// What the service model's patterns of ARNs take for a region.
const REGION: &str = "^[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-[0-9]$";

#[cfg(test)]
mod tests;
