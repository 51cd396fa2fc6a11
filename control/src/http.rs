//! The front door: connections, TLS, and which service a request is for.
//!
//! All services share one port. A request says which one it is for in what it signs: the scope of
//! its credential (`.../us-east-1/lambda/aws4_request`). S3's requests go to s3s, which verifies
//! signatures itself because bodies are streams there. All others are small: the body is read
//! whole, the signature verified, and only then is anything looked at.

mod connections;
pub mod sigv4;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderMap, HeaderValue};
use hyper::http::uri::Authority;
use hyper::service::Service;
use hyper::{Request, Response};
use s3s::service::S3Service;
use s3s::{Body, HttpError};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use uuid::Uuid;

pub use self::connections::{Listener, Place, ServeError};
use crate::answer::{Answer, Protocol, ServiceError};
use crate::clock::Timestamp;
use crate::endpoint::Endpoints;
use crate::metadata::Metadata;
use crate::metrics::{self, Metrics};
use crate::services::Services;
use crate::sessions::Session;
use crate::settings::Limits;
use sigv4::Verifier;

/// Every answer has one.
pub const REQUEST_ID: &str = "x-amzn-requestid";

/// The longest body outside of S3. A batch of log events is 1 MiB, as JSON at most six times that.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// How many of them are read at the same time; the next ones wait.
pub const BODIES_MAX: usize = 64;
/// How long a client may take to send one.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// A request whose signature was verified.
#[derive(Debug)]
pub struct Call {
    /// `GET`, `POST`, ...
    pub method: String,
    /// As it came: percent-encoded.
    pub path: String,
    /// As it came; empty if there is none.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// All of the body.
    pub body: Bytes,
    /// The service that the signature is for.
    pub service: String,
    /// The region that the signature is for.
    pub region: String,
    /// Whose session it is; nothing if it is the daemon's own key.
    pub session: Option<Session>,
}

/// Everything that requests go to.
pub struct Front {
    /// S3.
    pub objects: S3Service,
    /// The other services.
    pub services: Arc<Services>,
    /// Knows the access key.
    pub verifier: Verifier,
    /// The microVMs' own host names.
    pub endpoints: Endpoints,
    /// What guests ask for.
    pub metadata: Arc<Metadata>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What clients may use up.
    pub limits: Limits,
    /// Bodies that may be in memory at the same time, also of who has no key.
    pub bodies: Semaphore,
}

impl Front {
    /// Answers one request of a connection.
    pub async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        place: Place,
    ) -> Result<Response<Body>, HttpError> {
        // SDKs show it in their errors.
        let id = request_id();
        let mut response = match authority(&request) {
            Err(text) => respond(Answer::text(400, text)),
            Ok(Some(host)) if self.endpoints.has(host.host()) => {
                let response = self.endpoints.answer(request, &host, id, place).await;
                self.metrics.count("endpoint", response.status());
                return Ok(response);
            }
            Ok(_) if is_metrics(&request) && place.is_local() => {
                respond(self.metrics.answer(self.services.lambda.gates()))
            }
            Ok(host) => {
                // HTTP/2 has the host elsewhere; signatures want it as a header.
                if let Some(value) = host.and_then(|host| HeaderValue::from_str(host.as_str()).ok())
                    && !request.headers().contains_key(HOST)
                {
                    request.headers_mut().insert(HOST, value);
                }
                let service = service_of(&request);
                let response = if service.as_deref() == Some("s3") {
                    Service::<Request<Incoming>>::call(&self.objects, request).await?
                } else {
                    respond(self.small(request).await)
                };
                self.metrics.count(metrics::service(service.as_deref()), response.status());
                response
            }
        };
        response.headers_mut().insert(REQUEST_ID, id.clone());
        response.headers_mut().entry("x-amz-request-id").or_insert(id);
        Ok(response)
    }

    async fn small(&self, request: Request<Incoming>) -> Answer {
        let protocol = match service_of(&request).as_deref() {
            Some("logs") => Protocol::Json,
            Some("sts" | "iam") => Protocol::Query,
            _ => Protocol::RestJson,
        };
        match self.verified(request).await {
            Ok(call) => {
                let services = Arc::clone(&self.services);
                // Services wait for the disk.
                let work = tokio::task::spawn_blocking(move || services.answer(&call));
                work.await.unwrap_or_else(|error| {
                    tracing::error!("a request was not answered: {error}");
                    let text = "The control plane failed; its log says how.";
                    ServiceError::new(500, "InternalServerException", text).answer(protocol)
                })
            }
            Err(error) => error.answer(protocol),
        }
    }

    async fn verified(&self, request: Request<Incoming>) -> Result<Call, ServiceError> {
        let (head, body) = request.into_parts();
        let _place = self.bodies.acquire().await;
        let slow = |_| {
            ServiceError::new(408, "RequestTimeoutException", "The request's body is too slow.")
        };
        let body = timeout(BODY_TIMEOUT, read(&head.headers, body)).await.map_err(slow)??;
        let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
        let received = sigv4::Received {
            method: head.method.as_str(),
            path,
            query,
            headers: &head.headers,
            body: &body,
        };
        let scope = self.verifier.verify(&received, Timestamp::now())?;
        Ok(Call {
            method: head.method.as_str().to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            service: scope.service,
            region: scope.region,
            session: scope.session,
            headers: head.headers,
            body,
        })
    }
}

/// Whom a request is for. Two hosts in one request are how one is asked and another answers.
fn authority(request: &Request<Incoming>) -> Result<Option<Authority>, &'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let header = hosts.next().map(|value| Authority::try_from(value.as_bytes()));
    let header = header.transpose().map_err(|_| "The Host header is not a host.")?;
    if hosts.next().is_some() {
        return Err("There is more than one Host header.");
    }
    let has_user = |host: &Authority| host.as_str().contains('@');
    if header.iter().chain(request.uri().authority()).any(has_user) {
        return Err("A host has no user.");
    }
    match (request.uri().authority(), header) {
        (Some(target), Some(header)) if *target != header => {
            Err("The Host header and the request's target are not the same host.")
        }
        (Some(target), _) => Ok(Some(target.clone())),
        (None, header) => Ok(header),
    }
}

/// What S3 would take for a bucket is never asked for without a signature.
fn is_metrics(request: &Request<Incoming>) -> bool {
    request.method() == hyper::Method::GET
        && request.uri().path() == "/metrics"
        && service_of(request).is_none()
}

fn request_id() -> HeaderValue {
    let id = HeaderValue::from_str(&Uuid::new_v4().to_string());
    id.unwrap_or_else(|_| HeaderValue::from_static("none"))
}

async fn read(headers: &HeaderMap, body: Incoming) -> Result<Bytes, ServiceError> {
    let too_long = || {
        let text = format!("The request's body is longer than {BODY_BYTES_MAX} bytes");
        ServiceError::new(413, "RequestEntityTooLargeException", text)
    };
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if length
        .and_then(|text| text.parse().ok())
        .is_some_and(|length: usize| length > BODY_BYTES_MAX)
    {
        return Err(too_long());
    }
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(too_long()),
        Err(error) => Err(ServiceError::new(
            400,
            "SerializationException",
            format!("The request's body could not be read: {error}"),
        )),
    }
}

/// The service in the credential's scope, not verified yet.
fn service_of(request: &Request<Incoming>) -> Option<String> {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let scope = match header {
        Some(text) => text.split_once("Credential=")?.1.to_owned(),
        None => {
            let query = request.uri().query()?;
            // Presigned as the AWS CLI does it in the first region: Version 2, which only S3 knows.
            if query.split('&').any(|pair| pair.starts_with("AWSAccessKeyId=")) {
                return Some("s3".into());
            }
            let value = query.split('&').find_map(|pair| pair.strip_prefix("X-Amz-Credential="))?;
            percent_encoding::percent_decode_str(value).decode_utf8().ok()?.into_owned()
        }
    };
    scope.split([',', ' ']).next()?.split('/').nth(3).map(str::to_owned)
}

/// An answer as a response.
pub fn respond(answer: Answer) -> Response<Body> {
    let mut response = Response::new(Body::from(Bytes::from(answer.body)));
    *response.status_mut() = hyper::StatusCode::from_u16(answer.status).unwrap_or_default();
    let headers = response.headers_mut();
    if let Some(kind) = answer.content_type {
        headers.insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    for (name, value) in answer.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    response
}
