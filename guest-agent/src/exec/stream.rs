//! A command as a full-duplex stream of frames.
//!
//! The agent always reads what the client sends, so that a signal overtakes input that the process
//! does not take, and a client that has gone is noticed at once. That costs bounded memory because
//! the client may only send as much input as the window allows. Output is read from the process
//! only as fast as the client takes it: then the process waits, not the agent's memory.

use super::output::{Event, Output};
use super::{ProcessGroup, Report, Running};
use crate::frame::{Frame, FrameError, Parser, encode_output};
use crate::limits::{STDIN_WINDOW_BYTES, STREAM_CLOSE_TIMEOUT};
use crate::process::pipe::Pipe;
use crate::process::spawn::{WindowSize, set_window_size};
use std::cell::{Cell, RefCell};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, Notify};

const READ_BYTES: usize = 16 * 1024;
/// What a terminal takes for the end of its input: control-D.
const TERMINAL_EOF: u8 = 4;

/// Why a stream ended before its command.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The client closed its end or the connection broke.
    #[error("the client has gone")]
    Gone,
    /// The client sent bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The client sent a frame that only agents send.
    #[error("the client sent a frame that only agents send")]
    WrongWay,
    /// The client sent more input than the window allows.
    #[error("the client sent more input than the window of {STDIN_WINDOW_BYTES} bytes allows")]
    Window,
}

/// Where frames to the client go, one at a time.
struct Sender<W> {
    writer: Mutex<W>,
    /// Nobody takes them any more.
    gone: Event,
}

/// Input on its way from the client to the process.
#[derive(Default)]
struct Input {
    /// Not yet taken by [`feed`].
    waiting: RefCell<Vec<u8>>,
    /// Not yet granted back to the client.
    outstanding_bytes: Cell<usize>,
    ended: Cell<bool>,
    changed: Notify,
}

/// Serves the stream until the command ends or the client goes. A client that goes takes the
/// process group with it, unless it asked otherwise.
///
/// # Errors
/// The client went first or broke the protocol.
pub async fn serve<S: AsyncRead + AsyncWrite>(
    client: S,
    mut running: Running,
) -> Result<Report, StreamError> {
    let (mut reader, writer) = tokio::io::split(client);
    let sender = Sender { writer: Mutex::new(writer), gone: Event::default() };
    let (input, ended) = (Input::default(), Event::default());
    let (stdin, terminal) = (running.pipes.stdin.take(), running.pipes.terminal.take());
    let (stdout, stderr) = (running.pipes.stdout.take(), running.pipes.stderr.take());
    let group = running.group();

    let process = async {
        let report = running.ended().await;
        ended.set();
        report
    };
    let command = async {
        let stdout = stdout.as_ref().or(terminal.as_ref());
        let pump_stdout = pump(stdout, false, &sender, &ended);
        tokio::join!(process, pump_stdout, pump(stderr.as_ref(), true, &sender, &ended)).0
    };
    tokio::pin!(command);
    let cause = tokio::select! {
        report = &mut command => {
            bid_farewell(&sender, &mut reader, report).await;
            return Ok(report);
        }
        error = read_client(&mut reader, &input, &group, terminal.as_ref()) => error,
        never = feed(stdin, terminal.as_ref(), &input, &sender) => match never {},
        () = sender.gone.wait() => StreamError::Gone,
    };
    sender.gone.set();
    if group.keeps_running() {
        command.await;
    }
    Err(cause)
}

impl<W: AsyncWrite + Unpin> Sender<W> {
    /// Sends a frame, or drops it if the client has gone.
    async fn send(&self, frame: &[u8]) {
        let write = async { self.writer.lock().await.write_all(frame).await };
        tokio::select! {
            biased;
            () = self.gone.wait() => {}
            written = write => if written.is_err() { self.gone.set() },
        }
    }
}

/// Forwards output until it ends; when the client has gone, the output is read all the same, so
/// that a command which outlives its client does not block on a full pipe.
async fn pump<W: AsyncWrite + Unpin>(
    pipe: Option<&Pipe>,
    is_stderr: bool,
    sender: &Sender<W>,
    ended: &Event,
) {
    let Some(pipe) = pipe else { return };
    let mut output = Output::new(pipe, ended);
    let mut buffer = vec![0; READ_BYTES];
    let mut frame = Vec::new();
    while let Some(bytes) = output.next(&mut buffer).await {
        frame.clear();
        encode_output(is_stderr, bytes, &mut frame);
        sender.send(&frame).await;
    }
}

/// Takes the client's frames until it goes or errs.
async fn read_client(
    reader: &mut (impl AsyncRead + Unpin),
    input: &Input,
    group: &ProcessGroup,
    terminal: Option<&Pipe>,
) -> StreamError {
    let mut parser = Parser::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let Ok(count @ 1..) = reader.read(&mut buffer).await else { return StreamError::Gone };
        parser.feed(buffer.get(..count).unwrap_or_default());
        loop {
            let outcome = match parser.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => take(frame, input, group, terminal),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = outcome {
                return error;
            }
        }
    }
}

fn take(
    frame: Frame,
    input: &Input,
    group: &ProcessGroup,
    terminal: Option<&Pipe>,
) -> Result<(), StreamError> {
    match frame {
        Frame::Stdin(bytes) => input.push(&bytes),
        Frame::StdinEof => {
            input.ended.set(true);
            input.changed.notify_one();
            Ok(())
        }
        Frame::Signal(number) => {
            group.signal(number.into());
            Ok(())
        }
        Frame::Resize { rows, columns } => {
            if let Some(terminal) = terminal {
                // A terminal whose processes have gone has no size to set.
                let _ = set_window_size(terminal, WindowSize { rows, columns });
            }
            Ok(())
        }
        Frame::Stdout(_) | Frame::Stderr(_) | Frame::Window(_) | Frame::Exit(_) => {
            Err(StreamError::WrongWay)
        }
    }
}

impl Input {
    fn push(&self, bytes: &[u8]) -> Result<(), StreamError> {
        let outstanding_bytes = self.outstanding_bytes.get() + bytes.len();
        if outstanding_bytes > STDIN_WINDOW_BYTES {
            return Err(StreamError::Window);
        }
        self.outstanding_bytes.set(outstanding_bytes);
        self.waiting.borrow_mut().extend_from_slice(bytes);
        self.changed.notify_one();
        Ok(())
    }
}

/// Gives input to the process and the window back to the client, for ever. Input that nobody reads
/// is dropped, as it would be by a shell's broken pipe.
async fn feed<W: AsyncWrite + Unpin>(
    stdin: Option<Pipe>,
    terminal: Option<&Pipe>,
    input: &Input,
    sender: &Sender<W>,
) -> std::convert::Infallible {
    let mut stdin = stdin;
    loop {
        let mut bytes = input.waiting.take();
        let ended = input.ended.get();
        if bytes.is_empty() && !ended {
            input.changed.notified().await;
            continue;
        }
        let granted_bytes = bytes.len();
        if ended && terminal.is_some() {
            bytes.push(TERMINAL_EOF);
        }
        if let Some(pipe) = stdin.as_ref().or(terminal)
            && write_all(pipe, &bytes).await.is_err()
        {
            stdin = None;
        }
        if ended {
            stdin = None; // the process reads the end of its input
            input.ended.set(false);
        }
        if granted_bytes > 0 {
            input.outstanding_bytes.set(input.outstanding_bytes.get() - granted_bytes);
            let mut frame = Vec::new();
            Frame::Window(u32::try_from(granted_bytes).unwrap_or(u32::MAX)).encode(&mut frame);
            sender.send(&frame).await;
        }
    }
}

async fn write_all(pipe: &Pipe, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = pipe.write(bytes).await?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// Sends the last frame and gives the client a moment to close first: closing on bytes that are
/// still arriving would reset the connection and could cost the client that frame.
async fn bid_farewell<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    sender: &Sender<W>,
    reader: &mut R,
    report: Report,
) {
    let mut frame = Vec::new();
    // Two numbers and a flag always become JSON.
    Frame::Exit(serde_json::to_vec(&report).unwrap_or_default()).encode(&mut frame);
    sender.send(&frame).await;
    let close = async {
        let mut discarded = [0; 1024];
        // An error is as good as the end.
        let _ = sender.writer.lock().await.shutdown().await;
        while matches!(reader.read(&mut discarded).await, Ok(1..)) {}
    };
    let _ = tokio::time::timeout(STREAM_CLOSE_TIMEOUT, close).await;
}
