//! (being built)

pub mod arch;
pub mod bus;
pub mod config;
pub mod slots;
