//! One client: bytes read, requests answered, bytes waiting to be written.
//!
//! ```text
//!             +------------- input -------------+   requests   +---- output ----+
//!  socket --> | whole messages | a partial one  | -----------> | not yet taken  | --> socket
//!             +---------------------------------+              +----------------+
//! ```
//! While the client does not take its answers, nothing more is read from it.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use super::http::{self, BODY_BYTES_MAX, HEAD_BYTES_MAX, Progress};
use super::request::Request;
use super::response::Response;
use super::route::route;
use crate::config::report;

/// One message fits whole.
const INPUT_BYTES_MAX: usize = HEAD_BYTES_MAX + BODY_BYTES_MAX;
/// How much is read at a time, so that a talkative client does not keep the others waiting.
const READ_BYTES: usize = 16 << 10;
/// With this much waiting to be written, no further request is looked at.
const OUTPUT_BYTES_HIGH: usize = 16 << 10;

/// Answers requests.
pub(super) type Handler<'a> = dyn FnMut(Request) -> Response + 'a;

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    /// Nothing new can be said about the input before it has this many bytes.
    needed_bytes: usize,
    output: Vec<u8>,
    reading: Reading,
}

/// Whether more requests come from this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Open,
    /// The client has sent its last byte; whole requests of the input are still answered.
    AtEnd,
    /// It said, or we did, that the last request was the last.
    Done,
}

/// What the server should wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    Read,
    Write,
    /// Nothing: the connection is over.
    Close,
}

impl Connection {
    /// `stream` must not block.
    pub(super) fn new(stream: UnixStream) -> Self {
        let (input, output) = (Vec::new(), Vec::new());
        Self { stream, input, needed_bytes: 1, output, reading: Reading::Open }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Reads, answers and writes as far as it goes without waiting.
    pub(super) fn advance(&mut self, handler: &mut Handler<'_>) -> Interest {
        if self.output.is_empty() && self.reading == Reading::Open && !self.fill() {
            return Interest::Close;
        }
        loop {
            self.answer(handler);
            if !self.flush() {
                return Interest::Close;
            }
            if !self.output.is_empty() {
                return Interest::Write;
            }
            // The output may have stopped us with whole messages still in the input.
            if self.reading == Reading::Done || self.input.len() < self.needed_bytes {
                break;
            }
        }
        match self.reading {
            Reading::Open => Interest::Read,
            Reading::AtEnd | Reading::Done => Interest::Close,
        }
    }

    /// Reads once; false when the connection is broken.
    fn fill(&mut self) -> bool {
        let have = self.input.len();
        let want = READ_BYTES.min(INPUT_BYTES_MAX - have);
        self.input.resize(have + want, 0);
        let result = loop {
            match self.stream.read(&mut self.input[have..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.input.truncate(have + *result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) => self.reading = Reading::AtEnd,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
        true
    }

    /// Answers the whole messages of the input, until the output is full.
    fn answer(&mut self, handler: &mut Handler<'_>) {
        let mut used = 0;
        while self.reading != Reading::Done && self.output.len() < OUTPUT_BYTES_HIGH {
            let input = &self.input[used..];
            if input.len() < self.needed_bytes {
                break;
            }
            match http::parse(input) {
                Ok(Progress::Complete(message)) => {
                    used += message.message_bytes;
                    self.needed_bytes = 1;
                    let response = match route(message.method, message.path, message.body) {
                        Ok(request) => handler(request),
                        Err(error) => Response::Refused(report(&error)),
                    };
                    if !message.keep_alive {
                        self.reading = Reading::Done;
                    }
                    response.encode(message.keep_alive, &mut self.output);
                }
                Ok(Progress::Partial { needed_bytes, continue_expected }) => {
                    self.needed_bytes = needed_bytes;
                    if continue_expected {
                        self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                    }
                }
                Err(error) => {
                    self.reading = Reading::Done;
                    Response::Refused(report(&error)).encode(false, &mut self.output);
                }
            }
        }
        self.input.drain(..used);
        if self.input.is_empty() {
            // An idle client costs no memory.
            self.input = Vec::new();
        }
    }

    /// Writes what the client takes; false when the connection is broken.
    fn flush(&mut self) -> bool {
        let mut written = 0;
        while written < self.output.len() {
            match self.stream.write(&self.output[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        self.output.drain(..written);
        true
    }
}
