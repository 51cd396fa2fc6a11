//! A Unix socket on which a build machine reaches the host, for as long as the machine lives.

use rustix::net::{Shutdown, shutdown};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

/// Accepts connections on a thread. Dropping it ends the thread, not the connections.
#[derive(Debug)]
pub(crate) struct Service(UnixListener);

impl Service {
    /// Serves; `connected` must not block.
    pub(crate) fn start(
        socket: &Path,
        mut connected: impl FnMut(UnixStream) + Send + 'static,
    ) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let accepting = listener.try_clone()?;
        thread::Builder::new().name("build-service".into()).spawn(move || {
            while let Ok((connection, _)) = accepting.accept() {
                connected(connection);
            }
        })?;
        Ok(Self(listener))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Linux lets nobody wait for connections after that.
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn its_thread_ends_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let (sender, connections) = mpsc::channel();
        let service = Service::start(&socket, move |_| sender.send(()).unwrap()).unwrap();
        let _client = UnixStream::connect(&socket).unwrap();
        connections.recv().unwrap();
        drop(service);
        // The thread's end of the channel is gone with it.
        connections.recv().unwrap_err();
    }
}
