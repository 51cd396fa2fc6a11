//! HTTP over Unix sockets: to a VMM's API, and through a VMM's vsock device to a guest.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::future;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The port on which a guest's agent serves, and on which it tells the host that it does.
pub const AGENT_PORT: u32 = 1024;
/// The longest answer that is read; a guest may send anything.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The longest head of a tunnel's answer.
const HEAD_BYTES_MAX: usize = 4 << 10;
/// How long a guest may take to let somebody in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends one request and reads the whole answer. Dropping the future drops the connection.
pub async fn ask(
    stream: UnixStream,
    method: Method,
    host: &str,
    path: &str,
    body: Option<&Value>,
) -> io::Result<(StatusCode, Bytes)> {
    let mut request = Request::builder().method(method).uri(path).header("host", host);
    let bytes = match body {
        Some(value) => {
            request = request.header("content-type", "application/json");
            Bytes::from(value.to_string())
        }
        None => Bytes::new(),
    };
    send(stream, request.body(Full::new(bytes)).map_err(io::Error::other)?).await
}

/// Writes a file inside of a guest, through its agent.
pub async fn write_file(socket: &Path, path: &str, text: String) -> io::Result<()> {
    let request = Request::put(format!("/v1/files?path={path}&mode=644&mkdir=true"))
        .header("host", "agent")
        .body(Full::from(text))
        .map_err(io::Error::other)?;
    match send(agent(socket).await?, request).await? {
        (StatusCode::CREATED, _) => Ok(()),
        (status, answer) => {
            let reason = String::from_utf8_lossy(&answer);
            Err(io::Error::other(format!("the agent refuses {path} ({status}): {reason}")))
        }
    }
}

async fn send(
    stream: UnixStream,
    request: Request<Full<Bytes>>,
) -> io::Result<(StatusCode, Bytes)> {
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(io::Error::other)?;
    let answer = async move {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let (head, body) = response.into_parts();
        let body =
            Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(io::Error::other)?;
        Ok((head.status, body.to_bytes()))
    };
    // The connection ends when the sender is dropped, and has no error of its own to tell.
    let (answer, _ended) = future::join(answer, connection).await;
    answer
}

/// Connects to a guest's agent through its VMM's vsock socket.
pub async fn agent(socket: &Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes()).await?;
    let answer = read_until(&mut stream, b"\n").await?;
    if answer.starts_with(b"OK ") {
        return Ok(stream);
    }
    Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the VMM does not reach the agent"))
}

/// Opens a byte stream to a TCP port inside of a guest, through its agent.
pub async fn connect(socket: &Path, port: u16) -> io::Result<UnixStream> {
    let open = async {
        let mut stream = agent(socket).await?;
        let request = format!("CONNECT localhost:{port} HTTP/1.1\r\nhost: agent\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        // What follows the head is the app's, so not a byte more is read.
        let head = read_until(&mut stream, b"\r\n\r\n").await?;
        match head.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3)) {
            Some(b"200") => Ok(stream),
            Some(b"504") => Err(io::ErrorKind::TimedOut.into()),
            _ => Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("nobody takes connections to port {port}"),
            )),
        }
    };
    timeout(CONNECT_TIMEOUT, open).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn read_until(stream: &mut UnixStream, end: &[u8]) -> io::Result<Vec<u8>> {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        if read.len() >= HEAD_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer's head is too long",
            ));
        }
        read.push(stream.read_u8().await?);
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// Answers one connection: after each of these ends it writes what belongs to it.
    fn guest<const N: usize>(socket: &Path, answers: [(&'static [u8], &'static [u8]); N]) {
        let listener = UnixListener::bind(socket).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for (end, answer) in answers {
                read_until(&mut stream, end).await.unwrap();
                stream.write_all(answer).await.unwrap();
            }
        });
    }

    #[tokio::test]
    async fn what_the_app_says_first_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("v");
        guest(&socket, [(b"\n", b"OK 7\n"), (b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nhello")]);
        let mut stream = connect(&socket, 8080).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
    }

    #[tokio::test]
    async fn where_nobody_listens_the_connection_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("v");
        let refused = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n";
        guest(&socket, [(b"\n", b"OK 7\n"), (b"\r\n\r\n", refused)]);
        let error = connect(&socket, 1).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_guest_that_never_ends_its_head_is_not_listened_to() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("v");
        static LONG: [u8; HEAD_BYTES_MAX + 1] = [b'x'; HEAD_BYTES_MAX + 1];
        guest(&socket, [(b"\n", b"OK 7\n"), (b"\r\n\r\n", &LONG)]);
        let error = connect(&socket, 1).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn an_answer_without_end_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("v");
        static LONG: [u8; ANSWER_BYTES_MAX + 1] = [b'x'; ANSWER_BYTES_MAX + 1];
        guest(&socket, [(b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"), (b"", &LONG)]);
        let stream = UnixStream::connect(&socket).await.unwrap();
        ask(stream, Method::GET, "x", "/", None).await.unwrap_err();
    }
}
