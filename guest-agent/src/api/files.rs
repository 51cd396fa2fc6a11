//! Files of the guest: read with ranges, written atomically, listed in pages.
//!
//! What may block on a disk runs on the runtime's helper threads, one bounded piece at a time, so
//! that a slow disk or a slow client holds up nobody else.

mod download;
mod listing;
mod upload;

use super::error::ApiError;
use super::query::Query;
use super::{Answer, Incomer, json};
use hyper::StatusCode;
use std::path::Path;

pub(super) async fn get(request: Incomer, mut query: Query) -> Answer {
    let path = query.path()?;
    query.finish()?;
    download::answer(request.headers(), path).await
}

pub(super) async fn put(request: Incomer, query: Query) -> Answer {
    upload::answer(request, query).await
}

pub(super) async fn stat(mut query: Query) -> Answer {
    let path = query.path()?;
    query.finish()?;
    let entry = blocking(move || listing::stat(&path)).await??;
    Ok(json(StatusCode::OK, &entry))
}

pub(super) async fn list(mut query: Query) -> Answer {
    let path = query.path()?;
    let after = query.bytes("after").unwrap_or_default();
    let limit = query.number("limit", 10)?;
    query.finish()?;
    let page = blocking(move || listing::list(&path, &after, limit)).await??;
    Ok(json(StatusCode::OK, &page))
}

pub(super) async fn delete(mut query: Query) -> Answer {
    let path = query.path()?;
    let recursive = query.flag("recursive")?;
    query.finish()?;
    blocking(move || remove(&path, recursive)).await??;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}

/// Removes a file, a link itself, an empty directory, or with `recursive` a full one.
fn remove(path: &Path, recursive: bool) -> Result<(), ApiError> {
    let name = path.display().to_string();
    if path.parent().is_none() {
        let message = "the root directory stays".to_owned();
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", message));
    }
    let removed =
        std::fs::symlink_metadata(path).and_then(|metadata| match (metadata.is_dir(), recursive) {
            (false, _) => std::fs::remove_file(path),
            (true, false) => std::fs::remove_dir(path),
            (true, true) => std::fs::remove_dir_all(path),
        });
    removed.map_err(|error| ApiError::file("delete", &name, &error))
}

/// Runs file work on a helper thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
    })
}
