//! The shell: a terminal in the microVM over a WebSocket, run by the agent.
//!
//! ```text
//!  client  text {"type":"session_init",...} ◀─    binary ◀─▶ bytes of the terminal    close 1000 ◀─
//!          text {"type":"resize",...} ─▶          any other text ─▶ typed
//!  agent   POST /v1/exec, upgraded to rotifer-stream: frames of kind, length, payload (docs/agent-api.md)
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::{Request, Response};
use s3s::Body;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use uuid::Uuid;

use super::agent::{
    self, AgentError, HEADER_BYTES, INPUT_BYTES, Input, Output, PAYLOAD_BYTES_MAX, kind,
};
use super::asked::Asked;
use super::gates::Pass;
use super::{Refusal, choose_marker, websocket};
use crate::http::Place;
use crate::worker::Worker;

/// How long the agent may take to start a shell.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest message of a client.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// What the image sets is not inherited, as in the service; the agent's commands have it from the app.
const CLEAN: [&str; 6] = [
    "/usr/bin/env",
    "-i",
    "TERM=xterm",
    "HOME=/root",
    "PS1=λ $ ",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
];
/// Bash, where there is one.
const SCRIPT: &str = "command -v bash >/dev/null && exec bash -i; exec sh -i";

/// Why a shell ends other than by itself.
#[derive(Debug, thiserror::Error)]
enum ShellError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("the agent takes too long to start a shell")]
    Slow,
    #[error("the client's connection ended")]
    Upgrade(#[from] hyper::Error),
    #[error("the client's WebSocket broke")]
    Client(#[from] Box<SocketError>),
}

impl From<SocketError> for ShellError {
    fn from(error: SocketError) -> Self {
        Self::Client(Box::new(error))
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Control {
    Resize { cols: u16, rows: u16 },
}

/// Answers a WebSocket's handshake with a shell.
pub async fn open(
    worker: &Arc<dyn Worker>,
    mut request: Request<Incoming>,
    asked: &Asked,
    pass: Pass,
    mut place: Place,
) -> Result<Response<Body>, Refusal> {
    let mut response = websocket::accept(request.headers())?;
    let started = timeout(START_TIMEOUT, start(worker, &pass.gate().id)).await;
    let (output, input) = started.unwrap_or(Err(ShellError::Slow)).map_err(|error| {
        tracing::warn!("no shell in {}: {}", pass.gate().id, crate::report(&error));
        Refusal::Nothing
    })?;
    let client = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let session = async {
            let client = websocket::messages(client, MESSAGE_BYTES_MAX).await?;
            let typed = Bytes::new();
            Session { client, output, input, credit: INPUT_BYTES, typed }.run().await
        };
        tokio::select! {
            result = session => if let Err(error) = result {
                tracing::debug!("a shell in {}: {}", pass.gate().id, crate::report(&error));
            },
            () = pass.cut() => {}
            () = place.end() => {}
        }
    });
    choose_marker(response.headers_mut(), asked);
    Ok(response)
}

async fn start(worker: &Arc<dyn Worker>, id: &str) -> Result<(Output, Input), ShellError> {
    let program = CLEAN.iter().chain(&["/bin/sh", "-c", SCRIPT]).collect::<Vec<_>>();
    let command = json!({
        "command": program, "user": "root", "cwd": "/", "tty": { "rows": 24, "columns": 80 },
    });
    Ok(agent::start(worker, id, command.to_string().into()).await?)
}

/// A shell that runs.
struct Session<C> {
    client: WebSocketStream<C>,
    output: Output,
    input: Input,
    /// Bytes of input that the agent takes.
    credit: usize,
    /// Input that it does not take yet.
    typed: Bytes,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Session<C> {
    async fn run(mut self) -> Result<(), ShellError> {
        let hello = json!({ "type": "session_init", "session_id": Uuid::new_v4().to_string() });
        self.client.send(Message::text(hello.to_string())).await?;
        loop {
            while self.credit > 0 && !self.typed.is_empty() {
                let length = self.typed.len().min(self.credit).min(PAYLOAD_BYTES_MAX);
                let bytes = self.typed.split_to(length);
                self.credit -= length;
                self.input.tell(kind::STDIN, &bytes).await?;
            }
            tokio::select! {
                frame = self.output.next() => {
                    let Some(frame) = frame else { return Ok(()) };
                    if self.heard(frame.map_err(AgentError::Broken)?.freeze()).await? {
                        return Ok(());
                    }
                }
                message = self.client.next(), if self.typed.is_empty() => match message {
                    Some(Ok(Message::Text(text))) => self.said(text.into()).await?,
                    Some(Ok(Message::Binary(bytes))) => self.typed = bytes,
                    Some(Ok(Message::Close(_))) | None => return Ok(()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error.into()),
                },
            }
        }
    }

    /// A text of the client.
    async fn said(&mut self, text: Bytes) -> Result<(), ShellError> {
        let Ok(Control::Resize { cols, rows }) = serde_json::from_slice(&text) else {
            self.typed = text;
            return Ok(());
        };
        let ([a, b], [c, d]) = (rows.max(1).to_be_bytes(), cols.max(1).to_be_bytes());
        Ok(self.input.tell(kind::RESIZE, &[a, b, c, d]).await?)
    }

    /// A frame of the agent; whether it was the last.
    async fn heard(&mut self, mut frame: Bytes) -> Result<bool, ShellError> {
        let payload = frame.split_off(HEADER_BYTES.min(frame.len()));
        match frame.first().copied() {
            Some(kind::STDOUT | kind::STDERR) => self.client.send(Message::Binary(payload)).await?,
            Some(kind @ kind::WINDOW) => {
                let granted = payload.as_ref().try_into().map(u32::from_be_bytes);
                let granted = granted.map_err(|_| AgentError::Frame { kind })?;
                self.credit = self.credit.saturating_add(granted as usize).min(INPUT_BYTES);
            }
            Some(kind::EXIT) => {
                let reason = "shell exited".into();
                self.client.close(Some(CloseFrame { code: CloseCode::Normal, reason })).await?;
                // The client's own word of farewell, if it has one.
                while let Some(Ok(_)) = self.client.next().await {}
                return Ok(true);
            }
            Some(kind) => return Err(AgentError::Frame { kind }.into()),
            None => return Err(AgentError::Frame { kind: 0 }.into()),
        }
        Ok(false)
    }
}
