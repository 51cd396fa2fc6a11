//! The pager of the host, for machines that share the memory of a snapshot.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::{Artifacts, Console};

/// A running pager. Dropping it kills it.
pub struct Pager {
    child: Child,
    /// What it says.
    pub messages: Console,
    directory: TempDir,
}

impl Pager {
    /// Starts one with a socket of its own, and waits until it listens.
    ///
    /// # Panics
    /// If the host refuses.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// One that keeps no more than this of images that no machine uses.
    ///
    /// # Panics
    /// If the host refuses.
    pub fn start_keeping(mib: u64) -> Self {
        Self::start_with(&["--keep-mib", &mib.to_string()])
    }

    fn start_with(arguments: &[&str]) -> Self {
        let directory = TempDir::new().expect("make a temporary directory");
        let artifacts = Artifacts::find();
        let mut child = Command::new(&artifacts.vmm)
            .args(["pager", "--socket"])
            .arg(directory.path().join("pager.sock"))
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", artifacts.vmm.display()));
        let messages = Console::collect(child.stderr.take().expect("stderr is piped"));
        messages.wait_for("the pager listens");
        Self { child, messages, directory }
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("pager.sock")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        // Either it has ended already, or the test is over.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
