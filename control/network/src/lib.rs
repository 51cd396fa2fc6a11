//! The host's side of microVMs' networks.
//!
//! Each VM has a network namespace with the same tap, the same addresses and the same MAC inside, a
//! way out of it, and rules that say what its guest may reach ([`policy`]). A clone wakes with the
//! network of its image and has nothing to set up. `docs/networks.md` says how it works and what is
//! guaranteed.
//!
//! [`host::Host`] makes, changes and removes networks; [`serve::Server`] answers their guests'
//! questions for names and keeps a pool of namespaces ready. Nothing is opened when it dies.

pub mod drops;
pub mod files;
pub mod guest;
pub mod host;
pub mod link;
pub mod namespace;
pub mod netlink;
mod nft;
pub mod policy;
pub mod ranges;
mod resolver;
mod rules;
pub mod serve;
pub mod tap;
