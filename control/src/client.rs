//! A client of the daemon, for our own command line: its API as everybody else has it, signed.

mod objects;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::Credentials as SigningCredentials;
use aws_sigv4::http_request::SignableBody;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Body;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::http::response::Parts;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub use self::objects::Content;
use crate::signing::Signer;
use crate::state::{Credentials, Directory, StateError};

/// The longest answer that is taken.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Knows a daemon.
pub struct Client {
    address: String,
    region: String,
    account: String,
    credentials: Credentials,
    tls: TlsConnector,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum ClientError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{0:?} has no access key or endpoint yet: start `rotifer serve` first")]
    NeverServed(std::path::PathBuf),
    #[error("cannot reach the daemon at {address}: does `rotifer serve` run?")]
    Reach { address: String, source: io::Error },
    #[error("the daemon at {address} does not answer")]
    Http { address: String, source: hyper::Error },
    #[error("the daemon at {address} takes too long to answer")]
    Slow { address: String },
    #[error("cannot make a request: {reason}")]
    Make { reason: String },
    #[error("{message}")]
    Refused { code: String, message: String },
    #[error("the answer is not understood: {reason}")]
    Answer { reason: String },
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// `lambda` or `logs`.
    pub service: &'a str,
    /// `GET`, ...
    pub method: &'a str,
    /// With its query.
    pub path: &'a str,
    /// Of `logs`: the operation.
    pub operation: Option<&'a str>,
    /// The body; null is none.
    pub body: &'a Value,
}

impl Client {
    /// A client of the daemon that keeps its state in a directory.
    pub fn new(directory: &Directory) -> Result<Self, ClientError> {
        let never = || ClientError::NeverServed(directory.path().to_owned());
        let place = directory.read("endpoint")?.ok_or_else(never)?;
        if !directory.file("credentials.json").exists() {
            return Err(never());
        }
        let mut lines = place.lines();
        let mut next = || lines.next().unwrap_or_default().to_owned();
        let (endpoint, region, account) = (next(), next(), next());
        let address = endpoint.strip_prefix("https://").ok_or_else(never)?.to_owned();
        let failed = |reason: String| ClientError::Make { reason };
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(directory.file("ca.pem"));
        let authority = authority.map_err(|error| failed(format!("ca.pem: {error:?}")))?;
        roots.add(authority).map_err(|error| failed(error.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            address,
            region,
            account,
            credentials: directory.credentials()?,
            tls: TlsConnector::from(Arc::new(config)),
        })
    }

    /// A connection to the daemon.
    pub async fn connect(&self) -> Result<TlsStream<TcpStream>, ClientError> {
        let reach = |source| ClientError::Reach { address: self.address.clone(), source };
        let stream = TcpStream::connect(&self.address).await.map_err(reach)?;
        // The certificate is for loopback; whoever is asked has the authority's key.
        let name = ServerName::try_from("localhost")
            .map_err(|error| ClientError::Make { reason: error.to_string() })?;
        self.tls.connect(name, stream).await.map_err(reach)
    }

    /// The region that the daemon is in.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The account that everything belongs to.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// Asks and waits for the answer. A refusal is an error, in the service's words.
    pub async fn ask(&self, ask: Ask<'_>) -> Result<Value, ClientError> {
        let slow = |_| ClientError::Slow { address: self.address.clone() };
        let (head, body) =
            timeout(TIMEOUT, self.send(self.request(ask)?)).await.map_err(slow)??;
        let answer: Value = match body.as_ref() {
            b"" => Value::Null,
            body => serde_json::from_slice(body)
                .map_err(|error| ClientError::Answer { reason: error.to_string() })?,
        };
        if head.status.is_success() {
            return Ok(answer);
        }
        let header = head.headers.get("x-amzn-errortype").and_then(|code| code.to_str().ok());
        let code = answer["__type"].as_str().or(header).unwrap_or_default().to_owned();
        let message = answer["message"].as_str().or(answer["Message"].as_str());
        let status = head.status;
        let message = message.map_or_else(|| format!("the daemon answers {status}"), str::to_owned);
        Err(ClientError::Refused { code, message })
    }

    fn request(&self, ask: Ask<'_>) -> Result<Request<Full<Bytes>>, ClientError> {
        let failed =
            |error: &dyn std::error::Error| ClientError::Make { reason: error.to_string() };
        let body = if ask.body.is_null() { String::new() } else { ask.body.to_string() };
        let mut request = Request::builder()
            .method(ask.method)
            .uri(ask.path)
            .header(HOST, &self.address)
            .header(CONTENT_TYPE, "application/json");
        if let Some(operation) = ask.operation {
            request = request.header("x-amz-target", format!("Logs_20140328.{operation}"));
        }
        let mut request =
            request.body(Full::new(Bytes::from(body.clone()))).map_err(|error| failed(&error))?;
        self.sign(&mut request, ask.service, SignableBody::Bytes(body.as_bytes()))?;
        Ok(request)
    }

    fn sign<B>(
        &self,
        request: &mut Request<B>,
        service: &str,
        body: SignableBody<'_>,
    ) -> Result<(), ClientError> {
        let Credentials { access_key_id, secret_access_key } = &self.credentials;
        let signer = Signer {
            origin: &format!("https://{}", self.address),
            region: &self.region,
            service,
            credentials: SigningCredentials::from_keys(access_key_id, secret_access_key, None),
        };
        signer.sign(request, body).map_err(|reason| ClientError::Make { reason })
    }

    async fn send<B>(&self, request: Request<B>) -> Result<(Parts, Bytes), ClientError>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + 'static,
    {
        let http = |source| ClientError::Http { address: self.address.clone(), source };
        let io = TokioIo::new(self.connect().await?);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(http)?;
        tokio::spawn(async move {
            // Whoever waits for the answer hears of it, too.
            let _broken = connection.await;
        });
        let response = sender.send_request(request).await.map_err(http)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| ClientError::Answer { reason: error.to_string() })?;
        Ok((head, body.to_bytes()))
    }
}
