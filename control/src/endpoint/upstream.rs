//! Connections to the ports of a microVM, kept alive for the next request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tower_service::Service;

use crate::worker::Worker;

/// How long a connection that nobody uses is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections to one port that are kept so.
const IDLE_MAX: usize = 8;
/// How long a port of a running microVM may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest head of an app's response, and as many lines.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 256;
/// What is kept of a stream whose client does not read, and of all streams of a connection.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
const SEND_BYTES_MAX: usize = 256 << 10;

/// The connections of one microVM, from its start or its resume to its end or its suspension.
#[derive(Clone)]
pub struct Upstreams {
    host: Arc<str>,
    http1: Client<Connector, Incoming>,
    http2: Client<Connector, Incoming>,
}

impl Upstreams {
    /// None yet.
    pub fn new(worker: &Arc<dyn Worker>, id: &str, host: &str) -> Self {
        let connector = Connector { worker: Arc::clone(worker), id: id.into() };
        let builder = |is_http2| {
            let mut builder = Client::builder(TokioExecutor::new());
            builder
                .pool_timer(TokioTimer::new())
                .timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(IDLE_MAX)
                .set_host(false)
                .http1_max_buf_size(HEAD_BYTES_MAX)
                .http1_max_headers(HEADERS_MAX)
                .http2_only(is_http2)
                .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
                .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .http2_max_send_buf_size(SEND_BYTES_MAX)
                .http2_max_header_list_size(HEAD_BYTES_MAX as u32);
            builder.build(connector.clone())
        };
        Self { host: host.into(), http1: builder(false), http2: builder(true) }
    }

    /// Sends a request to a port and waits for the head of the response.
    pub async fn send(
        &self,
        mut request: Request<Incoming>,
        port: u16,
        is_http2: bool,
    ) -> Result<Response<Incoming>, Error> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        // The authority tells the pool which port it is; an HTTP/2 app sees it, too.
        let uri = format!("http://{}:{port}{path}", self.host);
        if let Ok(uri) = uri.parse() {
            *request.uri_mut() = uri;
        }
        *request.version_mut() = hyper::Version::HTTP_11;
        let client = if is_http2 { &self.http2 } else { &self.http1 };
        client.request(request).await
    }
}

/// Connects to the port that an address names.
#[derive(Clone)]
struct Connector {
    worker: Arc<dyn Worker>,
    id: Arc<str>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<UnixStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (worker, id) = (Arc::clone(&self.worker), Arc::clone(&self.id));
        let port = uri.port_u16().unwrap_or_default();
        Box::pin(async move {
            let stream = timeout(CONNECT_TIMEOUT, worker.connect(&id, port)).await;
            let slow = |_| io::Error::new(io::ErrorKind::TimedOut, "the port does not accept");
            Ok(TokioIo::new(stream.map_err(slow)??))
        })
    }
}
