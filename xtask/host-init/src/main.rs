//! The first process of the emulated ARM64 host.
//!
//! As process 1 it prepares the machine, starts itself again as the server of the command ports,
//! and reaps what others leave behind. The server is a process of its own so that it can wait for
//! its children without process 1 taking their exit status away.

mod attach;
mod boot;
mod job;
mod job_loop;
mod port;
mod serve;

use std::{convert::Infallible, io, process::Command};

use rustix::process::{WaitOptions, wait};

fn main() {
    let role = std::env::args().nth(1);
    let Err(error) = match role.as_deref() {
        Some("serve") => serve::run(),
        _ => init(),
    };
    eprintln!("host-init: {error}");
    boot::power_off();
}

fn init() -> Result<Infallible, boot::Error> {
    boot::prepare()?;
    let server = Command::new("/init")
        .arg("serve")
        .spawn()
        .map_err(|source| boot::Error::Step { what: "start the command server".into(), source })?;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if pid.as_raw_nonzero().get().cast_unsigned() == server.id() => {
                let source = io::Error::other("it ended");
                return Err(boot::Error::Step { what: "keep the command server".into(), source });
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                let source = errno.into();
                return Err(boot::Error::Step { what: "reap processes".into(), source });
            }
        }
    }
}
