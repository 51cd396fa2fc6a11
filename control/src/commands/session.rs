//! `rotifer shell` and `rotifer exec`: a command in a microVM, its streams, its exit status.
//!
//! The way there is the service's shell: a shell token, a WebSocket to the endpoint. What the shell's protocol
//! cannot carry (the exit status, two outputs, the end of the input) is in the subprotocol that is asked for
//! there ([`crate::endpoint::stream`]).

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use futures::{Sink, SinkExt, Stream, StreamExt};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use super::terminal::{self, Raw};
use crate::client::{Ask, Client, ClientError};
use crate::endpoint::agent::{INPUT_BYTES, kind};
use crate::endpoint::stream::SUBPROTOCOL;

/// What is read of the input at once.
const READ_BYTES: usize = 32 << 10;
/// Messages on their way to the connection.
const MESSAGES_MAX: usize = 4;
/// Added to the number of the signal that has ended a command, as shells do.
const SIGNAL_BASE: i64 = 128;
/// Bash, where there is one; without a terminal it reads commands and says nothing else.
const INTERACTIVE: &str = "command -v bash >/dev/null && exec bash -i; exec sh -i";
const SILENT: &str = "command -v bash >/dev/null && exec bash; exec sh";

/// Why a command was not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
    #[error("the endpoint of {id} gives no shell: {status}")]
    NoShell { id: String, status: String },
    #[error("the connection to the microVM broke")]
    Socket(#[from] Box<SocketError>),
    #[error("the microVM runs nothing: {reason}")]
    NotRun { reason: String },
    #[error(
        "the connection to the microVM ended: it was suspended or has ended, or the daemon has"
    )]
    Cut,
    #[error("the microVM says what is not understood: {what}")]
    Understand { what: String },
    #[error("cannot write what the command says")]
    Write(#[source] io::Error),
    #[error("ended by a signal")]
    Signal,
    #[error("left; what ran there is ended")]
    Left,
}

impl From<SocketError> for SessionError {
    fn from(error: SocketError) -> Self {
        Self::Socket(Box::new(error))
    }
}

/// What `exec` runs.
pub fn command(words: &[String], has_terminal: bool) -> Value {
    with_terminal(json!({ "command": words }), has_terminal)
}

/// What `shell` runs.
pub fn shell() -> Value {
    let is_terminal = io::stdin().is_terminal();
    let script = if is_terminal { INTERACTIVE } else { SILENT };
    let shell = json!({
        "command": ["/bin/sh", "-c", script], "user": "root", "cwd": "/",
        "env": { "HOME": "/root", "PS1": "λ $ " },
    });
    with_terminal(shell, is_terminal)
}

fn with_terminal(mut command: Value, has_terminal: bool) -> Value {
    if has_terminal {
        let (rows, columns) = terminal::size();
        command["tty"] = json!({ "rows": rows, "columns": columns });
    }
    command
}

/// Runs a command (`POST /v1/exec` of docs/agent-api.md) with this process's input and outputs; its exit status.
pub async fn run(client: &Client, id: &str, command: Value) -> Result<u8, SessionError> {
    let has_terminal = command["tty"].is_object();
    let socket = connect(client, id).await?;
    let (mut says, hears) = socket.split();
    says.send(Message::text(command.to_string())).await?;
    let raw = if has_terminal { Raw::begin().map_err(SessionError::Terminal)? } else { None };
    let credit = Arc::new(Semaphore::new(INPUT_BYTES));
    let (messages, sent) = mpsc::channel(MESSAGES_MAX);
    tokio::select! {
        status = output(hears, &credit) => status,
        () = send(says, sent) => Err(SessionError::Cut),
        () = input(&credit, &messages, raw.is_some()) => Err(SessionError::Left),
        () = resizes(&messages), if has_terminal => Err(SessionError::Cut),
        // Whatever else ends this process leaves the terminal as it was.
        result = ended(), if raw.is_some() => result,
    }
}

async fn connect(
    client: &Client,
    id: &str,
) -> Result<
    impl Stream<Item = Result<Message, SocketError>> + Sink<Message, Error = SocketError> + use<>,
    SessionError,
> {
    let (service, operation) = ("lambda", None);
    let encoded = percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
    let path = format!("{}/{encoded}", super::MICROVMS);
    let ask = Ask { service, method: "GET", path: &path, operation, body: &Value::Null };
    let microvm = client.ask(ask).await?;
    let body = json!({ "expirationInMinutes": 1 });
    let path = format!("{path}/shell-auth-token");
    let ask = Ask { service, method: "POST", path: &path, operation, body: &body };
    let token = client.ask(ask).await?;
    let what = |what: &str| SessionError::Understand { what: what.to_owned() };
    let endpoint = microvm["endpoint"].as_str().ok_or_else(|| what("no endpoint"))?;
    let token = token["authToken"]["X-aws-proxy-auth"].as_str();
    let token = token.and_then(|token| HeaderValue::from_str(token).ok());
    let mut request = format!("wss://{endpoint}/shell").into_client_request()?;
    let headers = request.headers_mut();
    headers.insert("x-aws-proxy-auth", token.ok_or_else(|| what("no token"))?);
    headers.insert("sec-websocket-protocol", HeaderValue::from_static(SUBPROTOCOL));
    match client_async(request, client.connect().await?).await {
        Ok((socket, _)) => Ok(socket),
        Err(SocketError::Http(response)) => {
            Err(SessionError::NoShell { id: id.into(), status: response.status().to_string() })
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes what the command says, until it ends.
async fn output(
    mut hears: impl Stream<Item = Result<Message, SocketError>> + Unpin,
    credit: &Semaphore,
) -> Result<u8, SessionError> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        let message = match hears.next().await {
            // However it says so.
            None | Some(Err(SocketError::Io(_))) => return Err(SessionError::Cut),
            Some(message) => message?,
        };
        let mut frame = match message {
            Message::Binary(frame) => frame,
            Message::Text(text) => {
                let refusal: Value = serde_json::from_str(&text).unwrap_or_default();
                let reason = refusal["error"]["message"].as_str().unwrap_or(&text).to_owned();
                return Err(SessionError::NotRun { reason: super::printable(&reason) });
            }
            Message::Close(_) => return Err(SessionError::Cut),
            _ => continue,
        };
        let payload = frame.split_off(1.min(frame.len()));
        let what = || SessionError::Understand { what: format!("a frame {frame:?}") };
        match frame.first().copied() {
            Some(kind::STDOUT) => {
                stdout.write_all(&payload).await.map_err(SessionError::Write)?;
                stdout.flush().await.map_err(SessionError::Write)?;
            }
            Some(kind::STDERR) => {
                stderr.write_all(&payload).await.map_err(SessionError::Write)?;
                stderr.flush().await.map_err(SessionError::Write)?;
            }
            Some(kind::WINDOW) => {
                let granted = payload.as_ref().try_into().map(u32::from_be_bytes);
                let granted = granted.map_err(|_| what())? as usize;
                let most = INPUT_BYTES.saturating_sub(credit.available_permits());
                credit.add_permits(granted.min(most));
            }
            Some(kind::EXIT) => return status(&payload).ok_or_else(what),
            _ => return Err(what()),
        }
    }
}

/// The exit status in the agent's last frame.
fn status(payload: &[u8]) -> Option<u8> {
    let exit: Value = serde_json::from_slice(payload).ok()?;
    let signal = exit["signal"].as_i64().map(|signal| SIGNAL_BASE + signal);
    let status = exit["code"].as_i64().or(signal)?;
    u8::try_from(status & 0xff).ok()
}

/// Sends messages. What goes wrong is heard where the answers come from.
async fn send(
    mut says: impl Sink<Message, Error = SocketError> + Unpin,
    mut messages: mpsc::Receiver<Message>,
) {
    while let Some(message) = messages.recv().await {
        if says.send(message).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// Passes the input on, as fast as the command takes it, and its end. Comes back when somebody at a terminal
/// wants to leave.
async fn input(credit: &Semaphore, messages: &mpsc::Sender<Message>, is_typed: bool) {
    let (mut chunks, mut escape) = (stdin(), Escape::default());
    while let Some(chunk) = chunks.recv().await {
        if is_typed && escape.is_in(&chunk) {
            return;
        }
        // Never more than all that there is, so it comes.
        let Ok(taken) = credit.acquire_many(chunk.len() as u32).await else { break };
        taken.forget();
        let _ended = messages.send(frame(kind::STDIN, &chunk)).await;
    }
    let _ended = messages.send(frame(kind::STDIN_ENDS, b"")).await;
    std::future::pending().await
}

/// Enter, `~`, `.`: what to type when the other side takes nothing any more. It is passed on all the same.
#[derive(Default)]
struct Escape {
    /// What was typed last.
    last: [u8; 2],
}

impl Escape {
    fn is_in(&mut self, typed: &[u8]) -> bool {
        typed.iter().any(|byte| {
            let before = self.last;
            self.last = [before[1], *byte];
            matches!((before, byte), ([b'\r' | b'\n' | 0, b'~'], b'.'))
        })
    }
}

/// Reads the input in a thread, which nobody waits for: it may never come back from a terminal.
fn stdin() -> mpsc::Receiver<Bytes> {
    let (chunks, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match rustix::io::retry_on_intr(|| rustix::io::read(io::stdin(), &mut buffer[..])) {
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    let chunk = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
                    if chunks.blocking_send(chunk).is_err() {
                        return;
                    }
                }
            }
        }
    });
    receiver
}

/// Tells of changes of the window.
async fn resizes(messages: &mpsc::Sender<Message>) {
    if let Ok(mut changes) = signal(SignalKind::window_change()) {
        // It may have changed before anybody listened.
        loop {
            let (rows, columns) = terminal::size();
            let ([a, b], [c, d]) = (rows.to_be_bytes(), columns.to_be_bytes());
            let _ended = messages.send(frame(kind::RESIZE, &[a, b, c, d])).await;
            changes.recv().await;
        }
    }
    std::future::pending().await
}

async fn ended() -> Result<u8, SessionError> {
    let listen = |kind| signal(kind).map_err(SessionError::Terminal);
    let (mut terminate, mut hang_up): (Signal, Signal) =
        (listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    Err(SessionError::Signal)
}

fn frame(kind: u8, payload: &[u8]) -> Message {
    let mut frame = Vec::with_capacity(1 + payload.len());
    frame.push(kind);
    frame.extend_from_slice(payload);
    Message::binary(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_left_at_the_beginning_of_a_line_only() {
        let leaves = |typed: &[&str]| {
            let mut escape = Escape::default();
            typed.iter().any(|typed| escape.is_in(typed.as_bytes()))
        };
        assert!(leaves(&["~."]) && leaves(&["ls\r~."]) && leaves(&["ls\r", "~", "."]));
        assert!(!leaves(&["ls ~."]) && !leaves(&["\r~~."]) && !leaves(&["\r~/."]));
    }

    #[test]
    fn an_exit_status_is_the_commands_or_its_signals() {
        assert_eq!(status(br#"{"code": 7, "timed_out": false}"#), Some(7));
        assert_eq!(status(br#"{"signal": 9, "timed_out": false}"#), Some(137));
        assert_eq!(status(b"{}"), None);
        assert_eq!(status(b"7"), None);
    }
}
