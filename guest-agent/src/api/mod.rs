//! The HTTP API, as `docs/agent-api.md` describes it: one function per endpoint, one error shape.

pub mod body;
pub mod error;
mod exec;
mod files;
mod guest;
pub mod query;
mod tunnel;

use crate::agent::{Agent, Shutdown};
use crate::limits::JSON_BODY_MAX_BYTES;
use body::Body;
use error::ApiError;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use query::Query;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::Cell;
use std::rc::Rc;
use tokio::sync::OwnedSemaphorePermit;

/// What a request's handler can reach.
#[derive(Debug, Clone)]
pub struct Context {
    /// The agent.
    pub agent: Rc<Agent>,
    /// The room that the connection takes; tunnels and streams keep it beyond HTTP.
    pub connection: Rc<OwnedSemaphorePermit>,
    /// Where a wish to end the guest waits until its answer is sent.
    pub shutdown: Rc<Cell<Option<Shutdown>>>,
}

/// A request whose body has not been read.
type Incomer = Request<Incoming>;
type Answer = Result<Response<Body>, ApiError>;

/// Answers one request.
pub async fn handle(context: Context, request: Incomer) -> Response<Body> {
    if request.method() == Method::CONNECT {
        return tunnel::connect(context, request).await.unwrap_or_else(ApiError::into_response);
    }
    let allowed = match request.uri().path() {
        "/v1/health" | "/v1/logs" | "/v1/files/stat" | "/v1/files/list" => "GET",
        "/v1/app" => "GET, POST",
        "/v1/exec" | "/v1/shutdown" => "POST",
        "/v1/files" => "GET, PUT, DELETE",
        path => return ApiError::no_endpoint(path).into_response(),
    };
    let method = request.method().clone();
    if !allowed.split(", ").any(|one| one == method.as_str()) {
        let mut response = ApiError::wrong_method(&method, allowed).into_response();
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        return response;
    }
    dispatch(context, request, &method).await.unwrap_or_else(ApiError::into_response)
}

async fn dispatch(context: Context, request: Incomer, method: &Method) -> Answer {
    let query = Query::parse(request.uri().query().unwrap_or(""))?;
    match (request.uri().path(), method.as_str()) {
        ("/v1/health", _) => guest::health(&context.agent, &query),
        ("/v1/logs", _) => guest::logs(context, &query),
        ("/v1/app", "GET") => guest::app(&context.agent, &query),
        ("/v1/app", _) => guest::start_app(&context.agent, request, &query).await,
        ("/v1/shutdown", _) => guest::shutdown(&context, request, &query).await,
        ("/v1/exec", _) => exec::exec(context, request, &query).await,
        ("/v1/files/stat", _) => files::stat(query).await,
        ("/v1/files/list", _) => files::list(query).await,
        ("/v1/files", "GET") => files::get(request, query).await,
        ("/v1/files", "PUT") => files::put(request, query).await,
        ("/v1/files", "DELETE") => files::delete(query).await,
        (path, _) => Err(ApiError::no_endpoint(path)),
    }
}

/// Reads a JSON body of bounded size.
async fn read_json<T: DeserializeOwned>(request: Incomer) -> Result<T, ApiError> {
    let limited = Limited::new(request.into_body(), JSON_BODY_MAX_BYTES);
    let bytes = match limited.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("a JSON body may have {JSON_BODY_MAX_BYTES} bytes"),
            ));
        }
        Err(error) => return Err(ApiError::bad_request(error::chain(&*error))),
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::bad_request(format!("the body is not valid: {error}")))
}

/// Answers with a value as JSON.
fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    // The API's own types: strings, numbers and maps with string keys, which cannot fail.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
