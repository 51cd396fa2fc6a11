//! What the user asks for: the JSON configuration and the plan it becomes.
//!
//! ```text
//!   bytes --parse--> Config --plan--> Plan --> Machine
//!                      ^
//!   socket API --------+   (one section a request)
//! ```
//!
//! [`Config`] has the shape of the configuration file of Firecracker v1.x: every key it knows is
//! known here by name, and what the machine cannot do is refused with the reason, never ignored.
//! [`Plan`] is what is left after every check: numbers in range and files open. Both ways in, the
//! file and the socket API, end in [`Config::plan`].
//!
//! Paths in the configuration are relative to the working directory of the process.

mod boot;
mod decode;
mod document;
mod drive;
mod error;
mod file;
mod network;
mod plan;
mod section;

use std::io::Read;
use std::path::Path;

pub use decode::decode;
pub use document::{
    BootSource, CacheType, Config, Drive, DrivePatch, Entropy, HugePages, IoEngine, LogLevel,
    Logger, MachineConfig, MachineConfigPatch, NetworkInterface, NetworkInterfacePatch,
    RateLimiter, Serial, TokenBucket, Unsupported, Vsock,
};
pub(crate) use drive::check_drives;
pub use error::Error;
pub(crate) use file::{Occupant, occupant};
pub use network::Network;
pub(crate) use network::check_interfaces;
pub(crate) use plan::why_unsupported;
pub use plan::{Boot, Console, Disk, Plan, VsockPlan};
pub use rotifer_snapshot::report;

/// The most bytes a configuration file may have.
///
/// Firecracker's largest examples, with CPU templates, stay below 64 KiB.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a configuration out of the bytes of a JSON file, without looking at any file it names.
pub fn parse(bytes: &[u8]) -> Result<Config, Error> {
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::TooLarge { limit_bytes: FILE_BYTES_MAX });
    }
    decode(bytes, "")
}

/// Reads the configuration file at `path`.
pub fn load(path: &Path) -> Result<Config, Error> {
    let attempt = |source| Error::Read { path: path.into(), source };
    let file = file::open_for_reading(path).map_err(attempt)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(attempt)?;
    let refuse = |error| Error::Document { path: path.into(), source: Box::new(error) };
    parse(&bytes).map_err(refuse)
}

#[cfg(test)]
mod tests;
