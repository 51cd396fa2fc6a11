//! Processes of the guest: what to start, as whom, with which ends of which pipes, and how it ended.

pub mod credentials;
pub mod pipe;
pub mod reaper;
pub mod spawn;
pub mod spec;
pub mod users;

pub use reaper::{Exit, Reaper};
pub use spawn::{Spawned, Spawner, StdioPlan};
pub use spec::ProcessSpec;
