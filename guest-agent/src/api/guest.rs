//! Endpoints about the guest as a whole: health, logs, the app, shutdown.

use super::body::Body;
use super::error::ApiError;
use super::query::Query;
use super::{Answer, Context, Incomer, json, read_json};
use crate::agent::{Agent, Shutdown, ShutdownMode};
use crate::app::{self, AppState};
use crate::limits::{SHUTDOWN_GRACE_MAX_MS, SHUTDOWN_GRACE_MS};
use crate::process::ProcessSpec;
use crate::timeline::Moments;
use bytes::Bytes;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

/// The piece in which log lines are sent, in bytes.
const LOG_PIECE_BYTES: usize = 32 * 1024;

#[derive(Serialize)]
struct Health {
    version: &'static str,
    timeline: Moments,
    app: AppState,
}

pub(super) fn health(agent: &Agent, query: &Query) -> Answer {
    query.clone().finish()?;
    let version = env!("CARGO_PKG_VERSION");
    let health = Health { version, timeline: agent.timeline.moments(), app: agent.app.state() };
    Ok(json(StatusCode::OK, &health))
}

pub(super) fn app(agent: &Agent, query: &Query) -> Answer {
    query.clone().finish()?;
    Ok(json(StatusCode::OK, &agent.app.state()))
}

pub(super) async fn start_app(agent: &Rc<Agent>, request: Incomer, query: &Query) -> Answer {
    query.clone().finish()?;
    let spec: ProcessSpec = read_json(request).await?;
    app::start(agent, spec)?;
    Ok(json(StatusCode::CREATED, &agent.app.state()))
}

/// Streams lines as newline-delimited JSON: what the ring holds and, with `follow`, what comes.
pub(super) fn logs(context: Context, query: &Query) -> Answer {
    let mut query = query.clone();
    let follow = query.flag("follow")?;
    let mut after = query.number("after", 10)?.unwrap_or(0);
    query.finish()?;
    // Without `follow` the answer ends where the log did when it was asked for: an app that writes
    // faster than the client reads would otherwise make it endless.
    let until = if follow { u64::MAX } else { context.agent.logs.last_sequence() };
    let (sender, pieces) = mpsc::channel(1);
    tokio::task::spawn_local(async move {
        let logs = &context.agent.logs;
        loop {
            while let Some((json, last)) = logs.read(after, until, LOG_PIECE_BYTES) {
                after = last;
                if sender.send(Ok(Bytes::from(json))).await.is_err() {
                    return;
                }
            }
            if !follow {
                return;
            }
            tokio::select! {
                () = logs.wait_after(after) => {}
                () = sender.closed() => return,
            }
        }
    });
    let mut response = Response::new(Body::Stream { pieces, length_bytes: None });
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShutdownRequest {
    mode: ShutdownMode,
    grace_ms: Option<u64>,
}

pub(super) async fn shutdown(context: &Context, request: Incomer, query: &Query) -> Answer {
    query.clone().finish()?;
    let wish: ShutdownRequest = read_json(request).await?;
    let grace_ms = wish.grace_ms.unwrap_or(SHUTDOWN_GRACE_MS);
    if grace_ms > SHUTDOWN_GRACE_MAX_MS {
        let message = format!("grace_ms is {grace_ms}; at most {SHUTDOWN_GRACE_MAX_MS} is allowed");
        return Err(ApiError::bad_request(message));
    }
    let grace = Duration::from_millis(grace_ms);
    context.shutdown.set(Some(Shutdown { mode: wish.mode, grace }));
    let answer = serde_json::json!({ "mode": wish.mode, "grace_ms": grace_ms });
    let mut response = json(StatusCode::ACCEPTED, &answer);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(response)
}
