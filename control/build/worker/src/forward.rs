//! TCP connections of the machine become vsock connections to the host, where the forward proxy is.

use super::{WorkerError, failed};
use crate::limits::PROXY_CONNECTIONS_MAX;
use crate::protocol::FORWARD_READY;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

/// Listens on the loopback interface until somebody ends it.
pub fn forward(port: u16) -> Result<(), WorkerError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .map_err(failed(format!("listen on port {port}")))?;
    println!("{FORWARD_READY}");
    let open = Arc::new(());
    loop {
        let (client, _) = listener.accept().map_err(failed("accept a connection"))?;
        // One that is one too many is closed, and its program says so.
        if Arc::strong_count(&open) <= PROXY_CONNECTIONS_MAX {
            let slot = open.clone();
            thread::spawn(move || {
                // A connection that breaks is its program's affair.
                let _ = pass_on(&client, u32::from(port));
                drop(slot);
            });
        }
    }
}

fn pass_on(client: &TcpStream, port: u32) -> io::Result<()> {
    let host = connect_to_host(port)?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::copy(&mut &*client, &mut &host);
            host.shutdown(Shutdown::Write)
        });
        let _ = io::copy(&mut &host, &mut &*client);
        client.shutdown(Shutdown::Write)
    })
}

/// A connected stream socket is read, written and shut down alike in every family.
fn connect_to_host(port: u32) -> io::Result<UnixStream> {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_HOST, port))?;
    Ok(UnixStream::from(socket))
}
