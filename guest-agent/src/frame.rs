//! The frames of `rotifer-stream`, the full-duplex protocol of a streamed exec.
//!
//! ```text
//!  0        1                          5
//!  +--------+--------------------------+-----------------+
//!  | kind   | payload length, u32 BE   | payload ...     |
//!  +--------+--------------------------+-----------------+
//! ```
//!
//! The parser is pure: it is fed bytes as they come and never looks at a clock or a socket. A
//! length beyond [`FRAME_PAYLOAD_MAX_BYTES`] is refused when the header is seen, so what it holds
//! is bounded.

use crate::limits::FRAME_PAYLOAD_MAX_BYTES;

/// The bytes before a payload.
pub const HEADER_BYTES: usize = 5;

const STDIN: u8 = 1;
const STDIN_EOF: u8 = 2;
const SIGNAL: u8 = 3;
const RESIZE: u8 = 4;
const STDOUT: u8 = 17;
const STDERR: u8 = 18;
const WINDOW: u8 = 19;
const EXIT: u8 = 20;

/// One message of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Client: bytes for the process's standard input.
    Stdin(Vec<u8>),
    /// Client: standard input ends here.
    StdinEof,
    /// Client: send this signal to the process group.
    Signal(u8),
    /// Client: the terminal has a new size.
    Resize {
        /// Lines of the terminal.
        rows: u16,
        /// Characters of a line.
        columns: u16,
    },
    /// Agent: bytes of standard output, or of the terminal.
    Stdout(Vec<u8>),
    /// Agent: bytes of standard error.
    Stderr(Vec<u8>),
    /// Agent: so many more bytes of standard input may be sent.
    Window(u32),
    /// Agent: the process ended; JSON. The last frame.
    Exit(Vec<u8>),
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first byte names no kind of frame.
    #[error("frame kind {kind} does not exist")]
    UnknownKind {
        /// The byte found.
        kind: u8,
    },
    /// The header announces more than may be sent at once.
    #[error(
        "frame of kind {kind} announces {length} bytes; at most {FRAME_PAYLOAD_MAX_BYTES} are allowed"
    )]
    TooLong {
        /// The kind of the frame.
        kind: u8,
        /// The length announced.
        length: u32,
    },
    /// The payload has not the length that its kind requires.
    #[error("frame of kind {kind} has a payload of {length} bytes, which its kind does not allow")]
    WrongLength {
        /// The kind of the frame.
        kind: u8,
        /// The length found.
        length: usize,
    },
}

impl Frame {
    /// Appends the frame to `out`.
    ///
    /// Payloads longer than [`FRAME_PAYLOAD_MAX_BYTES`] are for the caller to split; the other side
    /// refuses them.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let resize;
        let window;
        let (kind, payload): (u8, &[u8]) = match self {
            Frame::Stdin(bytes) => (STDIN, bytes),
            Frame::StdinEof => (STDIN_EOF, &[]),
            Frame::Signal(number) => (SIGNAL, std::slice::from_ref(number)),
            Frame::Resize { rows, columns } => {
                let [r0, r1] = rows.to_be_bytes();
                let [c0, c1] = columns.to_be_bytes();
                resize = [r0, r1, c0, c1];
                (RESIZE, &resize)
            }
            Frame::Stdout(bytes) => (STDOUT, bytes),
            Frame::Stderr(bytes) => (STDERR, bytes),
            Frame::Window(bytes) => {
                window = bytes.to_be_bytes();
                (WINDOW, &window)
            }
            Frame::Exit(json) => (EXIT, json),
        };
        encode_raw(kind, payload, out);
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Frame, FrameError> {
        let wrong = FrameError::WrongLength { kind, length: payload.len() };
        match (kind, payload) {
            (STDIN, bytes) => Ok(Frame::Stdin(bytes.to_vec())),
            (STDIN_EOF, []) => Ok(Frame::StdinEof),
            (SIGNAL, [number]) => Ok(Frame::Signal(*number)),
            (RESIZE, [r0, r1, c0, c1]) => Ok(Frame::Resize {
                rows: u16::from_be_bytes([*r0, *r1]),
                columns: u16::from_be_bytes([*c0, *c1]),
            }),
            (STDOUT, bytes) => Ok(Frame::Stdout(bytes.to_vec())),
            (STDERR, bytes) => Ok(Frame::Stderr(bytes.to_vec())),
            (WINDOW, [a, b, c, d]) => Ok(Frame::Window(u32::from_be_bytes([*a, *b, *c, *d]))),
            (EXIT, json) => Ok(Frame::Exit(json.to_vec())),
            (STDIN_EOF | SIGNAL | RESIZE | WINDOW, _) => Err(wrong),
            _ => Err(FrameError::UnknownKind { kind }),
        }
    }
}

/// Appends a frame of output without copying it into a [`Frame`] first.
pub(crate) fn encode_output(is_stderr: bool, bytes: &[u8], out: &mut Vec<u8>) {
    encode_raw(if is_stderr { STDERR } else { STDOUT }, bytes, out);
}

fn encode_raw(kind: u8, payload: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Takes bytes in any pieces and gives frames.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: Vec<u8>,
    consumed: usize,
}

impl Parser {
    /// A parser that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream. Call [`Parser::next_frame`] until it gives `None` before
    /// feeding more: only then is the memory of the parser bounded by one frame and one piece.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, `None` if more bytes are needed.
    ///
    /// # Errors
    /// The stream cannot be followed any further; close it.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let pending = self.buffer.get(self.consumed..).unwrap_or_default();
        let Some((&[kind, a, b, c, d], rest)) = pending.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]);
        let length_bytes = length as usize;
        if !matches!(kind, STDIN..=RESIZE | STDOUT..=EXIT) {
            return Err(FrameError::UnknownKind { kind });
        }
        if length_bytes > FRAME_PAYLOAD_MAX_BYTES {
            return Err(FrameError::TooLong { kind, length });
        }
        let Some(payload) = rest.get(..length_bytes) else { return Ok(None) };
        let frame = Frame::decode(kind, payload)?;
        self.consumed += HEADER_BYTES + length_bytes;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests;
