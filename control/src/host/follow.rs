//! What an app says in its microVM, followed into the log store.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::time::sleep;

use super::lines::Lines;
use super::wire;

/// Beside a snapshot and in a microVM's directory: the number of the last line that was taken. Without it
/// lines are taken twice, none is lost.
pub const TAKEN: &str = "lines.taken";
/// The longest line as JSON; the agent's have 8 KiB of text.
const LINE_BYTES_MAX: usize = 128 << 10;
/// How long to wait before a guest is asked again that hung up.
const RETRY_PERIOD: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Line {
    sequence: u64,
    text: String,
}

/// Follows for as long as it is polled.
pub async fn follow(vsock: &Path, directory: &Path, lines: &Lines) {
    loop {
        if let Err(error) = take(vsock, directory, lines, true).await {
            tracing::debug!("the log of {directory:?} breaks off: {error}");
        }
        sleep(RETRY_PERIOD).await;
    }
}

/// Takes what there is by now.
pub async fn catch_up(vsock: &Path, directory: &Path, lines: &Lines) -> io::Result<()> {
    take(vsock, directory, lines, false).await
}

async fn take(vsock: &Path, directory: &Path, lines: &Lines, follows: bool) -> io::Result<()> {
    let file = directory.join(TAKEN);
    let taken = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
    let path = format!("/v1/logs?after={}&follow={follows}", taken.unwrap_or(0_u64));
    let request = Request::get(path).header("host", "agent").body(Empty::<Bytes>::new());
    let request = request.map_err(io::Error::other)?;
    let stream = TokioIo::new(wire::agent(vsock).await?);
    let shaken = hyper::client::conn::http1::handshake(stream).await;
    let (mut sender, connection) = shaken.map_err(io::Error::other)?;
    let read = async move {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let (mut body, mut rest) = (response.into_body(), BytesMut::new());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(io::Error::other)?.into_data() else { continue };
            rest.extend_from_slice(&data);
            if let Some(last) = say(&mut rest, lines).await {
                std::fs::write(&file, last.to_string())?;
            }
            if rest.len() > LINE_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
            }
        }
        Ok(())
    };
    let (read, _ended) = futures::future::join(read, connection).await;
    read
}

/// Passes on the lines that are whole; the number of the last one.
async fn say(rest: &mut BytesMut, lines: &Lines) -> Option<u64> {
    let mut last = None;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        // What the guest's agent does not write so is none of its lines.
        if let Ok(line) = serde_json::from_slice::<Line>(&rest[..end]) {
            lines.say_in_turn(&line.text).await;
            last = Some(line.sequence);
        }
        rest.advance(end + 1);
    }
    last
}
