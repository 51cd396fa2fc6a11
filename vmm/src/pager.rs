//! `rotifer-vmm pager`: the process of a host that keeps the memory images that machines share.

use std::fs;
use std::path::PathBuf;

use rotifer_snapshot::pager::service::{Host, Keep, ServiceError};

use crate::config::report;
use crate::outcome::{FAILURE, WRONG_USAGE};

/// Whether the host has huge pages for memory that is shared.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
/// What is kept of images that no machine uses, when nothing else is asked for.
pub const DEFAULT_KEEP_MIB: u64 = 1024;

/// Where it listens and what it keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pager {
    /// Its socket.
    pub socket: PathBuf,
    /// What is kept of images that no machine uses, in MiB.
    pub keep_mib: u64,
}

impl Pager {
    /// Serves machines until a signal ends it. Returns the exit status.
    pub fn run(&self) -> u8 {
        let keep = Keep { bytes: self.keep_mib.saturating_mul(1 << 20) };
        let host = match Host::listen(&self.socket, keep) {
            Ok(host) => host,
            Err(error) => return failed(&error, WRONG_USAGE),
        };
        eprintln!("rotifer-vmm: the pager listens at {}", self.socket.display());
        if let Ok(setting) = fs::read_to_string(HUGE_PAGES)
            && setting.contains("[never]")
        {
            eprintln!("rotifer-vmm: machines would run faster after: echo advise > {HUGE_PAGES}");
        }
        let trouble = |error: &ServiceError| {
            eprintln!("rotifer-vmm: a machine is not served: {}", report(error));
        };
        match host.run(trouble) {
            Ok(()) => 0,
            Err(error) => failed(&error, FAILURE),
        }
    }
}

fn failed(error: &ServiceError, status: u8) -> u8 {
    eprintln!("rotifer-vmm: {}", report(error));
    status
}
