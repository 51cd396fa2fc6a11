//! The agent of a Rotifer guest.
//!
//! As PID 1 it prepares the guest ([`init`]), starts the app ([`app`]) and serves the host over
//! vsock ([`server`], [`api`]); `docs/agent-api.md` describes what it serves. [`client`] is the
//! other side, for tests, benchmarks and demonstrations.
//!
//! One thread does all the work and sleeps in `epoll` in between: an idle agent has no timer and
//! polls nothing. Only blocking file work goes to a few helper threads, which end when it does.

pub mod agent;
pub mod api;
pub mod app;
pub mod client;
pub mod clock;
pub mod cmdline;
pub mod connections;
pub mod console;
pub mod exec;
pub mod frame;
pub mod init;
pub mod limits;
pub mod logs;
pub mod process;
pub mod restored;
pub mod server;
pub mod timeline;
pub mod vsock;
