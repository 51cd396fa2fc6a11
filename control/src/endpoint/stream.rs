//! The agent's own stream over a WebSocket, for a command with an exit status: what the shell's protocol has
//! no words for. Who has a shell's token and offers the subprotocol gets it in place of the shell.
//!
//! ```text
//!  client  text {"command":[...],...} ─▶   the body of the agent's POST /v1/exec
//!          text {"error":{...}} ◀─         it runs nothing; close
//!          binary ◀─▶                      a frame each: its kind in the first byte, then its payload
//!          binary, kind 20, close ◀─       the command has ended
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt};
use hyper::body::Incoming;
use hyper::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use hyper::{Request, Response};
use s3s::Body;
use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use super::agent::{self, AgentError, HEADER_BYTES, Input, Output, PAYLOAD_BYTES_MAX, kind};
use super::gates::Pass;
use super::{Refusal, websocket};
use crate::http::Place;
use crate::worker::Worker;

/// The subprotocol.
pub const SUBPROTOCOL: &str = "rotifer-stream";
/// How long the client may take to say what it wants, and the agent to start it.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest message of a client: the agent's bound of a command.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("the client's connection ended")]
    Upgrade(#[from] hyper::Error),
    #[error("the client's WebSocket broke")]
    Client(#[from] Box<SocketError>),
    #[error("the client does not say what to run")]
    Silent,
}

impl From<SocketError> for StreamError {
    fn from(error: SocketError) -> Self {
        Self::Client(Box::new(error))
    }
}

/// Answers a WebSocket's handshake with a stream.
pub(super) fn open(
    worker: &Arc<dyn Worker>,
    mut request: Request<Incoming>,
    pass: Pass,
    mut place: Place,
) -> Result<Response<Body>, Refusal> {
    let mut response = websocket::accept(request.headers())?;
    let (client, worker) = (hyper::upgrade::on(&mut request), Arc::clone(worker));
    tokio::spawn(async move {
        let session = async {
            let client = websocket::messages(client, MESSAGE_BYTES_MAX).await?;
            run(&worker, &pass.gate().id, client).await
        };
        tokio::select! {
            result = session => if let Err(error) = result {
                tracing::debug!("a stream to {}: {}", pass.gate().id, crate::report(&error));
            },
            () = pass.cut() => {}
            () = place.end() => {}
        }
    });
    let subprotocol = HeaderValue::from_static(SUBPROTOCOL);
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
    Ok(response)
}

async fn run<C>(worker: &Arc<dyn Worker>, id: &str, client: C) -> Result<(), StreamError>
where
    C: Stream<Item = Result<Message, SocketError>> + Sink<Message, Error = SocketError> + Unpin,
{
    let (mut says, mut hears) = client.split();
    let started = timeout(START_TIMEOUT, async {
        let Some(Message::Text(command)) = hears.next().await.transpose()? else {
            return Err(StreamError::Silent);
        };
        Ok(agent::start(worker, id, command.into()).await?)
    });
    let (output, input) = match started.await.unwrap_or(Err(StreamError::Silent)) {
        Ok(agent) => agent,
        Err(StreamError::Agent(error)) => {
            // The agent's own words, if it has said any.
            let reason = match &error {
                AgentError::Refused { reason, .. } if reason.starts_with('{') => reason.clone(),
                _ => json!({ "error": { "message": crate::report(&error) } }).to_string(),
            };
            says.send(Message::text(reason)).await?;
            says.close().await?;
            return Err(error.into());
        }
        Err(error) => return Err(error),
    };
    // Neither direction waits for the other.
    tokio::select! {
        result = pass_up(&mut hears, input) => result,
        result = pass_down(output, &mut says) => {
            if result? {
                let (code, reason) = (CloseCode::Normal, "exited".into());
                says.send(Message::Close(Some(CloseFrame { code, reason }))).await?;
                // The client's own word of farewell, if it has one.
                while let Some(Ok(_)) = hears.next().await {}
            }
            Ok(())
        }
    }
}

/// From the client, until it goes.
async fn pass_up(
    hears: &mut (impl Stream<Item = Result<Message, SocketError>> + Unpin),
    mut input: Input,
) -> Result<(), StreamError> {
    while let Some(message) = hears.next().await.transpose()? {
        let Message::Binary(frame) = message else { continue };
        match frame.split_first() {
            Some((kind, payload)) if payload.len() <= PAYLOAD_BYTES_MAX => {
                input.tell(*kind, payload).await?;
            }
            first => {
                let kind = first.map_or(0, |(kind, _)| *kind);
                return Err(AgentError::Frame { kind }.into());
            }
        }
    }
    Ok(())
}

/// From the command; whether it has ended.
async fn pass_down(
    mut output: Output,
    says: &mut (impl Sink<Message, Error = SocketError> + Unpin),
) -> Result<bool, StreamError> {
    while let Some(frame) = output.next().await.transpose().map_err(AgentError::Broken)? {
        let payload: &[u8] = frame.get(HEADER_BYTES..).unwrap_or_default();
        let first = frame.first().copied().unwrap_or_default();
        let mut message = BytesMut::with_capacity(1 + payload.len());
        message.put_u8(first);
        message.put_slice(payload);
        says.send(Message::Binary(Bytes::from(message))).await?;
        if first == kind::EXIT {
            return Ok(true);
        }
    }
    Ok(false)
}
