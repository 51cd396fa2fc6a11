//! `POST /v1/exec`: with an upgrade a stream, without one an answer at the end.

use super::body::Body;
use super::error::{ApiError, chain};
use super::query::Query;
use super::{Answer, Context, Incomer, json, read_json};
use crate::exec::{ExecError, ExecRequest, Running, collect, stream};
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;

/// The protocol that streams speak, in the `Upgrade` header.
const PROTOCOL: &str = "rotifer-stream";

pub(super) async fn exec(context: Context, mut request: Incomer, query: &Query) -> Answer {
    query.clone().finish()?;
    let streams = match request.headers().get(UPGRADE) {
        None => false,
        Some(protocol) if protocol.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()) => true,
        Some(_) => {
            let message = format!("the only protocol to upgrade to is {PROTOCOL}");
            return Err(ApiError::bad_request(message));
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let wish: ExecRequest = read_json(request).await?;
    if streams {
        let running = Running::start(&context.agent, wish, true)?;
        tokio::task::spawn_local(async move {
            let _room = context.connection;
            // Without a client the process group dies with `running`.
            let Ok(upgraded) = upgrade.await else { return };
            // How the stream ended is the client's to know, and it was told or has gone.
            let _ = stream::serve(TokioIo::new(upgraded), running).await;
        });
        return Ok(switching_protocols());
    }
    let input = wish.input.clone().unwrap_or_default().into_bytes();
    let keep = wish.keep;
    let running = Running::start(&context.agent, wish, false)?;
    let task = tokio::task::spawn_local(collect::run(running, input));
    let mut task = AbortOnDrop { task, keep };
    let collected = (&mut task.task).await.map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", chain(&error))
    })?;
    Ok(json(StatusCode::OK, &collected))
}

/// When the client disconnects, its request is dropped, and the command with it unless it is kept.
struct AbortOnDrop {
    task: tokio::task::JoinHandle<collect::Collected>,
    keep: bool,
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if !self.keep {
            self.task.abort();
        }
    }
}

fn switching_protocols() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    response
}

impl From<ExecError> for ApiError {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::TooMany => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_execs", error.to_string())
            }
            ExecError::Timeout { .. } | ExecError::WrongKind { .. } => {
                Self::bad_request(error.to_string())
            }
            ExecError::Spawn(error) => error.into(),
        }
    }
}
