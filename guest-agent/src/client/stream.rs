//! A streamed exec, seen from the client.

use super::ClientError;
use super::http::Tunnel;
use crate::exec::Report;
use crate::frame::{Frame, Parser};
use crate::limits::{FRAME_PAYLOAD_MAX_BYTES, STDIN_WINDOW_BYTES};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

const READ_BYTES: usize = 32 * 1024;

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// Standard output, or what the terminal shows.
    Stdout(Vec<u8>),
    /// Standard error.
    Stderr(Vec<u8>),
    /// The command ended. The last event.
    Exit(Report),
}

/// A command that runs in the guest. Dropping it ends the command, unless it was asked to go on.
#[derive(Debug)]
pub struct ExecStream {
    tunnel: Tunnel,
    parser: Parser,
    /// What came while the window was awaited.
    events: VecDeque<ExecEvent>,
    window_bytes: usize,
}

/// Signals and sizes for a command, for use on another thread than its stream.
#[derive(Debug)]
pub struct ExecInput(UnixStream);

impl ExecStream {
    pub(super) fn new(tunnel: Tunnel) -> Self {
        let events = VecDeque::new();
        Self { tunnel, parser: Parser::new(), events, window_bytes: STDIN_WINDOW_BYTES }
    }

    /// The next thing the agent says.
    ///
    /// # Errors
    /// The connection broke, took too long, or the agent did not keep to the protocol.
    pub fn next_event(&mut self) -> Result<ExecEvent, ClientError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            self.receive()?;
        }
    }

    /// Reads to the end: the report, standard output and standard error.
    ///
    /// # Errors
    /// As [`ExecStream::next_event`].
    pub fn wait(mut self) -> Result<(Report, Vec<u8>, Vec<u8>), ClientError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next_event()? {
                ExecEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                ExecEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                ExecEvent::Exit(report) => return Ok((report, stdout, stderr)),
            }
        }
    }

    /// Sends bytes to standard input, waiting for the window where necessary. Output that comes
    /// meanwhile is kept for [`ExecStream::next_event`].
    ///
    /// # Errors
    /// As [`ExecStream::next_event`].
    pub fn write_stdin(&mut self, mut bytes: &[u8]) -> Result<(), ClientError> {
        while !bytes.is_empty() {
            while self.window_bytes == 0 {
                self.receive()?;
            }
            let count = bytes.len().min(self.window_bytes).min(FRAME_PAYLOAD_MAX_BYTES);
            let (piece, rest) = bytes.split_at(count);
            self.send(&Frame::Stdin(piece.to_vec()))?;
            self.window_bytes -= count;
            bytes = rest;
        }
        Ok(())
    }

    /// Ends standard input.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn close_stdin(&mut self) -> Result<(), ClientError> {
        self.send(&Frame::StdinEof)
    }

    /// Signals the command's process group.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn signal(&mut self, signal: u8) -> Result<(), ClientError> {
        self.send(&Frame::Signal(signal))
    }

    /// Gives the terminal a new size.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Result<(), ClientError> {
        self.send(&Frame::Resize { rows, columns })
    }

    /// A handle for signals and sizes while another thread waits for events.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn input(&self) -> Result<ExecInput, ClientError> {
        let writer = self.tunnel.writer();
        writer
            .map(ExecInput)
            .map_err(|source| ClientError::Io { attempt: "share a stream", source })
    }

    /// Sends any frame, for tests of what the agent refuses.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send(&mut self, frame: &Frame) -> Result<(), ClientError> {
        send(&mut self.tunnel, frame)
    }

    fn receive(&mut self) -> Result<(), ClientError> {
        let invalid = |what: String| ClientError::Protocol { what };
        let mut buffer = vec![0; READ_BYTES];
        let count = match self.tunnel.read(&mut buffer) {
            // With a time-out on the socket a signal ends the read, whatever its handler asked for.
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => {
                result.map_err(|source| ClientError::Io { attempt: "receive frames", source })?
            }
        };
        if count == 0 {
            return Err(invalid("the stream ended before the command".into()));
        }
        self.parser.feed(buffer.get(..count).unwrap_or_default());
        while let Some(frame) = self.parser.next_frame().map_err(|e| invalid(e.to_string()))? {
            match frame {
                Frame::Stdout(bytes) => self.events.push_back(ExecEvent::Stdout(bytes)),
                Frame::Stderr(bytes) => self.events.push_back(ExecEvent::Stderr(bytes)),
                Frame::Window(bytes) => self.window_bytes += bytes as usize,
                Frame::Exit(json) => {
                    let report =
                        serde_json::from_slice(&json).map_err(|e| invalid(e.to_string()))?;
                    self.events.push_back(ExecEvent::Exit(report));
                }
                other => return Err(invalid(format!("{other:?} from the agent"))),
            }
        }
        Ok(())
    }
}

impl ExecInput {
    /// Signals the command's process group.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn signal(&mut self, signal: u8) -> Result<(), ClientError> {
        send(&mut self.0, &Frame::Signal(signal))
    }

    /// Gives the terminal a new size.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Result<(), ClientError> {
        send(&mut self.0, &Frame::Resize { rows, columns })
    }
}

fn send(writer: &mut impl Write, frame: &Frame) -> Result<(), ClientError> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    writer.write_all(&bytes).map_err(|source| ClientError::Io { attempt: "send a frame", source })
}
