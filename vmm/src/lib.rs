//! (being built)

pub mod api;
pub mod arch;
pub mod bus;
pub mod cli;
pub mod config;
pub mod logger;
pub mod slots;
