//! What a client and the emulated host say to each other.
//!
//! A client says `Hello`, waits for `Ready`, says `Start`, and then both stream until `Exit`.
//! The end of the connection ends the job.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::frame::{Frame, PAYLOAD_MAX_BYTES};

/// Standard streams travel in pieces of at most this size.
pub const CHUNK_BYTES: usize = 16 << 10;
/// A client sends at most this much input that the host has not reported as [`Message::Taken`].
pub const STDIN_WINDOW_BYTES: usize = 256 << 10;
/// Ports of the emulated host, thus jobs that may run at once.
pub const PORT_COUNT: usize = 24;

/// A directory of the build machine that is mounted under the same path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The 9p mount tag.
    pub tag: String,
    /// Absolute.
    pub path: String,
}

/// What a host that was frozen in a file cannot know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Fresh randomness for the kernel.
    pub seed: [u8; 32],
    /// Mounted at the first contact.
    pub shares: Vec<Share>,
}

/// Rows and columns of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines of text.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A command to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The program, looked up in `PATH`, and its arguments.
    pub argv: Vec<String>,
    /// Added to the host's own environment.
    pub environment: Vec<(String, String)>,
    /// Where it runs.
    pub directory: String,
    /// A terminal of that size instead of pipes.
    pub terminal: Option<Size>,
    /// Whether what the command left running is killed when it ends.
    pub kill_leftovers: bool,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself, with that status.
    Code(i32),
    /// By that signal.
    Signal(i32),
}

/// One message, in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Client: I am here.
    Hello(Hello),
    /// Host: the shares are mounted, say what to run.
    Ready,
    /// Client: run this.
    Start(Job),
    /// Client: input for the command.
    Stdin(Vec<u8>),
    /// Client: no more input.
    StdinEnd,
    /// Host: so many bytes of input went into the command.
    Taken(u32),
    /// Client: send this signal to the command.
    Signal(i32),
    /// Client: the terminal has a new size.
    Resize(Size),
    /// Client: write everything to disk and power off.
    PowerOff,
    /// Host: output.
    Stdout(Vec<u8>),
    /// Host: error output.
    Stderr(Vec<u8>),
    /// Host: the command ended; nothing follows.
    Exit(Exit),
    /// Host: the command could not be run; nothing follows.
    Failed(String),
}

impl Message {
    /// The frame to send for `session`.
    ///
    /// # Errors
    /// The message is larger than a frame can be.
    pub fn into_frame(self, session: u32) -> Result<Frame, TooLarge> {
        let (kind, payload) = match self {
            Self::Hello(hello) => (1, pack(&hello)),
            Self::Ready => (2, Vec::new()),
            Self::Start(job) => (3, pack(&job)),
            Self::Stdin(bytes) => (4, bytes),
            Self::StdinEnd => (5, Vec::new()),
            Self::Taken(count) => (6, pack(&count)),
            Self::Signal(number) => (7, pack(&number)),
            Self::Resize(size) => (8, pack(&size)),
            Self::PowerOff => (9, Vec::new()),
            Self::Stdout(bytes) => (10, bytes),
            Self::Stderr(bytes) => (11, bytes),
            Self::Exit(exit) => (12, pack(&exit)),
            Self::Failed(text) => (13, text.into_bytes()),
        };
        if payload.len() > PAYLOAD_MAX_BYTES {
            return Err(TooLarge { bytes: payload.len() });
        }
        Ok(Frame { kind, session, payload })
    }

    /// What a frame says; `None` if this version does not know it.
    #[must_use]
    pub fn from_frame(frame: Frame) -> Option<Self> {
        let payload = frame.payload;
        Some(match frame.kind {
            1 => Self::Hello(unpack(&payload)?),
            2 => Self::Ready,
            3 => Self::Start(unpack(&payload)?),
            4 => Self::Stdin(payload),
            5 => Self::StdinEnd,
            6 => Self::Taken(unpack(&payload)?),
            7 => Self::Signal(unpack(&payload)?),
            8 => Self::Resize(unpack(&payload)?),
            9 => Self::PowerOff,
            10 => Self::Stdout(payload),
            11 => Self::Stderr(payload),
            12 => Self::Exit(unpack(&payload)?),
            13 => Self::Failed(String::from_utf8_lossy(&payload).into_owned()),
            _ => return None,
        })
    }
}

/// A message does not fit into a frame.
#[derive(Debug, thiserror::Error)]
#[error("the command with its environment has {bytes} bytes; {PAYLOAD_MAX_BYTES} is the most")]
pub struct TooLarge {
    bytes: usize,
}

fn pack<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data always serialises into memory")
}

fn unpack<T: DeserializeOwned>(payload: &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(payload).ok()?;
    rest.is_empty().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_its_frame() {
        let job = Job {
            argv: vec!["echo".into(), "ä".into()],
            environment: vec![("A".into(), "1".into())],
            directory: "/tmp".into(),
            terminal: Some(Size { rows: 24, columns: 80 }),
            kill_leftovers: true,
        };
        let share = Share { tag: "t".into(), path: "/x".into() };
        let hello = Hello { time_ns: 5, seed: [7; 32], shares: vec![share] };
        let messages = [
            Message::Hello(hello),
            Message::Ready,
            Message::Start(job),
            Message::Stdin(vec![0, 255]),
            Message::StdinEnd,
            Message::Taken(9),
            Message::Signal(15),
            Message::Resize(Size { rows: 1, columns: 2 }),
            Message::PowerOff,
            Message::Stdout(vec![1]),
            Message::Stderr(vec![2]),
            Message::Exit(Exit::Signal(9)),
            Message::Failed("no".into()),
        ];
        for message in messages {
            let frame = message.clone().into_frame(3).unwrap();
            assert_eq!(Message::from_frame(frame), Some(message));
        }
    }

    #[test]
    fn garbage_is_no_message() {
        for kind in [0, 1, 3, 6, 12, 14, 255] {
            let frame = Frame { kind, session: 0, payload: vec![0xff; 11] };
            assert_eq!(Message::from_frame(frame), None, "kind {kind}");
        }
    }
}
