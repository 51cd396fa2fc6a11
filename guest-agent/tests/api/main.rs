//! The agent's API over a Unix socket, served inside the test's process by an ordinary user.

#![allow(clippy::unwrap_used)] // in a test, that is how it fails

mod app;
mod exec;
mod files;
mod http;
mod stream;
mod support;
mod tunnel;
