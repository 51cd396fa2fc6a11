//! The virtual machine monitor: KVM on ARM64, machine assembly, JSON configuration, socket API.
//!
//! ```text
//!  cli, config ──▶ Plan ──▶ Machine (table of devices, bus, slots; arch: memory map, device tree)
//!  api ─ Controller ────────▲   │
//!                               └─ wake ─▶ run: the event loop of the main thread ─▶ Outcome
//! ```
//! Only `machine` needs KVM; everything else builds and is tested on any Linux.

pub mod api;
pub mod arch;
pub mod boot;
pub mod bus;
pub mod cli;
pub mod config;
pub mod console;
pub mod fork;
pub mod logger;
// The one place that asks for the architecture: below it is KVM on ARM64.
#[cfg_attr(not(target_arch = "aarch64"), path = "machine/absent.rs")]
pub mod machine;
pub mod machine_state;
pub mod memory;
pub mod outcome;
pub mod pager;
pub mod panic_notifier;
pub mod run;
pub mod signals;
pub mod slots;
pub mod snapshots;
pub mod table;
pub mod terminal;
pub mod tools;
