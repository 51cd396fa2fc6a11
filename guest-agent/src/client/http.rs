//! As much of HTTP/1.1 as the agent speaks, over a Unix socket.

use super::ClientError;
use serde::de::DeserializeOwned;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The longest line of a head.
const LINE_MAX_BYTES: u64 = 16 * 1024;
/// The most header lines.
const HEADERS_MAX_COUNT: usize = 100;
/// The longest answer that is read into memory.
const TEXT_MAX_BYTES: u64 = 64 * 1024 * 1024;
const BUFFER_BYTES: usize = 64 * 1024;

/// A connection on which a request is sent.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<UnixStream>,
}

/// Bytes to and from the guest after a request that switched away from HTTP.
#[derive(Debug)]
pub struct Tunnel {
    stream: BufReader<UnixStream>,
}

/// An answer; reading it gives the body.
#[derive(Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    stream: BufReader<UnixStream>,
    framing: Framing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length { left_bytes: u64 },
    Chunked { left_bytes: u64 },
    UntilClose,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Whole,
    Refused,
}

fn io_error(attempt: &'static str) -> impl Fn(io::Error) -> ClientError {
    move |source| ClientError::Io { attempt, source }
}

fn invalid(what: impl Into<String>) -> ClientError {
    ClientError::Protocol { what: what.into() }
}

impl Connection {
    pub(super) fn open(
        socket: &Path,
        port: Option<u32>,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let fail = |source| ClientError::Connect { socket: socket.into(), source };
        let stream = UnixStream::connect(socket).map_err(fail)?;
        stream.set_read_timeout(Some(timeout)).map_err(fail)?;
        stream.set_write_timeout(Some(timeout)).map_err(fail)?;
        let mut connection = Self { stream: BufReader::with_capacity(BUFFER_BYTES, stream) };
        if let Some(port) = port {
            connection.send(format!("CONNECT {port}\n").as_bytes())?;
            let answer = read_line(&mut connection.stream)?;
            if !answer.starts_with("OK ") {
                return Err(ClientError::Refused { socket: socket.into(), port, answer });
            }
        }
        Ok(connection)
    }

    /// Sends bytes, or finds that the agent has closed its end: it refuses early, and its answer,
    /// which is read next, says why.
    fn send(&mut self, bytes: &[u8]) -> Result<Sent, ClientError> {
        match self.stream.get_mut().write_all(bytes) {
            Ok(()) => Ok(Sent::Whole),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Sent::Refused),
            Err(error) => Err(io_error("send a request")(error)),
        }
    }

    pub(super) fn send_request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(), ClientError> {
        let mut request = format!("{method} {target} HTTP/1.1\r\nhost: agent\r\n");
        if method != "CONNECT" {
            request.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if !headers.iter().any(|(name, _)| *name == "connection") && method != "CONNECT" {
            request.push_str("connection: close\r\n");
        }
        request.push_str("\r\n");
        let mut request = request.into_bytes();
        request.extend_from_slice(body);
        self.send(&request).map(drop)
    }

    pub(super) fn send_stream(
        &mut self,
        method: &str,
        target: &str,
        source: impl Read,
        length_bytes: u64,
    ) -> Result<(), ClientError> {
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\
             content-length: {length_bytes}\r\n\r\n"
        );
        self.send(head.as_bytes())?;
        let mut source = BufReader::with_capacity(BUFFER_BYTES, source.take(length_bytes));
        loop {
            let piece = source.fill_buf().map_err(io_error("read what is to be sent"))?;
            if piece.is_empty() {
                return Ok(());
            }
            let count = piece.len();
            if self.send(piece)? == Sent::Refused {
                return Ok(());
            }
            source.consume(count);
        }
    }

    pub(super) fn response(mut self) -> Result<Response, ClientError> {
        let (status, headers) = read_head(&mut self.stream)?;
        let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let framing = if header("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
            Framing::Chunked { left_bytes: 0 }
        } else if let Some(length) = header("content-length") {
            let left_bytes = length.parse().map_err(|_| invalid("content-length is no number"))?;
            Framing::Length { left_bytes }
        } else {
            Framing::UntilClose
        };
        Ok(Response { status, headers, stream: self.stream, framing })
    }

    /// Expects that the agent switches to another protocol, and gives its bytes.
    pub(super) fn into_upgraded(self, expected_status: u16) -> Result<Tunnel, ClientError> {
        let response = self.response()?;
        if response.status == expected_status {
            return Ok(Tunnel { stream: response.stream });
        }
        let status = response.status;
        match response.good() {
            Err(error) => Err(error),
            Ok(_) => Err(invalid(format!("status {status} in place of {expected_status}"))),
        }
    }
}

fn read_line(stream: &mut BufReader<UnixStream>) -> Result<String, ClientError> {
    let mut line = Vec::new();
    stream
        .take(LINE_MAX_BYTES)
        .read_until(b'\n', &mut line)
        .map_err(io_error("receive an answer"))?;
    if line.pop() != Some(b'\n') {
        return Err(invalid(format!("the head breaks off after {} bytes", line.len())));
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map_err(|_| invalid("the head is not UTF-8"))
}

type Head = (u16, Vec<(String, String)>);

fn read_head(stream: &mut BufReader<UnixStream>) -> Result<Head, ClientError> {
    let status_line = read_line(stream)?;
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(|| invalid(format!("status line {status_line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            return Ok((status, headers));
        }
        if headers.len() == HEADERS_MAX_COUNT {
            return Err(invalid("too many headers"));
        }
        let (name, value) =
            line.split_once(':').ok_or_else(|| invalid(format!("header line {line:?}")))?;
        headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
    }
}

impl Response {
    /// The answer if its status is a good one, the agent's error otherwise.
    pub(super) fn good(self) -> Result<Self, ClientError> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let status = self.status;
        let body: serde_json::Value = self.json()?;
        let text = |key: &str| {
            let value = body.get("error").and_then(|error| error.get(key)?.as_str());
            value.unwrap_or_default().to_owned()
        };
        Err(ClientError::Agent { status, code: text("code"), message: text("message") })
    }

    /// A header by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The whole body as text.
    ///
    /// # Errors
    /// It breaks off, or is no text.
    pub fn text(self) -> Result<String, ClientError> {
        let mut text = String::new();
        self.take(TEXT_MAX_BYTES)
            .read_to_string(&mut text)
            .map_err(io_error("receive an answer"))?;
        Ok(text)
    }

    /// The whole body as JSON.
    ///
    /// # Errors
    /// It breaks off, or is not such JSON.
    pub fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let text = self.text()?;
        serde_json::from_str(&text).map_err(|error| invalid(format!("{error} in {text:?}")))
    }

    /// The connection's last bytes, so that tests can hang up in the middle.
    #[must_use]
    pub fn into_socket(self) -> UnixStream {
        self.stream.into_inner()
    }

    /// Reads the size line of the next chunk.
    fn next_chunk(&mut self) -> Result<u64, ClientError> {
        let line = read_line(&mut self.stream)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        u64::from_str_radix(size, 16).map_err(|_| invalid(format!("chunk size {line:?}")))
    }

    fn read_some(&mut self, buffer: &mut [u8], left_bytes: u64) -> io::Result<u64> {
        let room = usize::try_from(left_bytes).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.stream.read(buffer.get_mut(..room).unwrap_or_default())?;
        if count == 0 && room > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer breaks off"));
        }
        Ok(count as u64)
    }
}

impl Read for Response {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = match self.framing {
            Framing::Done | Framing::Length { left_bytes: 0 } => 0,
            Framing::UntilClose => return self.stream.read(buffer),
            Framing::Length { left_bytes } => {
                let count = self.read_some(buffer, left_bytes)?;
                self.framing = Framing::Length { left_bytes: left_bytes - count };
                count
            }
            Framing::Chunked { left_bytes: 0 } => {
                let size_bytes = self.next_chunk().map_err(io::Error::other)?;
                self.framing = match size_bytes {
                    0 => Framing::Done,
                    left_bytes => Framing::Chunked { left_bytes },
                };
                return self.read(buffer);
            }
            Framing::Chunked { left_bytes } => {
                let count = self.read_some(buffer, left_bytes)?;
                if left_bytes == count {
                    // The line that ends a chunk's data.
                    read_line(&mut self.stream).map_err(io::Error::other)?;
                }
                self.framing = Framing::Chunked { left_bytes: left_bytes - count };
                count
            }
        };
        usize::try_from(count).map_err(io::Error::other)
    }
}

impl Tunnel {
    /// Ends the direction to the guest; the other goes on.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn finish_writing(&mut self) -> io::Result<()> {
        self.stream.get_mut().shutdown(Shutdown::Write)
    }

    /// A second handle for writing, for use on another thread.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn writer(&self) -> io::Result<UnixStream> {
        self.stream.get_ref().try_clone()
    }
}

impl Read for Tunnel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for Tunnel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.get_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.get_mut().flush()
    }
}
