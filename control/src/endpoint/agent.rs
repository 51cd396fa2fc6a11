//! A command that the agent of a microVM runs, and the stream of frames to it (docs/agent-api.md).

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use crate::worker::Worker;

/// What an agent says of why it runs nothing.
const REASON_BYTES_MAX: usize = 4096;
/// The longest payload of a frame, and the input that the agent takes before it grants more.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;
pub const INPUT_BYTES: usize = 256 << 10;
/// A frame's kind and its payload's length.
pub const HEADER_BYTES: usize = 5;

/// Kinds of frames.
pub mod kind {
    pub const STDIN: u8 = 1;
    pub const STDIN_ENDS: u8 = 2;
    pub const RESIZE: u8 = 4;
    pub const STDOUT: u8 = 17;
    pub const STDERR: u8 = 18;
    pub const WINDOW: u8 = 19;
    pub const EXIT: u8 = 20;
}

/// Why a command does not run, or goes on unheard.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot reach the agent")]
    Reach(#[source] std::io::Error),
    #[error("the agent does not speak HTTP as it should")]
    Ask(#[from] hyper::Error),
    #[error("cannot make a request to the agent")]
    Make(#[from] hyper::http::Error),
    #[error("the agent starts nothing: {status} {reason}")]
    Refused { status: StatusCode, reason: String },
    #[error("the connection to the agent broke")]
    Broken(#[source] std::io::Error),
    #[error("a frame of kind {kind} is broken")]
    Frame { kind: u8 },
}

type Stream = TokioIo<hyper::upgrade::Upgraded>;

/// What a command says: its frames.
pub type Output = FramedRead<ReadHalf<Stream>, LengthDelimitedCodec>;

/// What a command is told.
pub struct Input(WriteHalf<Stream>);

/// Has a command run: the body of `POST /v1/exec`.
pub async fn start(
    worker: &Arc<dyn Worker>,
    id: &str,
    command: Bytes,
) -> Result<(Output, Input), AgentError> {
    let stream = worker.agent(id).await.map_err(AgentError::Reach)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // Whoever sends or reads hears of it, too.
        let _broken = connection.with_upgrades().await;
    });
    let request = Request::post("/v1/exec")
        .header(HOST, "agent")
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "rotifer-stream")
        .body(Full::new(command))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let body = Limited::new(response.into_body(), REASON_BYTES_MAX).collect().await;
        let reason = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
        return Err(AgentError::Refused { status, reason: reason.unwrap_or_default() });
    }
    let upgraded: Stream = TokioIo::new(hyper::upgrade::on(response).await?);
    let codec = LengthDelimitedCodec::builder()
        .length_field_offset(1)
        .length_field_length(HEADER_BYTES - 1)
        .length_adjustment(HEADER_BYTES as isize)
        .num_skip(0)
        .max_frame_length(HEADER_BYTES + PAYLOAD_BYTES_MAX)
        .new_codec();
    let (output, input) = tokio::io::split(upgraded);
    Ok((FramedRead::new(output, codec), Input(input)))
}

impl Input {
    /// Sends a frame.
    pub async fn tell(&mut self, kind: u8, payload: &[u8]) -> Result<(), AgentError> {
        let length = u32::try_from(payload.len()).map_err(|_| AgentError::Frame { kind })?;
        let mut frame = BytesMut::with_capacity(HEADER_BYTES + payload.len());
        frame.put_u8(kind);
        frame.put_u32(length);
        frame.put_slice(payload);
        self.0.write_all(&frame).await.map_err(AgentError::Broken)
    }
}
