//! The harness of the integration tests: real microVMs, observed from inside the guest, on its
//! console, or on the wire.
//!
//! A test describes a machine ([`VmBuilder`]), starts it ([`Vm`]), waits for events (never for
//! time to pass) and asserts. Every wait has a deadline that is generous, because the emulated
//! host may be ten times slower tomorrow; a failure shows the tail of the guest's console.
//!
//! The tests run on an ARM64 machine with KVM; elsewhere `./x test` runs them in the emulated one.

mod artifacts;
mod console;
pub mod internet;
mod load;
mod pager;
mod snapshot;
mod tap;
#[cfg(target_arch = "aarch64")]
mod tracer;
mod vm;

pub use artifacts::Artifacts;
pub use console::Console;
pub use load::{LOAD_DISK_BYTES, LoadedGuest, Look, ask_load, start_load};
pub use pager::Pager;
pub use snapshot::{
    copy_snapshot, damage_disks, damage_packs, pack_sizes, place, web_app, web_app_snapshot,
};
pub use tap::{Tap, Traffic};
#[cfg(target_arch = "aarch64")]
pub use tracer::{Met, Trouble, trace};
pub use vm::{Drive, ExitCode, Vm, VmBuilder, api_request, empty_disk, memory_kib};

use std::time::Duration;

/// How long any single event may take. An emulated host boots a guest in about a second.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// The bare-metal guest that writes garbage to every device; see `guests/hostile.rs`.
#[cfg(target_arch = "aarch64")]
pub const HOSTILE_GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hostile.image"));
