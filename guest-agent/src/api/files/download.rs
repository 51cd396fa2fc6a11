//! `GET /v1/files`: a regular file, whole or one range of it.

use super::super::Answer;
use super::super::body::Body;
use super::super::error::ApiError;
use super::blocking;
use crate::limits::{FILE_CHUNK_BYTES, FILE_CHUNKS_QUEUED_COUNT};
use bytes::{Bytes, BytesMut};
use hyper::header::{
    ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RANGE,
};
use hyper::{Response, StatusCode};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

const MODE: HeaderName = HeaderName::from_static("rotifer-mode");

/// The part of a file that is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    first: u64,
    length_bytes: u64,
    is_range: bool,
}

pub(super) async fn answer(headers: &HeaderMap, path: PathBuf) -> Answer {
    let range = headers.get(RANGE).cloned();
    let (file, part, size_bytes, mode) = blocking(move || open(&path, range.as_ref())).await??;
    // Files of /proc and /sys say that they are empty and are not: these are read to their end.
    let length_bytes = if size_bytes == 0 { None } else { Some(part.length_bytes) };
    let (sender, pieces) = mpsc::channel(FILE_CHUNKS_QUEUED_COUNT);
    tokio::task::spawn_local(send(file, length_bytes, sender));

    let mut response = Response::new(Body::Stream { pieces, length_bytes });
    let header =
        |text: String| HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(MODE, header(format!("{:04o}", mode & 0o7777)));
    if part.is_range {
        let last = part.first + part.length_bytes - 1;
        headers.insert(CONTENT_RANGE, header(format!("bytes {}-{last}/{size_bytes}", part.first)));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

fn open(path: &Path, range: Option<&HeaderValue>) -> Result<(File, Part, u64, u32), ApiError> {
    let name = path.display().to_string();
    let fail = |error: &io::Error| ApiError::file("read", &name, error);
    // Without O_NONBLOCK, opening a named pipe would wait for a writer.
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| fail(&error))?;
    let metadata = file.metadata().map_err(|error| fail(&error))?;
    if metadata.is_dir() {
        return Err(fail(&io::Error::from_raw_os_error(libc::EISDIR)));
    }
    if !metadata.is_file() {
        let message = format!("{name} is not a regular file");
        return Err(ApiError::new(StatusCode::CONFLICT, "not_a_file", message));
    }
    let size_bytes = metadata.len();
    let part = part_of(range, size_bytes)?;
    if part.first > 0 {
        file.seek(SeekFrom::Start(part.first)).map_err(|error| fail(&error))?;
    }
    Ok((file, part, size_bytes, metadata.mode()))
}

/// One range of bytes as RFC 9110, section 14, has it. Several ranges or another unit are answered
/// with the whole file, which it allows.
fn part_of(range: Option<&HeaderValue>, size_bytes: u64) -> Result<Part, ApiError> {
    let whole = Part { first: 0, length_bytes: size_bytes, is_range: false };
    let spec = range.and_then(|range| range.to_str().ok()?.trim().strip_prefix("bytes="));
    let Some((first, last)) = spec.and_then(|spec| spec.trim().split_once('-')) else {
        return Ok(whole);
    };
    let (first, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.saturating_add(1).min(size_bytes)),
        (Ok(first), Err(_)) if last.is_empty() => (first, size_bytes),
        (Err(_), Ok(suffix)) if first.is_empty() => (size_bytes.saturating_sub(suffix), size_bytes),
        _ => return Ok(whole),
    };
    if first >= end {
        let message = format!("the range begins beyond the {size_bytes} bytes of the file");
        return Err(ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, "bad_range", message));
    }
    Ok(Part { first, length_bytes: end - first, is_range: true })
}

/// Sends up to `length_bytes`, or everything. A file that shrank meanwhile cuts the answer off.
async fn send(mut file: File, length_bytes: Option<u64>, sender: mpsc::Sender<io::Result<Bytes>>) {
    let mut left_bytes = length_bytes.unwrap_or(u64::MAX);
    while left_bytes > 0 {
        // Room first: nothing is read ahead for a client that does not take it.
        let Ok(room) = sender.reserve().await else { return };
        let want = usize::try_from(left_bytes).unwrap_or(usize::MAX).min(FILE_CHUNK_BYTES);
        let read = tokio::task::spawn_blocking(move || (read_chunk(&mut file, want), file)).await;
        let Ok((chunk, same_file)) = read else { return };
        file = same_file;
        match chunk {
            Ok(chunk) if chunk.is_empty() => {
                if length_bytes.is_some() {
                    room.send(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                return;
            }
            Ok(chunk) => {
                left_bytes -= chunk.len() as u64;
                room.send(Ok(chunk));
            }
            Err(error) => return room.send(Err(error)),
        }
    }
}

fn read_chunk(file: &mut File, want: usize) -> io::Result<Bytes> {
    let mut chunk = BytesMut::zeroed(want);
    let count = loop {
        match file.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    chunk.truncate(count);
    Ok(chunk.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(range: &str, size_bytes: u64) -> Option<(u64, u64, bool)> {
        let range = HeaderValue::from_str(range).unwrap();
        let part = part_of(Some(&range), size_bytes).ok()?;
        Some((part.first, part.length_bytes, part.is_range))
    }

    #[test]
    fn ranges_are_cut_to_the_file() {
        assert_eq!(part("bytes=0-9", 100), Some((0, 10, true)));
        assert_eq!(part("bytes=90-", 100), Some((90, 10, true)));
        assert_eq!(part("bytes=90-1000", 100), Some((90, 10, true)));
        assert_eq!(part("bytes=-10", 100), Some((90, 10, true)));
        assert_eq!(part("bytes=-1000", 100), Some((0, 100, true)));
    }

    #[test]
    fn ranges_beyond_the_file_are_refused_and_others_mean_all_of_it() {
        assert_eq!(part("bytes=100-", 100), None);
        assert_eq!(part("bytes=-0", 100), None);
        assert_eq!(part("bytes=0-0", 0), None);
        for range in ["bytes=5-2", "bytes=1-2,4-5", "lines=1-2", "bytes=", "bytes=a-b"] {
            assert_eq!(part(range, 100), Some((0, 100, false)), "{range}");
        }
    }

    proptest! {
        #[test]
        fn any_range_stays_within_the_file(range in "bytes=[0-9]{0,20}-[0-9]{0,20}", size in 0u64..) {
            if let Some((first, length, _)) = part(&range, size) {
                prop_assert!(first.checked_add(length).unwrap() <= size);
            }
        }
    }
}
