//! The host's side of microVMs' networks.
//!
//! Each VM has a network namespace with the same tap, the same addresses and the same MAC inside, a
//! way out of it, and rules that say what its guest may reach ([`policy`]). A clone wakes with the
//! network of its image and has nothing to set up. `docs/networks.md` says how it works and what is
//! guaranteed.
//!
//! # What a control plane calls
//!
//! ```no_run
//! # use std::{path::Path, process::Command};
//! # use rotifer_network::{files::{Name, ROOT}, host::{Host, Options}, policy::Policy, serve};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let host = Host::open(Path::new(ROOT))?;
//! let microvm: Name = "microvm-0b9e".parse()?;
//! host.create(&microvm, &Policy::internet(), Options::default())?; // from the pool, if that has one
//! let vmm = host.start(&microvm, &mut Command::new("rotifer-vmm"))?; // its tap: guest::TAP
//! host.set_policy(&microvm, &Policy::parse(r#"{"allow": ["example.org"]}"#)?)?; // at once
//! println!("{:?}", host.drops(&microvm)?);
//! host.delete(&microvm)?;
//! serve::run(host, serve::Options::default()).await?; // beside all that: names, the pool, owners
//! # Ok(())
//! # }
//! ```
//!
//! Who starts the VMM by other means enters the namespace first: [`host::Host::namespace`] with
//! [`namespace::within`] or [`namespace::enter`]. A network is there whole or not at all, and stays
//! when its maker dies: one that begins anew finds it ([`host::Host::network`]) or is told
//! [`host::Error::Exists`]; `delete` of one that is gone says [`host::Error::Unknown`]. Calls block for
//! some milliseconds, and can be made from any number of threads and processes at the same time.
//! Nothing is opened when any of them dies; [`host::Host::sweep`] removes what that leaves behind.

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

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
