//! What can go wrong with a network.

use std::{ffi::OsString, io, net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;

use crate::{
    files::{self, Name},
    namespace, netlink, policy, tap,
};

/// Something about a network did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is one.
    #[error("there is a network {name} already: delete it first, or choose another name")]
    Exists {
        /// Its name.
        name: Name,
    },
    /// There is none.
    #[error("there is no network {name}")]
    Unknown {
        /// As asked for.
        name: Name,
    },
    /// The record is there and the namespace is not.
    #[error("the namespace of the network {name} is gone: run `rotifer-network sweep`")]
    Broken {
        /// Its name.
        name: Name,
    },
    /// All addresses are in use.
    #[error("all {count} networks that fit into {subnet} are in use: configure a larger subnet")]
    Full {
        /// How many fit.
        count: u32,
        /// What the configuration says.
        subnet: Ipv4Net,
    },
    /// A process that does not run.
    #[error("there is no process {pid} that the network could belong to")]
    NoOwner {
        /// As given.
        pid: i32,
    },
    /// A file below `/proc/sys`.
    #[error("cannot set {} to {value}: is /proc/sys writable?", path.display())]
    Setting {
        /// Which.
        path: PathBuf,
        /// To what.
        value: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A socket in a namespace.
    #[error("cannot listen on {address}:{port} in the namespace of a network")]
    Listen {
        /// Where.
        address: Ipv4Addr,
        /// Where.
        port: u16,
        /// Why not.
        source: io::Error,
    },
    /// A program.
    #[error("cannot start {} in the namespace of a network", program.display())]
    Start {
        /// Which.
        program: OsString,
        /// Why not.
        source: io::Error,
    },
    /// A policy.
    #[error("the policy cannot be used")]
    Policy(#[from] policy::Error),
    /// Files.
    #[error("cannot keep what is known about networks")]
    Files(#[from] files::Error),
    /// Namespaces.
    #[error("cannot use a network namespace")]
    Namespace(#[from] namespace::Error),
    /// The kernel.
    #[error("the kernel refuses")]
    Netlink(#[from] netlink::Error),
    /// The tap.
    #[error("cannot make the guest's interface")]
    Tap(#[from] tap::Error),
}
