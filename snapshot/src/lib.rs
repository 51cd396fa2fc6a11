//! What a frozen machine is.
//!
//! For now this crate holds the contract that every part of a machine with guest-visible state
//! fulfils ([`Stateful`]), so that no device can be written without saying what survives a
//! suspend. The file format, page map, reader, writer and pager follow in this crate.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod section;

pub use section::{LoadError, Section, Stateful, Tag};
