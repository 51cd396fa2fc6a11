//! The control plane of Rotifer: the AWS API on one port, in front of a fleet of microVMs.
//!
//! ```text
//!  http        connections, signatures, which service        (shape)
//!  ├─ endpoint microVMs' own host names: tokens, the proxy to their apps, the shell
//!  ├─ s3       buckets and objects, through s3s
//!  ├─ sts, iam, logs
//!  └─ lambda   microVMs, images, network connectors: routes, the model's constraints
//!      └─ fleet    what follows from a request or a report, and what is to be done  (decide)
//!          └─ worker   does it, and reports                                         (act)
//!              └─ host     the worker of this host: VMMs, their snapshots, their agents
//!  usage       what microVMs have used: notes of their phases
//!  store       metadata, in SQLite
//! ```
//!
//! `fleet` reads no clock, no file and no socket: it is given the time and gives back changes and
//! actions. The changes are on the disk before anybody is answered and before anything is done.

pub mod answer;
pub mod bases;
pub mod cli;
pub mod client;
pub mod clock;
pub mod commands;
pub mod doctor;
pub mod endpoint;
pub mod fleet;
pub mod form;
pub mod host;
pub mod http;
pub mod iam;
pub mod lambda;
pub mod logs;
pub mod metadata;
pub mod metrics;
pub mod model;
pub mod page;
pub mod s3;
pub mod seal;
pub mod serve;
pub mod services;
pub mod sessions;
pub mod settings;
mod signing;
pub mod state;
pub mod store;
pub mod sts;
pub mod tls;
pub mod usage;
pub mod worker;

/// An error and what caused it, in one line.
pub fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
