//! Clients: curl, and TLS connections on which a test says what it likes.

use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Vm, World, within};

/// An answer: its status, its headers, its body.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub body: String,
}

impl World {
    /// curl, which resolves names below `localhost` by itself.
    pub fn curl(&self, arguments: &[&str]) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--cacert"]).arg(self.ca()).args(arguments);
        curl.stdin(Stdio::null()).kill_on_drop(true);
        curl
    }

    /// What curl prints, if it succeeds.
    pub async fn curled(&self, arguments: &[&str]) -> String {
        let output = within(self.curl(arguments).output()).await.unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "curl {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A TLS connection to a host.
    pub async fn connect(&self, host: &str) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.ca()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = host.to_owned().try_into().unwrap();
        within(connector.connect(name, stream)).await.unwrap()
    }

    /// An HTTP/1.1 request to a host, on a connection of its own.
    pub async fn send(&self, host: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let response = self.begin(host, path, headers).await;
        let (parts, body) = response.into_parts();
        let body = within(body.collect()).await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// The same, whose body is not read yet.
    pub async fn begin(
        &self,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Response<hyper::body::Incoming> {
        let io = TokioIo::new(self.connect(host).await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::get(path).header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        within(sender.send_request(request)).await.unwrap()
    }

    pub async fn get(&self, vm: &Vm, token: &str, path: &str) -> Answer {
        self.send(&vm.host, path, &[("x-aws-proxy-auth", token)]).await
    }

    /// Says something on a connection and hears all until its end.
    pub async fn raw(&self, host: &str, said: &[u8]) -> String {
        let mut stream = self.connect(host).await;
        // A server that has heard enough may close before all is said.
        let _closed = stream.write_all(said).await;
        let mut heard = Vec::new();
        // A close without farewell is a close.
        let _end = within(stream.read_to_end(&mut heard)).await;
        String::from_utf8_lossy(&heard).into_owned()
    }
}
