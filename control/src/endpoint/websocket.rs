//! The server's side of a WebSocket: its handshake (RFC 6455, 4.2), and its messages.

use hyper::Response;
use hyper::header::{HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use s3s::Body;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::{Refusal, switching};

/// What is kept for a client that does not read.
const WRITE_BYTES_MAX: usize = 1 << 20;

/// What answers a handshake with this head.
pub fn accept(headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or(Refusal::Nothing)?;
    let mut response = switching();
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok(response)
}

/// The messages of a client whose handshake was answered; a longer one than this ends the connection.
pub async fn messages(
    client: OnUpgrade,
    message_bytes_max: usize,
) -> Result<WebSocketStream<TokioIo<Upgraded>>, hyper::Error> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(message_bytes_max))
        .max_write_buffer_size(WRITE_BYTES_MAX);
    let client = TokioIo::new(client.await?);
    Ok(WebSocketStream::from_raw_socket(client, Role::Server, Some(config)).await)
}
