//! HTTP/1.1 as far as the API needs it: bytes in, one message out. No state, no I/O.
//!
//! A body is announced by `Content-Length` only. Everything has a bound, and a message that
//! breaks one ends its connection, since nobody knows where the next message would begin.

use std::str;

/// The most bytes of a request line with its headers.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// The most bytes of a body: Firecracker's bound.
pub const BODY_BYTES_MAX: usize = 51_200;
/// The most headers.
pub const HEADERS_MAX: usize = 64;

/// What a buffer begins with.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// The beginning of a message.
    Partial {
        /// Nothing new can be said before the buffer has this many bytes.
        needed_bytes: usize,
        /// Whether the client waits for `100 Continue` before it sends the body.
        continue_expected: bool,
    },
    /// A whole message.
    Complete(Message<'a>),
}

/// A request as HTTP has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// What to do.
    pub method: Method,
    /// On what, beginning with `/`.
    pub path: &'a str,
    /// May be empty.
    pub body: &'a [u8],
    /// Whether another message may follow.
    pub keep_alive: bool,
    /// How many bytes of the buffer the message takes.
    pub message_bytes: usize,
}

/// The methods the API uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Ask.
    Get,
    /// Set.
    Put,
    /// Change.
    Patch,
    /// End.
    Delete,
}

impl Method {
    /// As HTTP writes it.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        }
    }
}

/// Why the bytes are not a message of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Error {
    #[error("the request is not HTTP/1.1")]
    Malformed {
        #[source]
        source: httparse::Error,
    },
    #[error("the request's head is larger than {HEAD_BYTES_MAX} bytes")]
    HeadTooLarge,
    #[error("the request's body of {body_bytes} bytes is larger than {BODY_BYTES_MAX} bytes")]
    BodyTooLarge { body_bytes: u64 },
    #[error("the method {method} is not supported; use GET, PUT, PATCH or DELETE")]
    Method { method: String },
    #[error("the request target is not a path")]
    Target,
    #[error("Content-Length is not a number, or is there twice")]
    ContentLength,
    #[error("Transfer-Encoding is not supported; send Content-Length")]
    TransferEncoding,
    #[error("the expectation is not supported; only 100-continue is")]
    Expectation,
}

/// Reads the message that `buffer` begins with.
pub fn parse(buffer: &[u8]) -> Result<Progress<'_>, Error> {
    let head = buffer.get(..HEAD_BYTES_MAX).unwrap_or(buffer);
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head_bytes = match request.parse(head).map_err(|source| Error::Malformed { source })? {
        httparse::Status::Complete(head_bytes) => head_bytes,
        httparse::Status::Partial if buffer.len() >= HEAD_BYTES_MAX => {
            return Err(Error::HeadTooLarge);
        }
        httparse::Status::Partial => {
            let needed_bytes = buffer.len() + 1;
            return Ok(Progress::Partial { needed_bytes, continue_expected: false });
        }
    };
    let fields = Fields::read(request.headers)?;
    let method = method(request.method.unwrap_or_default())?;
    let path = path(request.path.unwrap_or_default())?;
    let message_bytes = head_bytes + fields.body_bytes;
    match buffer.get(head_bytes..message_bytes) {
        None => Ok(Progress::Partial {
            needed_bytes: message_bytes,
            continue_expected: fields.continue_expected && buffer.len() == head_bytes,
        }),
        Some(body) => Ok(Progress::Complete(Message {
            method,
            path,
            body,
            keep_alive: fields.keep_alive.unwrap_or(request.version == Some(1)),
            message_bytes,
        })),
    }
}

/// What the headers say that concerns us.
struct Fields {
    /// At most [`BODY_BYTES_MAX`].
    body_bytes: usize,
    continue_expected: bool,
    /// Nothing when left to the version of HTTP.
    keep_alive: Option<bool>,
}

impl Fields {
    fn read(headers: &[httparse::Header<'_>]) -> Result<Self, Error> {
        let mut body_bytes = None;
        let mut continue_expected = false;
        let mut keep_alive = None;
        for header in headers {
            let value = header.value.trim_ascii();
            if header.name.eq_ignore_ascii_case("content-length") {
                if body_bytes.replace(content_length(value)?).is_some() {
                    return Err(Error::ContentLength);
                }
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(Error::TransferEncoding);
            } else if header.name.eq_ignore_ascii_case("expect") {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Error::Expectation);
                }
                continue_expected = true;
            } else if header.name.eq_ignore_ascii_case("connection") {
                for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    if option.eq_ignore_ascii_case(b"close") {
                        keep_alive = Some(false);
                    } else if option.eq_ignore_ascii_case(b"keep-alive") {
                        keep_alive = keep_alive.or(Some(true));
                    }
                }
            }
        }
        Ok(Self { body_bytes: body_bytes.unwrap_or(0), continue_expected, keep_alive })
    }
}

fn content_length(value: &[u8]) -> Result<usize, Error> {
    // Digits only: `parse` would also take a sign.
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Error::ContentLength);
    }
    let text = str::from_utf8(value).map_err(|_| Error::ContentLength)?;
    let body_bytes = text.parse().unwrap_or(u64::MAX);
    match usize::try_from(body_bytes) {
        Ok(bytes) if bytes <= BODY_BYTES_MAX => Ok(bytes),
        _ => Err(Error::BodyTooLarge { body_bytes }),
    }
}

fn method(name: &str) -> Result<Method, Error> {
    const SHOWN_CHARS_MAX: usize = 32;
    match name {
        "GET" => Ok(Method::Get),
        "PUT" => Ok(Method::Put),
        "PATCH" => Ok(Method::Patch),
        "DELETE" => Ok(Method::Delete),
        name => Err(Error::Method { method: name.chars().take(SHOWN_CHARS_MAX).collect() }),
    }
}

/// `/a`, or `http://host/a`.
fn path(target: &str) -> Result<&str, Error> {
    if target.starts_with('/') {
        return Ok(target);
    }
    let rest = target.strip_prefix("http://").ok_or(Error::Target)?;
    Ok(rest.find('/').map_or("/", |at| &rest[at..]))
}
