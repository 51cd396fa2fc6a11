//! An object of another S3-compatible service, as a file of this host.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::SignableBody;
use hyper::{Request, StatusCode};
use percent_encoding::utf8_percent_encode;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Response, Url};
use rotifer_build::limits::ARCHIVE_MAX_BYTES;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::KEY_ENCODED;
use crate::settings::CodeEndpoint;
use crate::signing::Signer;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an endpoint may say nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// How long all of an archive may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(3600);
/// What is read of a refusal.
const REFUSAL_BYTES_MAX: usize = 16 << 10;
/// The longest code of an error that is passed on.
const CODE_BYTES_MAX: usize = 64;
const NO_BYTES_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Where the settings say all this.
const SETTING: &str = "host.code-endpoints";

/// Why an object cannot be had; in the service's codes for a build's code artifact.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum RemoteError {
    #[error(
        "S3_INVALID_OBJECT: the key of {uri} has a part that is '.' or '..', or it is empty: give it another name"
    )]
    Key { uri: String },
    #[error(
        "INTERNAL_PLATFORM_ERROR: cannot use {path:?}, which the settings' {SETTING} name for the bucket {bucket}: {source}"
    )]
    File { bucket: String, path: PathBuf, source: io::Error },
    #[error(
        "INTERNAL_PLATFORM_ERROR: cannot ask {endpoint} for {uri}: {reason}; correct the settings' {SETTING}"
    )]
    Ask { uri: String, endpoint: String, reason: String },
    #[error(
        "INTERNAL_PLATFORM_ERROR: cannot reach {endpoint}, where {uri} is: {reason}; see that it runs and that the \
         settings' {SETTING} are right"
    )]
    Reach { uri: String, endpoint: String, reason: String },
    #[error("{}: {endpoint} answers {answer} for {uri}: {}", reason.code(), reason.remedy())]
    Refused { uri: String, endpoint: String, answer: String, reason: Reason },
    #[error(
        "S3_INVALID_OBJECT: {uri} at {endpoint} has more than the {bytes_max} bytes that an archive may have"
    )]
    TooLarge { uri: String, endpoint: String, bytes_max: u64 },
    #[error("INTERNAL_PLATFORM_ERROR: cannot write what comes of {uri}: {source}")]
    Write { uri: String, source: io::Error },
}

/// What a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    NoBucket,
    NoKey,
    Denied,
    Elsewhere,
    Other,
}

impl Reason {
    fn of(status: StatusCode, said: &str) -> Self {
        match (status, said) {
            (_, "AuthorizationHeaderMalformed" | "PermanentRedirect" | "TemporaryRedirect") => {
                Self::Elsewhere
            }
            (status, _) if status.is_redirection() => Self::Elsewhere,
            (StatusCode::NOT_FOUND, "NoSuchBucket") => Self::NoBucket,
            (StatusCode::NOT_FOUND, _) => Self::NoKey,
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => Self::Denied,
            _ => Self::Other,
        }
    }

    fn code(self) -> &'static str {
        match self {
            Self::NoBucket => "S3_NO_SUCH_BUCKET",
            Self::NoKey => "S3_NO_SUCH_KEY",
            Self::Denied => "S3_ACCESS_DENIED",
            Self::Elsewhere => "S3_CROSS_REGION_ACCESS_DENIED",
            Self::Other => "INTERNAL_PLATFORM_ERROR",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::NoBucket => "make the bucket there, or name another one",
            Self::NoKey => "upload it there, or name another key",
            Self::Denied => {
                "see that the credentials-file of host.code-endpoints has a key which may read it, and that \
                 this host's clock is right"
            }
            Self::Elsewhere => {
                "host.code-endpoints need the endpoint and the region that the bucket is in; redirections are \
                 not followed"
            }
            Self::Other => "build it again later, or see what that endpoint logs",
        }
    }
}

/// What is fetched.
pub struct Object<'a> {
    /// Its address, for errors.
    pub uri: &'a str,
    /// The bucket.
    pub bucket: &'a str,
    /// The key.
    pub key: &'a str,
    /// Who has it.
    pub at: &'a CodeEndpoint,
}

/// Copies an object to a file, with at most as many bytes as an archive may have.
pub async fn fetch(object: &Object<'_>, to: &Path) -> Result<(), RemoteError> {
    let mut answer = ask(object).await?;
    let status = answer.status();
    if status.is_success() {
        return save(object, answer, to, ARCHIVE_MAX_BYTES).await;
    }
    let said = code_of(&mut answer).await;
    let reason = Reason::of(status, &said);
    let answer = format!("{} {said}", status.as_u16()).trim_end().to_owned();
    let (uri, endpoint) = (object.uri.to_owned(), object.at.endpoint.clone());
    Err(RemoteError::Refused { uri, endpoint, answer, reason })
}

async fn save(
    object: &Object<'_>,
    mut answer: Response,
    to: &Path,
    bytes_max: u64,
) -> Result<(), RemoteError> {
    let too_large = || {
        let (uri, endpoint) = (object.uri.to_owned(), object.at.endpoint.clone());
        RemoteError::TooLarge { uri, endpoint, bytes_max }
    };
    if answer.content_length().is_some_and(|bytes| bytes > bytes_max) {
        return Err(too_large());
    }
    let written = |source| RemoteError::Write { uri: object.uri.to_owned(), source };
    let mut file = File::create(to).await.map_err(written)?;
    let mut left_bytes = bytes_max;
    while let Some(piece) = answer.chunk().await.map_err(|error| object.unreachable(error))? {
        left_bytes = left_bytes.checked_sub(piece.len() as u64).ok_or_else(too_large)?;
        file.write_all(&piece).await.map_err(written)?;
    }
    // What was written last is written now.
    file.flush().await.map_err(written)
}

async fn ask(object: &Object<'_>) -> Result<Response, RemoteError> {
    let Object { uri, bucket, key, at } = object;
    let url =
        address(at, bucket, key).ok_or_else(|| RemoteError::Key { uri: (*uri).to_owned() })?;
    let cannot = |reason: String| {
        let endpoint = at.endpoint.clone();
        RemoteError::Ask { uri: (*uri).to_owned(), endpoint, reason }
    };
    let request = Request::get(url.path()).header("x-amz-content-sha256", NO_BYTES_SHA256).body(());
    let mut request = request.map_err(|error| cannot(error.to_string()))?;
    let keys = at.credentials().map_err(|source| object.unusable(&at.credentials_file, source))?;
    let credentials =
        Credentials::from_keys(keys.access_key_id, keys.secret_access_key, keys.session_token);
    let origin = url.origin().ascii_serialization();
    let signer = Signer { origin: &origin, region: &at.region, service: "s3", credentials };
    signer.sign(&mut request, SignableBody::Precomputed(NO_BYTES_SHA256.into())).map_err(cannot)?;
    let asked = client(object)?.get(url).headers(request.headers().clone());
    asked.send().await.map_err(|error| object.unreachable(error))
}

/// Where an object is. Whoever reads an address takes parts like `..` for directions, to other buckets even: a key
/// that has such has none.
fn address(at: &CodeEndpoint, bucket: &str, key: &str) -> Option<Url> {
    let endpoint = &at.endpoint;
    let encoded = utf8_percent_encode(key, &KEY_ENCODED);
    let (origin, path) = match at.path_style {
        true => (endpoint.clone(), format!("/{bucket}/{encoded}")),
        false => (endpoint.replacen("://", &format!("://{bucket}."), 1), format!("/{encoded}")),
    };
    let url = Url::parse(&format!("{origin}{path}")).ok()?;
    (!key.is_empty() && url.path() == path).then_some(url)
}

fn client(object: &Object<'_>) -> Result<Client, RemoteError> {
    // Whoever set another one before us has set it for all.
    let _is_set = rustls::crypto::ring::default_provider().install_default();
    let mut client = Client::builder()
        .https_only(true)
        .redirect(Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .timeout(FETCH_TIMEOUT);
    if let Some(path) = &object.at.ca {
        let pem = std::fs::read(path).map_err(|source| object.unusable(path, source))?;
        let authorities = Certificate::from_pem_bundle(&pem)
            .map_err(|error| object.unusable(path, io::Error::other(error)))?;
        client = client.tls_certs_only(authorities);
    }
    client.build().map_err(|error| {
        let (uri, endpoint) = (object.uri.to_owned(), object.at.endpoint.clone());
        RemoteError::Ask { uri, endpoint, reason: crate::report(&error) }
    })
}

impl Object<'_> {
    fn unusable(&self, path: &Path, source: io::Error) -> RemoteError {
        RemoteError::File { bucket: self.bucket.to_owned(), path: path.into(), source }
    }

    fn unreachable(&self, error: reqwest::Error) -> RemoteError {
        let (uri, endpoint) = (self.uri.to_owned(), self.at.endpoint.clone());
        RemoteError::Reach { uri, endpoint, reason: crate::report(&error.without_url()) }
    }
}

/// The code in a refusal, if it is one of S3: nothing else of it is passed on.
async fn code_of(answer: &mut Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(piece)) = answer.chunk().await
        && body.len() < REFUSAL_BYTES_MAX
    {
        body.extend_from_slice(&piece);
    }
    let text = String::from_utf8_lossy(&body);
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    let code = code.map_or("", |(code, _)| code);
    let is_code = code.len() <= CODE_BYTES_MAX && code.bytes().all(|it| it.is_ascii_alphanumeric());
    if is_code { code.to_owned() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use reqwest::Body;

    use super::*;

    fn at(path_style: bool) -> CodeEndpoint {
        serde_json::from_value(serde_json::json!({
            "endpoint": "https://s3.example:9000", "credentials-file": "keys.json",
            "path-style": path_style,
        }))
        .unwrap()
    }

    #[test]
    fn a_bucket_is_in_the_path_or_in_the_hosts_name() {
        let text = |path_style, key| address(&at(path_style), "code", key).map(String::from);
        let path = "https://s3.example:9000/code/a%20b//%C3%A4%2B.zip";
        assert_eq!(text(true, "a b//\u{e4}+.zip").as_deref(), Some(path));
        let host = "https://code.s3.example:9000/app.zip";
        assert_eq!(text(false, "app.zip").as_deref(), Some(host));
    }

    #[test]
    fn a_key_does_not_lead_to_another_bucket() {
        for key in ["../other/app.zip", "..", "a/./b", "a/..", ""] {
            for path_style in [true, false] {
                assert_eq!(address(&at(path_style), "code", key), None, "{key:?}");
            }
        }
        // These are names like others.
        for key in ["a..b", ".../x", "%2e%2e/other", "..\\x"] {
            let url = address(&at(true), "code", key).unwrap();
            assert!(url.path().starts_with("/code/"), "{url}");
        }
    }

    #[tokio::test]
    async fn no_more_is_taken_than_an_archive_may_have_whatever_is_announced() {
        let directory = tempfile::tempdir().unwrap();
        let (to, at) = (directory.path().join("code.zip"), at(true));
        let object = Object { uri: "s3://code/app.zip", bucket: "code", key: "app.zip", at: &at };
        let piece = || Ok::<_, io::Error>(Frame::data(Bytes::from_static(b"12345")));
        for (count, is_taken) in [(0, true), (1, true), (2, true), (3, false)] {
            let pieces = futures::stream::iter((0..count).map(move |_| piece()));
            let answer = hyper::Response::new(Body::wrap(StreamBody::new(pieces)));
            let saved = save(&object, answer.into(), &to, 10).await;
            assert_eq!(saved.is_ok(), is_taken, "{count}: {saved:?}");
            if is_taken {
                assert_eq!(std::fs::read(&to).unwrap(), b"12345".repeat(count));
            }
        }
    }
}
