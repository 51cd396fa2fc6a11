//! Networks: what a guest reaches and what it is refused, clones of one address, and that nothing is
//! left of any.
//!
//! hosts: gicv3
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[cfg(target_arch = "aarch64")]
#[path = "network/guests.rs"]
mod guests;
#[path = "network/host.rs"]
mod host;
#[cfg(target_arch = "aarch64")]
#[path = "network/packages.rs"]
mod packages;
#[cfg(target_arch = "aarch64")]
#[path = "network/probe.rs"]
mod probe;
