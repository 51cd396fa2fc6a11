//! S3, as far as our own command line needs it.

use std::fs::File;

use aws_sigv4::http_request::SignableBody;
use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, HOST};
use hyper::http::response::Parts;
use hyper::{Method, Request, StatusCode};
use tokio::io::AsyncReadExt;

use super::{Client, ClientError};

/// What is read of a file at once.
const READ_BYTES: usize = 256 << 10;
const NO_BYTES_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What an object is to be.
#[derive(Debug)]
pub struct Content {
    /// It is read from where it stands.
    pub file: File,
    /// In bytes.
    pub length: u64,
    /// As hexadecimal digits.
    pub sha256: String,
}

impl Client {
    /// Whether there is an object at `/bucket/key`, percent-encoded.
    pub async fn has_object(&self, path: &str) -> Result<bool, ClientError> {
        let (head, body) = self.ask_s3(Method::HEAD, path, None).await?;
        match head.status {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            status => Err(refused(status, &body)),
        }
    }

    /// Makes a bucket (`/bucket`) or an object (`/bucket/key`).
    pub async fn put(&self, path: &str, content: Option<Content>) -> Result<(), ClientError> {
        let (head, body) = self.ask_s3(Method::PUT, path, content).await?;
        if head.status.is_success() { Ok(()) } else { Err(refused(head.status, &body)) }
    }

    async fn ask_s3(
        &self,
        method: Method,
        path: &str,
        content: Option<Content>,
    ) -> Result<(Parts, Bytes), ClientError> {
        let sha256 = content.as_ref().map_or(NO_BYTES_SHA256, |it| it.sha256.as_str()).to_owned();
        let length = content.as_ref().map_or(0, |content| content.length);
        let body: UnsyncBoxBody<Bytes, std::io::Error> = match content {
            Some(content) => read(content.file),
            None => Empty::new().map_err(|never| match never {}).boxed_unsync(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.address)
            .header(CONTENT_LENGTH, length)
            .header("x-amz-content-sha256", &sha256)
            .body(body);
        let mut request =
            request.map_err(|error| ClientError::Make { reason: error.to_string() })?;
        self.sign(&mut request, "s3", SignableBody::Precomputed(sha256))?;
        self.send(request).await
    }
}

/// A file as a body, piece by piece.
fn read(file: File) -> UnsyncBoxBody<Bytes, std::io::Error> {
    let pieces = stream::try_unfold(tokio::fs::File::from_std(file), |mut file| async move {
        let mut piece = vec![0; READ_BYTES];
        let count = file.read(&mut piece).await?;
        piece.truncate(count);
        Ok((count > 0).then(|| (Frame::data(Bytes::from(piece)), file)))
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// A refusal in the words of S3, which are XML.
fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    let text = String::from_utf8_lossy(body);
    let between = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once('<').map(|(inside, _)| inside.to_owned())
    };
    let message = between("Message").or_else(|| between("Code"));
    let message = message.unwrap_or_else(|| format!("the daemon answers {status}"));
    ClientError::Refused { code: between("Code").unwrap_or_default(), message }
}
