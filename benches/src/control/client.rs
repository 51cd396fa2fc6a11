//! A client as AWS's are: a request is signed and goes over a TLS connection of its own.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::api::receive;
use crate::vm::DEADLINE;

const REGION: &str = "us-east-1";

/// Knows a daemon.
pub struct Client {
    address: String,
    credentials: Credentials,
    tls: Arc<ClientConfig>,
}

/// A connection with a microVM's endpoint.
pub struct App {
    endpoint: String,
    stream: StreamOwned<ClientConnection, TcpStream>,
}

/// What is signed.
struct Ask<'a> {
    service: &'a str,
    method: &'a str,
    path: &'a str,
    body: &'a [u8],
}

impl Client {
    /// Of the daemon at an address that keeps its files in a directory.
    ///
    /// # Errors
    /// Those files are not as expected.
    pub fn new(address: &str, state: &Path) -> Result<Self> {
        let keys = std::fs::read(state.join("credentials.json")).context("there are no keys")?;
        let keys: Value = serde_json::from_slice(&keys).context("the keys are no JSON")?;
        let key = |name: &str| keys[name].as_str().with_context(|| format!("there is no {name}"));
        let credentials =
            Credentials::from_keys(key("access_key_id")?, key("secret_access_key")?, None);
        let authority = CertificateDer::from_pem_file(state.join("ca.pem"))
            .map_err(|error| anyhow!("cannot read the authority's certificate: {error:?}"))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority).context("the authority's certificate is none")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("cannot set TLS up")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { address: address.to_owned(), credentials, tls: Arc::new(tls) })
    }

    /// An operation of `lambda-microvms`.
    ///
    /// # Errors
    /// It is refused, or not answered.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let ask = Ask { service: "lambda", method, path, body: body.as_bytes() };
        let answer = self.send(&ask)?;
        if answer.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&answer).with_context(|| format!("no JSON: {answer}"))
    }

    /// Makes a bucket or an object.
    ///
    /// # Errors
    /// It is refused, or not answered.
    pub fn put(&self, path: &str, body: &[u8]) -> Result<()> {
        self.send(&Ask { service: "s3", method: "PUT", path, body }).map(drop)
    }

    /// A connection with the endpoint of a microVM.
    ///
    /// # Errors
    /// There is none to be had.
    pub fn connect(&self, endpoint: &str) -> Result<App> {
        Ok(App { endpoint: endpoint.to_owned(), stream: self.stream(endpoint)? })
    }

    fn send(&self, ask: &Ask) -> Result<String> {
        let what = || format!("the daemon does not do {} {}", ask.method, ask.path);
        let mut head = format!("{} {} HTTP/1.1\r\n", ask.method, ask.path);
        for (name, value) in self.signed(ask).with_context(what)? {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {}\r\n\r\n", ask.body.len());
        let mut stream = self.stream("localhost").with_context(what)?;
        let sent = stream.write_all(&[head.as_bytes(), ask.body].concat());
        sent.with_context(what)?;
        receive(&mut stream).with_context(what)
    }

    /// The headers of a request.
    fn signed(&self, ask: &Ask) -> Result<Vec<(String, String)>> {
        let mut settings = SigningSettings::default();
        if ask.service == "s3" {
            settings.percent_encoding_mode = PercentEncodingMode::Single;
            settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        }
        let identity = self.credentials.clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(REGION)
            .name(ask.service)
            .time(SystemTime::now())
            .settings(settings)
            .build()?
            .into();
        let mut headers = vec![
            ("host".to_owned(), self.address.clone()),
            ("content-type".to_owned(), "application/json".to_owned()),
        ];
        let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let url = format!("https://{}{}", self.address, ask.path);
        let body = SignableBody::Bytes(ask.body);
        let signable = SignableRequest::new(ask.method, url, pairs, body)?;
        let (instructions, _) = sign(signable, &params)?.into_parts();
        let made = instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned()));
        headers.extend(made);
        Ok(headers)
    }

    fn stream(&self, name: &str) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut tcp = TcpStream::connect(&self.address)
            .with_context(|| format!("cannot connect to {}", self.address))?;
        tcp.set_nodelay(true).context("cannot set up a connection")?;
        tcp.set_read_timeout(Some(DEADLINE)).context("cannot set a deadline")?;
        let server = ServerName::try_from(name.to_owned())
            .with_context(|| format!("{name:?} is no name of a server"))?;
        let mut connection =
            ClientConnection::new(Arc::clone(&self.tls), server).context("cannot start TLS")?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp).with_context(|| format!("no TLS with {name}"))?;
        }
        Ok(StreamOwned::new(connection, tcp))
    }
}

impl App {
    /// Asks the app for its page.
    ///
    /// # Errors
    /// There is no good answer.
    pub fn get(&mut self, token: &str) -> Result<()> {
        let head = format!(
            "GET / HTTP/1.1\r\nhost: {}\r\nx-aws-proxy-auth: {token}\r\n\r\n",
            self.endpoint
        );
        self.stream.write_all(head.as_bytes()).context("cannot ask the app")?;
        receive(&mut self.stream).context("the app does not answer").map(drop)
    }
}
