//! The one shape of an error: `{"error": {"code": "...", "message": "..."}}`.

use super::body::Body;
use super::json;
use crate::app::AppError;
use crate::process::spawn::SpawnError;
use hyper::{Method, Response, StatusCode};
use serde_json::json as value;
use std::error::Error;
use std::fmt::Write;

/// What went wrong, for a program (`code`) and for a person (`message`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// Stable and in lower case.
    pub code: &'static str,
    /// A sentence.
    pub message: String,
}

impl ApiError {
    /// An error.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// The request itself is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(super) fn no_endpoint(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "no_endpoint", format!("there is no endpoint {path}"))
    }

    pub(super) fn wrong_method(method: &Method, allowed: &str) -> Self {
        let message = format!("{method} is not possible here; {allowed} is");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message)
    }

    /// A file operation failed: the kernel's reason decides the status.
    pub(super) fn file(attempt: &str, path: &str, error: &std::io::Error) -> Self {
        let (status, code) = match error.raw_os_error() {
            Some(libc::ENOENT) => (StatusCode::NOT_FOUND, "not_found"),
            Some(libc::EACCES | libc::EPERM) => (StatusCode::FORBIDDEN, "forbidden"),
            Some(libc::EROFS) => (StatusCode::FORBIDDEN, "read_only"),
            Some(libc::ENOSPC | libc::EDQUOT) => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
            Some(libc::EISDIR) => (StatusCode::CONFLICT, "is_a_directory"),
            Some(libc::ENOTDIR) => (StatusCode::CONFLICT, "not_a_directory"),
            Some(libc::ENOTEMPTY) => (StatusCode::CONFLICT, "not_empty"),
            Some(libc::EEXIST) => (StatusCode::CONFLICT, "exists"),
            Some(libc::ELOOP | libc::ENAMETOOLONG | libc::EINVAL) => {
                (StatusCode::BAD_REQUEST, "bad_path")
            }
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "io_error"),
        };
        Self::new(status, code, format!("cannot {attempt} {path}: {error}"))
    }

    /// The answer.
    #[must_use]
    pub fn into_response(self) -> Response<Body> {
        let body = value!({ "error": { "code": self.code, "message": self.message } });
        json(self.status, &body)
    }
}

impl From<SpawnError> for ApiError {
    fn from(error: SpawnError) -> Self {
        let code = match &error {
            SpawnError::Spec(_) => "bad_request",
            SpawnError::User(_) => "unknown_user",
            SpawnError::Directory { .. } => "bad_directory",
            SpawnError::Start { .. } => "cannot_start",
            SpawnError::Terminal(_) | SpawnError::Pipe { .. } => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                return Self::new(status, "io_error", chain(&error));
            }
        };
        Self::new(StatusCode::BAD_REQUEST, code, chain(&error))
    }
}

impl From<AppError> for ApiError {
    fn from(error: AppError) -> Self {
        match error {
            AppError::Running { .. } => {
                Self::new(StatusCode::CONFLICT, "app_running", error.to_string())
            }
            AppError::Spawn(error) => error.into(),
        }
    }
}

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
