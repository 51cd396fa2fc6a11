//! The forward proxy of build machines: HTTP and `CONNECT`, to listed names only.
//!
//! It is served on the Unix socket where the VMM delivers the guest's vsock connections. A guest is
//! hostile: the head of a request is bounded and parsed by `httparse`, one request is answered on a
//! connection, and everything after the head is bytes that are passed on.

use crate::limits::{PROXY_HEAD_MAX_BYTES, PROXY_HEADERS_MAX};
use crate::network::Network;
use crate::service::Service;
use rotifer_build_worker::limits::PROXY_CONNECTIONS_MAX;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How long a connection to a server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long either side may be silent.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
const READ_BYTES: usize = 8 * 1024;
/// Headers that are between the client and us.
const HOP_HEADERS: [&str; 5] =
    ["connection", "proxy-connection", "proxy-authorization", "keep-alive", "host"];

/// Serves connections until the result is dropped. The number of threads is bounded.
///
/// # Errors
/// The socket cannot be made.
pub(crate) fn serve(socket: &Path, network: Arc<Network>) -> io::Result<Service> {
    let open = Arc::new(());
    Service::start(socket, move |client| {
        if Arc::strong_count(&open) > PROXY_CONNECTIONS_MAX {
            return; // dropped: its program tries again
        }
        let (slot, network) = (open.clone(), network.clone());
        let answer = move || {
            // What goes wrong on a connection, its client is told or sees.
            let _ = answer(client, &network);
            drop(slot);
        };
        // Without a thread the connection is dropped as well.
        let _ = thread::Builder::new().name("build-proxy".into()).spawn(answer);
    })
}

/// What a request wants.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    host: String,
    port: u16,
    /// What is sent to the server first; nothing for a tunnel.
    head: Option<Vec<u8>>,
}

/// Why it does not get it: a status and a sentence.
type Refusal = (u16, String);

fn answer(mut client: UnixStream, network: &Network) -> io::Result<()> {
    client.set_read_timeout(Some(IDLE_TIMEOUT))?;
    client.set_write_timeout(Some(IDLE_TIMEOUT))?;
    let (head, rest) = match read_head(&mut client)? {
        Some(parts) => parts,
        None => return refuse(&mut client, (431, "the request's head is too long".into())),
    };
    let wish = match understand(&head, network) {
        Ok(wish) => wish,
        Err(refusal) => return refuse(&mut client, refusal),
    };
    let mut server = match dial(&wish) {
        Ok(server) => server,
        Err(error) => {
            let text = format!("cannot connect to {}:{}: {error}", wish.host, wish.port);
            return refuse(&mut client, (502, text));
        }
    };
    match &wish.head {
        Some(head) => server.write_all(head)?,
        None => client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?,
    }
    server.write_all(&rest)?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::copy(&mut &client, &mut &server);
            server.shutdown(Shutdown::Write)
        });
        let _ = io::copy(&mut &server, &mut &client);
        client.shutdown(Shutdown::Both)
    })
}

/// Bytes up to the empty line, and what came behind it; none if it is too long.
fn read_head(client: &mut UnixStream) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; READ_BYTES];
    loop {
        let count = client.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The empty line may begin in what came before.
        let from = bytes.len().saturating_sub(3);
        bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let found =
            bytes.get(from..).unwrap_or_default().windows(4).position(|it| it == b"\r\n\r\n");
        if let Some(at) = found {
            let rest = bytes.split_off(from + at + 4);
            return Ok(Some((bytes, rest)));
        }
        if bytes.len() > PROXY_HEAD_MAX_BYTES {
            return Ok(None);
        }
    }
}

fn understand(head: &[u8], network: &Network) -> Result<Wish, Refusal> {
    let bad = |text: &str| (400, text.to_owned());
    let mut headers = [httparse::EMPTY_HEADER; PROXY_HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        _ => return Err(bad("this is no HTTP request")),
    }
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let wish = if method == "CONNECT" {
        let (host, port) = authority(target, None).ok_or_else(|| bad("CONNECT wants host:port"))?;
        Wish { host, port, head: None }
    } else {
        let target = network.rewritten(target);
        let rest = target.strip_prefix("http://").ok_or_else(|| {
            bad("this is a forward proxy: the address has to begin with http://, or use CONNECT")
        })?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (name, path) = rest.split_at(end);
        let (host, port) =
            authority(name, Some(80)).ok_or_else(|| bad("the address has no host"))?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        let mut head =
            format!("{method} {slash}{path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n")
                .into_bytes();
        for header in request.headers.iter() {
            if !HOP_HEADERS.iter().any(|hop| header.name.eq_ignore_ascii_case(hop)) {
                head.extend_from_slice(header.name.as_bytes());
                head.extend_from_slice(b": ");
                head.extend_from_slice(header.value);
                head.extend_from_slice(b"\r\n");
            }
        }
        head.extend_from_slice(b"\r\n");
        Wish { host, port, head: Some(head) }
    };
    if !network.allows(&wish.host, wish.port) {
        return Err((
            403,
            format!(
                "{}:{} is not among the names that this builder's settings allow (network.allow)",
                wish.host, wish.port
            ),
        ));
    }
    Ok(wish)
}

/// `host:port`, `[address]:port`; users and passwords have no place here.
fn authority(text: &str, default_port: Option<u16>) -> Option<(String, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (text, default_port?),
    };
    let is_valid = !host.is_empty() && !host.contains(['@', '/', ' ']);
    is_valid.then(|| (host.trim_matches(['[', ']']).to_owned(), port))
}

fn dial(wish: &Wish) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (wish.host.as_str(), wish.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(server) => {
                server.set_read_timeout(Some(IDLE_TIMEOUT))?;
                server.set_write_timeout(Some(IDLE_TIMEOUT))?;
                return Ok(server);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn refuse(client: &mut UnixStream, (status, text): Refusal) -> io::Result<()> {
    let reason = match status {
        403 => "Forbidden",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        _ => "Bad Request",
    };
    let length = text.len() + 1;
    write!(
        client,
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nConnection: close\r\n\
         Content-Length: {length}\r\n\r\n{text}\n"
    )
}

#[cfg(test)]
mod tests;
