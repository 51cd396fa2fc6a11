//! Accepts connections and serves HTTP/1.1 on each.

use crate::agent::Agent;
use crate::api::{self, Context};
use crate::limits::{
    ACCEPT_RETRY, REQUEST_HEAD_MAX_BYTES, REQUEST_HEADERS_MAX_COUNT, SHUTDOWN_ANSWER_TIMEOUT,
};
use crate::vsock;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::OwnedSemaphorePermit;

/// What is said to a connection that is one too many.
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
    content-length: 94\r\nconnection: close\r\n\r\n\
    {\"error\": {\"code\": \"too_many_connections\", \"message\": \"the limit of connections is reached\"}}\n";

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// The host, over vsock.
    Vsock(vsock::Listener),
    /// A Unix socket, for tests.
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<UnixStream> {
        match self {
            Listener::Vsock(listener) => listener.accept().await,
            Listener::Unix(listener) => Ok(listener.accept().await?.0),
        }
    }
}

/// Serves for ever.
pub async fn serve(listener: Listener, agent: Rc<Agent>) {
    loop {
        match listener.accept().await {
            Ok(stream) => match agent.connections.clone().try_acquire_owned() {
                Ok(permit) => {
                    if let Some(restores) = &agent.restores {
                        restores.catch_up();
                    }
                    tokio::task::spawn_local(serve_connection(stream, agent.clone(), permit));
                }
                // The socket's buffer is empty: it takes this, or the connection is gone.
                Err(_) => drop(stream.try_write(BUSY)),
            },
            // Connections are reset when the guest is restored from a snapshot: no reason to stop,
            // nor to spin.
            Err(error) if is_about_one_connection(&error) => {}
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
}

/// Whether an accept failed for a connection that is gone, so that the next one may succeed.
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

async fn serve_connection(stream: UnixStream, agent: Rc<Agent>, permit: OwnedSemaphorePermit) {
    let shutdown = Rc::new(Cell::new(None));
    let context =
        Context { agent: agent.clone(), connection: Rc::new(permit), shutdown: shutdown.clone() };
    let service = service_fn(move |request| {
        let context = context.clone();
        async move { Ok::<_, Infallible>(api::handle(context, request).await) }
    });
    let connection = http1::Builder::new()
        .max_buf_size(REQUEST_HEAD_MAX_BYTES)
        .max_headers(REQUEST_HEADERS_MAX_COUNT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let asked = std::future::poll_fn(|context| {
        let ended = connection.as_mut().poll(context).is_ready();
        // A client's mistake or its absence ends its connection and concerns nobody else.
        if ended || shutdown.get().is_some() {
            std::task::Poll::Ready(ended)
        } else {
            std::task::Poll::Pending
        }
    });
    let ended = asked.await;
    if let Some(wish) = shutdown.get() {
        if !ended {
            // The answer is on its way; a client that does not take it is not waited for.
            let _ = tokio::time::timeout(SHUTDOWN_ANSWER_TIMEOUT, connection).await;
        }
        agent.request_shutdown(wish);
    }
}

#[cfg(test)]
mod tests {
    use super::BUSY;

    #[test]
    fn the_busy_answer_has_the_length_that_it_announces() {
        let text = std::str::from_utf8(BUSY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
