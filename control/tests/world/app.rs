//! Apps: what serves behind a port of a microVM.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use ring::digest::{Context, SHA256};
use serde_json::json;
use tokio::net::UnixListener;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

type Reply = Response<BoxBody<Bytes, hyper::Error>>;

/// An app on hyper: echoes, counts, floods, streams, upgrades.
pub struct App {
    /// The requests that it saw: method, target, headers.
    pub seen: Mutex<Vec<(String, String, HeaderMap)>>,
    /// What `/stream` sends next; it ends when this is dropped.
    pub streams: Mutex<Vec<UnboundedSender<Bytes>>>,
}

impl App {
    /// Serves on a socket until the test ends, in HTTP/1.1 and HTTP/2.
    pub fn serve(socket: &Path) -> Arc<Self> {
        let app = Arc::new(Self { seen: Mutex::default(), streams: Mutex::default() });
        let listener = UnixListener::bind(socket).unwrap();
        let served = Arc::clone(&app);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let app = Arc::clone(&served);
                tokio::spawn(async move {
                    let service = service_fn(move |request| Arc::clone(&app).answer(request));
                    let builder = Builder::new(TokioExecutor::new());
                    let io = TokioIo::new(stream);
                    let _broken = builder.serve_connection_with_upgrades(io, service).await;
                });
            }
        });
        app
    }

    pub fn last(&self) -> (String, String, HeaderMap) {
        self.seen.lock().unwrap().last().cloned().expect("a request came to the app")
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Reply, Infallible> {
        let (method, target) = (request.method().to_string(), request.uri().to_string());
        self.seen.lock().unwrap().push((method, target, request.headers().clone()));
        let path = request.uri().path().to_owned();
        Ok(match path.as_str() {
            "/echo" => Response::new(request.into_body().boxed()),
            "/digest" => {
                let (length, digest) = digest(request.into_body()).await;
                full(json!({ "length": length, "sha256": digest }).to_string())
            }
            "/flood" => flood(request.uri().query().unwrap().parse().unwrap()),
            "/stream" => {
                let (sender, receiver) = unbounded();
                self.streams.lock().unwrap().push(sender);
                stream(receiver)
            }
            "/socket" => socket(request),
            _ => {
                // curl takes an answer that comes before it has sent its body for an error.
                let _sent = request.into_body().collect().await;
                full("hello".into())
            }
        })
    }
}

fn full(text: String) -> Reply {
    Response::new(Full::from(text).map_err(|never| match never {}).boxed())
}

async fn digest(mut body: Incoming) -> (u64, String) {
    let (mut context, mut length) = (Context::new(&SHA256), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.unwrap().into_data() else { continue };
        length += data.len() as u64;
        context.update(&data);
    }
    (length, hex(context.finish().as_ref()))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// So many pieces of 64 KiB that are all different.
fn flood(pieces: u64) -> Reply {
    let pieces = futures::stream::iter((0..pieces).map(|number| Ok(Frame::data(piece(number)))));
    Response::new(BodyExt::boxed(StreamBody::new(pieces)))
}

/// One piece of a flood.
pub fn piece(number: u64) -> Bytes {
    number.to_le_bytes().repeat(8192).into()
}

fn stream(receiver: UnboundedReceiver<Bytes>) -> Reply {
    let frames = receiver.map(|bytes| Ok(Frame::data(bytes)));
    let mut reply = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    reply.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
    reply
}

/// A WebSocket that echoes; it takes the subprotocol `chat` where it is offered.
fn socket(mut request: Request<Incoming>) -> Reply {
    let headers = request.headers();
    let accept = derive_accept_key(headers["sec-websocket-key"].as_bytes());
    let offered = headers.get("sec-websocket-protocol");
    let takes = offered.is_some_and(|offered| offered.to_str().unwrap().contains("chat"));
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let io = TokioIo::new(upgraded.await.unwrap());
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if matches!(message, Message::Text(_) | Message::Binary(_)) {
                let _gone = futures::SinkExt::send(&mut socket, message).await;
            }
        }
    });
    let mut reply = full(String::new());
    *reply.status_mut() = hyper::StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert("connection", "upgrade".parse().unwrap());
    headers.insert("upgrade", "websocket".parse().unwrap());
    headers.insert("sec-websocket-accept", accept.parse().unwrap());
    if takes {
        headers.insert("sec-websocket-protocol", "chat".parse().unwrap());
    }
    reply
}
