//! Accepting connections, bounded in number and in patience.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, interval_at, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Front;
use crate::settings::Limits;

/// Requests of one HTTP/2 connection at the same time.
const STREAMS_MAX: u32 = 100;
/// The longest head of a request: tokens and ARNs are long, nothing else is.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// What is read ahead of a stream that nobody takes, and of all streams of a connection.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// What is kept of a stream whose client does not read.
const SEND_BYTES_MAX: usize = 256 << 10;
/// A client that says nothing for so long is asked whether it is there, and has so long to say so.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long requests that are being answered may hold up the end.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);
/// When the process has no descriptors left, asking again at once would only burn time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Copies of its place that every connection has: one to look at, one to hand out.
const COPIES: usize = 2;

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum ServeError {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
}

/// A bound port.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    /// Where it listens.
    pub address: SocketAddr,
}

/// A connection's place among all that there may be, and the end of all. Whatever goes on when HTTP has
/// ended on a connection, a WebSocket, keeps it.
#[derive(Clone)]
pub struct Place {
    permit: Arc<OwnedSemaphorePermit>,
    end: watch::Receiver<bool>,
    peer: IpAddr,
}

impl Place {
    /// Whether the client is on this host.
    pub fn is_local(&self) -> bool {
        self.peer.is_loopback()
    }

    /// Whether somebody has a copy besides those that a connection has of its own.
    fn is_busy(&self) -> bool {
        Arc::strong_count(&self.permit) > COPIES
    }

    /// When the daemon ends.
    pub async fn end(&mut self) {
        let _nobody_is_left = self.end.wait_for(|has_ended| *has_ended).await;
    }
}

impl Listener {
    /// Binds the port; 0 is any.
    pub async fn bind(address: SocketAddr) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen { address, source };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address })
    }

    /// Serves until `end` is ready, and then until what was begun is answered.
    pub async fn serve(self, front: Arc<Front>, tls: TlsAcceptor, end: impl Future<Output = ()>) {
        let connections = u32::try_from(front.limits.connections).unwrap_or(u32::MAX);
        let places = Arc::new(Semaphore::new(connections as usize));
        let (ends, ended) = watch::channel(false);
        tokio::pin!(end);
        loop {
            let permit = tokio::select! {
                permit = Arc::clone(&places).acquire_owned() => permit,
                () = &mut end => break,
            };
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = &mut end => break,
            };
            match (accepted, permit) {
                (Ok((stream, peer)), Ok(permit)) => {
                    let (permit, end, peer) = (Arc::new(permit), ended.clone(), peer.ip());
                    let place = Place { permit, end, peer };
                    tokio::spawn(connection(stream, Arc::clone(&front), tls.clone(), place));
                }
                (Err(error), _) => {
                    tracing::warn!("a connection was not accepted: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                // Nobody closes the semaphore.
                (_, Err(_)) => break,
            }
        }
        drop(self.socket);
        ends.send_replace(true);
        finish(&places, connections).await;
    }
}

/// Waits until all places are free again.
async fn finish(places: &Semaphore, connections: u32) {
    if timeout(FINISH_TIMEOUT, places.acquire_many(connections)).await.is_err() {
        tracing::warn!("ends although requests are still being answered");
    }
}

/// A client's TLS, if it speaks it in time.
async fn handshake(
    stream: TcpStream,
    tls: &TlsAcceptor,
    patience: Duration,
) -> Option<TlsStream<TcpStream>> {
    if let Err(error) = prepare(&stream) {
        tracing::debug!("a connection ended at once: {error}");
        return None;
    }
    match timeout(patience, tls.accept(stream)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => tracing::debug!("no TLS: {error}; the endpoint is https://"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
    None
}

async fn connection(stream: TcpStream, front: Arc<Front>, tls: TlsAcceptor, mut place: Place) {
    let limits = front.limits.clone();
    let patience = Duration::from_secs(limits.handshake_seconds);
    let Some(stream) = handshake(stream, &tls, patience).await else { return };
    let builder = builder(&limits);
    let (counted, count) = (place.clone(), Arc::new(AtomicU64::new(0)));
    let counter = Arc::clone(&count);
    let service = hyper::service::service_fn(move |request| {
        counter.fetch_add(1, Ordering::Relaxed);
        Arc::clone(&front).answer(request, counted.clone())
    });
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut served = pin!(served);
    let period = Duration::from_secs(limits.head_seconds);
    let (mut looks, mut seen) = (interval_at(Instant::now() + period, period), 0);
    let result = loop {
        tokio::select! {
            result = served.as_mut() => break Some(result),
            () = place.end() => break None,
            _ = looks.tick() => {
                // HTTP/2 has no time-out of its own. What is being answered is answered first.
                let now = count.load(Ordering::Relaxed);
                if now == seen && !place.is_busy() {
                    served.as_mut().graceful_shutdown();
                }
                seen = now;
            }
        }
    };
    let result = match result {
        Some(result) => result,
        None => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!("a connection broke: {error}");
    }
}

fn builder(limits: &Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(limits.head_seconds))
        .max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PROBE_AFTER)
        .keep_alive_timeout(PROBE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32);
    builder
}

/// A client that is gone is found out by the kernel, whether we wait for it or it for us.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_AFTER / 3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(PROBE_AFTER + PROBE_TIMEOUT))
}
