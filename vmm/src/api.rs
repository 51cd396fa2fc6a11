//! The socket API: Firecracker's requests over HTTP/1.1 on a Unix socket.
//!
//! ```text
//!  bytes --http::parse--> Message --route--> Request --Controller--> Response --encode--> bytes
//!          pure                     pure                |
//!                                               MachineControl (boot, pause, snapshot, ...)
//! ```
//!
//! [`Request`] is the whole public interface of the VMM: what is not a variant of it cannot be
//! asked for. [`Server`] carries bytes; it has no thread and never waits: its descriptor goes into
//! the event loop of the main thread, which calls [`Server::process`] when it is readable.

mod connection;
mod controller;
pub mod http;
mod load;
mod request;
mod response;
mod route;
mod server;
mod socket;

pub use controller::{Controller, Fault, MachineControl, State};
pub use load::{Load, LoadError};
pub use request::{
    MemoryBackend, NetworkOverride, Request, SnapshotCreate, SnapshotKind, SnapshotLoad,
    VsockOverride, WorkingSet,
};
pub use response::Response;
pub use route::{RouteError, route};
pub use server::{Server, ServerError};
pub use socket::SocketError;

#[cfg(test)]
mod tests;
