//! `rotifer-agent`: PID 1 of a guest; in an ordinary process, a server on a Unix socket for trials.
//!
//! There is no `fn main`: Rust's start-up code opens `/dev/null` when a standard stream is closed
//! and aborts if it cannot. A guest without a console starts PID 1 with all of them closed and an
//! empty `/dev`, which the agent has to mount first.
#![no_main]

use rotifer_agent::agent::Agent;
use rotifer_agent::init;
use rotifer_agent::server::{Listener, serve};
use std::ffi::{c_char, c_int};
use std::io;
use std::rc::Rc;

const USAGE: &str = "usage: rotifer-agent --listen SOCKET   (as PID 1 it takes no arguments)";

/// The C library's entry.
// SAFETY: the name is the one that the C library calls, once, with these arguments.
#[unsafe(no_mangle)]
pub extern "C" fn main(_argument_count: c_int, _arguments: *const *const c_char) -> c_int {
    // SAFETY: plain numbers. A broken pipe is an error of a write, not the end of the agent.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    if std::process::id() == 1 {
        init::run();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--listen", path] => match listen(path) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("rotifer-agent: cannot serve on {path}: {error}");
                1
            }
        },
        ["--version"] => {
            println!("rotifer-agent {}", env!("CARGO_PKG_VERSION"));
            0
        }
        _ => {
            eprintln!("{USAGE}");
            2
        }
    }
}

/// Serves the API until a request or a signal ends it. Processes keep the credentials of the agent.
fn listen(path: &str) -> io::Result<()> {
    let runtime = init::runtime()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = tokio::net::UnixListener::bind(path)?;
        let agent = Rc::new(Agent::guest_of_a_process()?);
        let reaper = agent.clone();
        tokio::task::spawn_local(async move { reaper.reaper.run().await });
        tokio::task::spawn_local(serve(Listener::Unix(listener), agent.clone()));
        agent.shutdown().await;
        std::fs::remove_file(path)
    })
}
