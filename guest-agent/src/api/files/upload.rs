//! `PUT /v1/files`: the body becomes the file, at once or not at all.

use super::super::error::{ApiError, chain};
use super::super::query::Query;
use super::super::{Answer, Incomer, json};
use super::blocking;
use crate::limits::FILE_CHUNK_BYTES;
use crate::process::users::Identity;
use http_body_util::BodyExt;
use hyper::StatusCode;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const MODE_DEFAULT: u32 = 0o644;
/// Numbers of temporary files tried before one that exists is reported.
const NAME_ATTEMPTS: u32 = 16;

/// What to make of the body.
#[derive(Debug)]
struct Target {
    path: PathBuf,
    mode: u32,
    make_directories: bool,
    sync: bool,
    owner: Option<(u32, u32)>,
}

pub(super) async fn answer(request: Incomer, mut query: Query) -> Answer {
    let target = Target::parse(&mut query)?;
    query.finish()?;
    let mut body = request.into_body();
    let mut upload = blocking(move || Upload::create(target)).await??;
    let mut size_bytes = 0;
    let mut pending = Vec::new();
    loop {
        let frame = body.frame().await.transpose().map_err(|error| {
            ApiError::bad_request(format!("the body broke off: {}", chain(&error)))
        })?;
        let is_last = frame.is_none();
        if let Some(data) = frame.and_then(|frame| frame.into_data().ok()) {
            size_bytes += data.len() as u64;
            pending.extend_from_slice(&data);
        }
        if is_last || pending.len() >= FILE_CHUNK_BYTES {
            let chunk = std::mem::take(&mut pending);
            let work = move || upload.write(&chunk).map(|()| (upload, chunk));
            (upload, pending) = blocking(work).await??;
            pending.clear();
        }
        if is_last {
            break;
        }
    }
    blocking(move || upload.commit()).await??;
    Ok(json(StatusCode::CREATED, &serde_json::json!({ "size_bytes": size_bytes })))
}

impl Target {
    fn parse(query: &mut Query) -> Result<Self, ApiError> {
        let path = query.path()?;
        if path.file_name().is_none() {
            let message = "path names a directory".to_owned();
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_path", message));
        }
        let mode = query.number("mode", 8)?.unwrap_or(MODE_DEFAULT.into());
        let mode = u32::try_from(mode)
            .ok()
            .filter(|mode| *mode <= 0o7777)
            .ok_or_else(|| ApiError::bad_request("mode is octal and at most 7777"))?;
        let owner = match query.text("user")? {
            None => None,
            Some(user) => {
                let identity = Identity::resolve(Some(&user)).map_err(|error| {
                    ApiError::new(StatusCode::BAD_REQUEST, "unknown_user", error.to_string())
                })?;
                Some((identity.uid, identity.gid))
            }
        };
        let make_directories = query.flag("mkdir")?;
        Ok(Self { path, mode, make_directories, sync: query.flag("sync")?, owner })
    }
}

/// A temporary file beside its target, which is removed unless it is committed.
#[derive(Debug)]
struct Upload {
    target: Target,
    temporary: PathBuf,
    file: File,
    committed: bool,
}

impl Upload {
    fn create(target: Target) -> Result<Self, ApiError> {
        let name = target.path.display().to_string();
        let fail = |error: &io::Error| ApiError::file("write", &name, error);
        // "/a" always has a parent: `Target::parse` refused "/".
        let directory = target.path.parent().unwrap_or(Path::new("/"));
        if target.make_directories {
            fs::create_dir_all(directory).map_err(|error| fail(&error))?;
        }
        if fs::symlink_metadata(&target.path).is_ok_and(|metadata| metadata.is_dir()) {
            return Err(fail(&io::Error::from_raw_os_error(libc::EISDIR)));
        }
        let (temporary, file) = create_temporary(directory).map_err(|error| fail(&error))?;
        Ok(Self { target, temporary, file, committed: false })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        self.file.write_all(bytes).map_err(|error| self.fail(&error))
    }

    fn commit(mut self) -> Result<(), ApiError> {
        self.finish().map_err(|error| self.fail(&error))
    }

    fn finish(&mut self) -> io::Result<()> {
        if let Some((uid, gid)) = self.target.owner {
            std::os::unix::fs::fchown(&self.file, Some(uid), Some(gid))?;
        }
        // After the owner: changing that takes the set-user-id bit away.
        self.file.set_permissions(fs::Permissions::from_mode(self.target.mode))?;
        if self.target.sync {
            self.file.sync_all()?;
        }
        fs::rename(&self.temporary, &self.target.path)?;
        self.committed = true;
        match self.target.path.parent() {
            Some(directory) if self.target.sync => File::open(directory)?.sync_all(),
            _ => Ok(()),
        }
    }

    fn fail(&self, error: &io::Error) -> ApiError {
        ApiError::file("write", &self.target.path.display().to_string(), error)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.committed {
            // Whatever stopped the upload is reported; that its remains stay as well is no news.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Nobody but the owner may read the file before its mode is set.
fn create_temporary(directory: &Path) -> io::Result<(PathBuf, File)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut last = io::Error::from_raw_os_error(libc::EEXIST);
    for _ in 0..NAME_ATTEMPTS {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let path = directory.join(format!(".rotifer-upload-{process}-{number}"));
        match File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}
