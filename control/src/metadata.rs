//! What a guest finds at 169.254.169.254: the credentials of its execution role (IMDSv2).
//!
//! A worker hands over each connection that a guest makes there, with the id of the microVM: nothing that the
//! guest says decides whose credentials it gets. A token has to be fetched first, with a method and a header
//! that a confused web client inside the guest does not send.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::answer::Answer;
use crate::clock::{Clock, Timestamp};
use crate::lambda::Lambda;
use crate::seal::{Kind, Seal};
use crate::sessions::Sessions;

const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
/// Six hours, as in EC2.
const TTL_SECONDS_MAX: i64 = 21_600;
const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/";
const ROLE: &str = "execution_role";
/// A guest's head is short, and comes at once.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves guests.
pub struct Metadata {
    /// What its tokens are sealed with.
    pub seal: Seal,
    /// The time.
    pub clock: Clock,
    /// Knows the microVMs' roles.
    pub lambda: Arc<Lambda>,
    /// Mints the credentials.
    pub sessions: Arc<Sessions>,
}

/// What a guest's token says.
#[derive(Serialize, Deserialize)]
struct Ticket {
    #[serde(rename = "sub")]
    microvm: String,
    #[serde(rename = "exp_ms")]
    expires: Timestamp,
}

impl Metadata {
    /// Serves a connection that a microVM made.
    pub async fn serve(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        microvm: String,
    ) {
        let microvm: Arc<str> = microvm.into();
        let service = hyper::service::service_fn(move |request: Request<_>| {
            let (metadata, microvm) = (Arc::clone(&self), Arc::clone(&microvm));
            async move { Ok::<_, Infallible>(metadata.respond(request, microvm).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = served.await {
            tracing::debug!("a guest's connection for metadata broke: {error}");
        }
    }

    async fn respond(
        self: Arc<Self>,
        request: Request<hyper::body::Incoming>,
        microvm: Arc<str>,
    ) -> Response<Full<Bytes>> {
        let (parts, _) = request.into_parts();
        // Roles are on the disk.
        let work = tokio::task::spawn_blocking(move || {
            self.answer(&parts.method, parts.uri.path(), &parts.headers, &microvm)
        });
        let answer = work.await.unwrap_or_else(|error| {
            tracing::error!("a guest's request for metadata was not answered: {error}");
            Answer::empty(500)
        });
        let mut response = Response::new(Full::from(answer.body));
        *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or_default();
        response
    }

    /// Answers a guest.
    pub fn answer(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        microvm: &str,
    ) -> Answer {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if *method == Method::PUT && path == "/latest/api/token" {
            let seconds = text(TTL_HEADER).and_then(|text| text.parse().ok());
            let seconds = seconds.filter(|seconds| (1..=TTL_SECONDS_MAX).contains(seconds));
            // Whoever was reached through a proxy is not asked by the guest itself.
            return match seconds {
                _ if headers.contains_key("x-forwarded-for") => Answer::empty(403),
                None => Answer::empty(400),
                Some(seconds) => {
                    let expires = self.clock.now().plus_seconds(seconds);
                    let ticket = Ticket { microvm: microvm.to_owned(), expires };
                    Answer::text(200, &self.seal.seal(Kind::Metadata, &ticket))
                }
            };
        }
        if *method != Method::GET {
            return Answer::empty(405);
        }
        let ticket = text(TOKEN_HEADER).map(|token| self.seal.open(Kind::Metadata, token));
        let is_good =
            |ticket: &Ticket| ticket.microvm == microvm && self.clock.now() < ticket.expires;
        if !ticket.is_some_and(|ticket| ticket.as_ref().is_ok_and(is_good)) {
            return Answer::empty(401);
        }
        match path.strip_prefix(CREDENTIALS) {
            Some("") => match self.lambda.execution_role(microvm) {
                Some(_) => Answer::text(200, ROLE),
                None => Answer::empty(404),
            },
            Some(ROLE) => self.credentials(microvm),
            _ => Answer::empty(404),
        }
    }

    fn credentials(&self, microvm: &str) -> Answer {
        let Some(role) = self.lambda.execution_role(microvm) else { return Answer::empty(404) };
        match self.sessions.mint(microvm, &role) {
            Ok(Some(minted)) => Answer::json(
                200,
                &json!({
                    "Code": "Success", "Type": "AWS-HMAC",
                    "LastUpdated": whole_seconds(self.clock.now()),
                    "AccessKeyId": minted.credentials.access_key_id,
                    "SecretAccessKey": minted.credentials.secret_access_key,
                    "Token": minted.token, "Expiration": whole_seconds(minted.expires),
                }),
            ),
            Ok(None) => Answer::empty(404),
            Err(error) => {
                tracing::error!("no credentials for {microvm}: {}", crate::report(&error));
                Answer::empty(500)
            }
        }
    }
}

/// Some SDKs read no fractions here.
fn whole_seconds(time: Timestamp) -> String {
    Timestamp(time.0 / 1000 * 1000).iso8601()
}
