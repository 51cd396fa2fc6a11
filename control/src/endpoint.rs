//! MicroVMs' endpoints: a host name each, guarded by tokens, in front of whatever the app serves.
//!
//! ```text
//!  request ─▶ token? ─▶ for this microVM? ─▶ for this port? ─▶ gate ─▶ upstream ─▶ the app's port
//!             403       403                  403               │  │
//!                                                  wake, wait ◀┘  └▶ 502: it is not there; 429: too many
//! ```
//!
//! Framing is hyper's on both sides, so what the client meant and what the app hears cannot differ.
//! Bodies are never kept: they are read as fast as the other side takes them.

pub(crate) mod agent;
mod asked;
mod gates;
pub mod grant;
mod guarded;
mod headers;
mod shell;
pub(crate) mod stream;
mod tunnel;
mod upstream;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, HeaderValue, SEC_WEBSOCKET_PROTOCOL, UPGRADE, VIA};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode, Version};
use s3s::Body;
use tokio::time::timeout;

use self::asked::Asked;
use self::gates::{Entry, Gate, Pass};
use self::grant::{Grant, Scope};
use self::guarded::Guarded;
use crate::answer::Answer;
use crate::clock::Clock;
use crate::fleet::microvm::Phase;
use crate::http::{Place, REQUEST_ID, respond};
use crate::lambda::Lambda;
use crate::seal::{Kind, Seal, SealError};
use crate::settings::Settings;
use crate::worker::Worker;
pub use gates::{Counts, Gates};

/// All endpoints.
pub struct Endpoints {
    suffix: String,
    hold: Duration,
    gates: Arc<Gates>,
    lambda: Arc<Lambda>,
    worker: Arc<dyn Worker>,
    seal: Seal,
    clock: Clock,
}

/// Why nothing came of a request: what the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// There is no token, or nothing that looks like one.
    Unauthenticated,
    /// The token is forged, too old, or another microVM's.
    Unauthorized,
    /// The token is for other ports.
    PortDenied,
    /// There is no microVM, no app, or no answer.
    Nothing,
    /// There are too many requests.
    TooMany,
    /// The request is none that can be passed on.
    Method,
}

impl Refusal {
    /// The service's answer.
    fn response(self) -> Response<Body> {
        respond(match self {
            Self::Unauthenticated => Answer::text(403, "Request missing authentication"),
            Self::Unauthorized => Answer::text(403, "Token authentication failed"),
            Self::PortDenied => Answer::text(403, "Access to port denied"),
            Self::Nothing => Answer::empty(502),
            Self::TooMany => Answer::text(429, "Too many requests"),
            Self::Method => Answer::text(405, "The method cannot be passed on"),
        })
    }
}

impl Endpoints {
    /// The endpoints of a fleet.
    pub fn new(
        settings: &Settings,
        lambda: &Arc<Lambda>,
        worker: &Arc<dyn Worker>,
        seal: Seal,
    ) -> Self {
        Self {
            suffix: format!(".lambda-microvm.{}.{}", settings.region, settings.endpoint_domain),
            hold: Duration::from_secs(settings.limits.hold_seconds),
            gates: Arc::clone(lambda.gates()),
            lambda: Arc::clone(lambda),
            worker: Arc::clone(worker),
            seal,
            clock: lambda.clock().clone(),
        }
    }

    /// Whether a host name is an endpoint's, or could be.
    pub fn has(&self, host: &str) -> bool {
        let tail = host.len().checked_sub(self.suffix.len()).and_then(|at| host.get(at..));
        tail.is_some_and(|tail| tail.eq_ignore_ascii_case(&self.suffix))
    }

    /// Answers a request.
    pub async fn answer(
        &self,
        mut request: Request<Incoming>,
        host: &Authority,
        id: HeaderValue,
        place: Place,
    ) -> Response<Body> {
        if let Ok(host) = HeaderValue::from_str(host.as_str()) {
            request.headers_mut().insert(HOST, host);
        }
        request.headers_mut().insert(REQUEST_ID, id.clone());
        let result = self.pass_on(request, host.host(), place).await;
        let mut response = result.unwrap_or_else(Refusal::response);
        response.headers_mut().insert(REQUEST_ID, id);
        response
    }

    async fn pass_on(
        &self,
        request: Request<Incoming>,
        host: &str,
        place: Place,
    ) -> Result<Response<Body>, Refusal> {
        let (parts, body) = request.into_parts();
        let asked = Asked::of(&parts);
        let request = Request::from_parts(parts, body);
        let (grant, gate) = self.authorize(&asked, host)?;
        if grant.scope == Scope::Shell {
            // A shell is a WebSocket and nothing else.
            if !asked.is_websocket {
                return Err(Refusal::Nothing);
            }
            if !asked.is_shell_port() {
                return Err(Refusal::PortDenied);
            }
            let pass = self.admit(&gate).await?;
            if asked.offers_stream {
                return stream::open(&self.worker, request, pass, place);
            }
            return shell::open(&self.worker, request, &asked, pass, place).await;
        }
        let port = asked.app_port().filter(|port| grant.allows(*port));
        let port = port.ok_or(Refusal::PortDenied)?;
        if request.method() == Method::CONNECT {
            return Err(Refusal::Method);
        }
        let pass = self.admit(&gate).await?;
        if asked.is_websocket {
            return tunnel::open(request, port, &asked, pass, place).await;
        }
        let upstreams = pass.upstreams();
        let mut request = prepare(request);
        if asked.is_http2 {
            // It is in the address.
            request.headers_mut().remove(HOST);
        }
        let sent = upstreams.send(request, port, asked.is_http2);
        let response = tokio::select! {
            sent = sent => sent.map_err(|error| nothing(pass.gate(), port, &error))?,
            () = pass.cut() => return Err(Refusal::Nothing),
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // Nobody asked for it.
            return Err(Refusal::Nothing);
        }
        let (mut parts, body) = response.into_parts();
        headers::strip_response(&mut parts.headers);
        parts.version = Version::HTTP_11;
        Ok(Response::from_parts(parts, Body::http_body_unsync(Guarded::new(body, pass, place))))
    }

    /// Whether the token is good for the host. Who has none learns nothing of what hosts there are.
    fn authorize(&self, asked: &Asked, host: &str) -> Result<(Grant, Arc<Gate>), Refusal> {
        let token = asked.token.as_ref().ok_or(Refusal::Unauthenticated)?;
        let grant: Grant = self.seal.open(Kind::Endpoint, token).map_err(|error| match error {
            SealError::Malformed => Refusal::Unauthenticated,
            SealError::Forged => Refusal::Unauthorized,
        })?;
        let gate = self.gates.find(&host.to_ascii_lowercase()).ok_or(Refusal::Unauthorized)?;
        if grant.microvm != gate.id || self.clock.now() >= grant.expires {
            return Err(Refusal::Unauthorized);
        }
        Ok((grant, gate))
    }

    /// Waits until the microVM can be passed to; wakes it if need be.
    async fn admit(&self, gate: &Arc<Gate>) -> Result<Pass, Refusal> {
        let admitted = timeout(self.hold, async {
            let (mut phases, mut has_woken) = (gate.watch(), false);
            loop {
                phases.borrow_and_update();
                let held = match gate.enter() {
                    Entry::Pass(pass) => return Ok(pass),
                    Entry::Full => return Err(Refusal::TooMany),
                    Entry::Closed => return Err(Refusal::Nothing),
                    // It has been tried, and has failed.
                    Entry::Wake(_) if has_woken => return Err(Refusal::Nothing),
                    Entry::Wake(held) => {
                        self.wake(&gate.id).await?;
                        has_woken = true;
                        held
                    }
                    Entry::Wait(held) => {
                        has_woken |= *phases.borrow() == Phase::Waking;
                        held
                    }
                };
                let changed = phases.changed().await;
                drop(held);
                changed.map_err(|_| Refusal::Nothing)?;
            }
        });
        admitted.await.unwrap_or_else(|_| {
            tracing::info!("a request to {} waited {:?} in vain", gate.id, self.hold);
            Err(Refusal::Nothing)
        })
    }

    async fn wake(&self, id: &str) -> Result<(), Refusal> {
        let (lambda, id) = (Arc::clone(&self.lambda), id.to_owned());
        let woken = tokio::task::spawn_blocking(move || lambda.wake(&id)).await;
        match woken {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::error!("a microVM could not be woken: {error}");
                Err(Refusal::Nothing)
            }
            Err(error) => {
                tracing::error!("a microVM was not woken: {error}");
                Err(Refusal::Nothing)
            }
        }
    }
}

/// A request as the app is to have it.
fn prepare(request: Request<Incoming>) -> Request<Incoming> {
    let (mut parts, body) = request.into_parts();
    let via = if parts.version == Version::HTTP_2 { "2.0 rotifer" } else { "1.1 rotifer" };
    headers::strip_request(&mut parts.headers);
    asked::strip_subprotocols(&mut parts.headers);
    parts.headers.append(VIA, HeaderValue::from_static(via));
    // What hyper remembers of the client's connection is nothing to the app's.
    parts.extensions.clear();
    Request::from_parts(parts, body)
}

fn nothing(gate: &Gate, port: u16, error: &dyn std::error::Error) -> Refusal {
    tracing::debug!("port {port} of {} gave no answer: {}", gate.id, crate::report(error));
    Refusal::Nothing
}

/// The headers of a switch to WebSocket.
fn mark_websocket(headers: &mut hyper::HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Clients that offered subprotocols want one back.
fn choose_marker(headers: &mut hyper::HeaderMap, asked: &Asked) {
    if asked.offers_marker && !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(asked::MARKER));
    }
}

fn switching() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    mark_websocket(response.headers_mut());
    response
}
