//! `rotifer base add NAME docker://...`, with a registry that asks for a password.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::Command;

const LAYER: &[u8] = b"a layer";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const PASSWORD: &str = "me:secret";
const TOKEN: &str = "a-token";

fn sha256(bytes: &[u8]) -> String {
    let hex: String =
        digest(&SHA256, bytes).as_ref().iter().map(|it| format!("{it:02x}")).collect();
    format!("sha256:{hex}")
}

/// What a registry has of one image: by tag, manifests and blobs by digest.
#[derive(Default)]
struct Content {
    manifests: HashMap<String, (&'static str, Vec<u8>)>,
    blobs: HashMap<String, Vec<u8>>,
}

impl Content {
    fn of(architecture: &str, announced_bytes: usize) -> Self {
        let mut content = Self::default();
        let layer = sha256(LAYER);
        content.blobs.insert(layer.clone(), LAYER.into());
        let config = json!({
            "architecture": architecture, "os": "linux", "config": { "Env": ["A=b"] },
            "rootfs": { "type": "layers", "diff_ids": [layer] },
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": sha256(&config), "size": config.len() },
            "layers": [{ "mediaType": TAR, "digest": layer, "size": announced_bytes }],
        });
        content.blobs.insert(sha256(&config), config);
        let manifest = manifest.to_string().into_bytes();
        let index = json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": [{
                "mediaType": MANIFEST, "digest": sha256(&manifest), "size": manifest.len(),
                "platform": { "architecture": architecture, "os": "linux" },
            }],
        });
        content.manifests.insert(sha256(&manifest), (MANIFEST, manifest));
        content.manifests.insert("1".into(), (INDEX, index.to_string().into_bytes()));
        content
    }

    /// Serves on a port of its own; what it is called.
    async fn serve(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (content, name) = (Arc::new(self), address.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (content, name) = (Arc::clone(&content), name.clone());
                let service = service_fn(move |request| {
                    let answer = content.answer(&name, &request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        address
    }

    fn answer(&self, address: &str, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let says = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let path = request.uri().path();
        if path == "/token" {
            let is_known = says == Some(&format!("Basic {}", STANDARD.encode(PASSWORD)));
            let token = json!({ "token": TOKEN }).to_string().into_bytes();
            return if is_known {
                page(200, "application/json", token)
            } else {
                page(401, "", vec![])
            };
        }
        if says != Some(&format!("Bearer {TOKEN}")) {
            let mut answer = page(401, "", vec![]);
            let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"registry\"");
            answer.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
            return answer;
        }
        let last = path.rsplit('/').next().unwrap_or_default();
        if path.contains("/manifests/")
            && let Some((kind, bytes)) = self.manifests.get(last)
        {
            return page(200, kind, bytes.clone());
        }
        match self.blobs.get(last) {
            Some(bytes) => page(200, "application/octet-stream", bytes.clone()),
            None => page(404, "", vec![]),
        }
    }
}

fn page(status: u16, kind: &str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let page = Response::builder().status(status).header("content-type", kind);
    page.body(Full::from(body)).unwrap()
}

/// A store of base images, and who has a password for which registry.
fn host(registry: &str, password: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: Value| {
        fs::write(directory.path().join(name), text.to_string()).unwrap();
    };
    let host = json!({ "vmm": "x", "kernel": "x", "initramfs": "x", "builds": "builds.json" });
    write("settings.json", json!({ "host": host }));
    write(
        "builds.json",
        json!({
            "vmm": "x", "kernel": "x", "initramfs": "x", "builder_disk": "x", "worker": "x",
            "store": "store",
        }),
    );
    write("config.json", json!({ "auths": { registry: { "auth": STANDARD.encode(password) } } }));
    directory
}

async fn base(host: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rotifer"));
    command.arg("base").args(words).arg("--config").arg(host.join("settings.json"));
    command.env("DOCKER_CONFIG", host).kill_on_drop(true).output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_fetched_with_the_password_that_docker_keeps() {
    let registry = Content::of("arm64", LAYER.len()).serve().await;
    let host = host(&registry, PASSWORD);
    let reference = format!("docker://{registry}/some/app:1");
    let added = base(host.path(), &["add", "mine:1", &reference, "--json"]).await;
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let line: Value = serde_json::from_slice(&added.stdout).unwrap();
    assert_eq!((&line["name"], &line["layers"]), (&json!("mine:1"), &json!(1)));
    let stored = fs::read(host.path().join("store/layers").join(sha256(LAYER).replace(':', "-")));
    assert_eq!(stored.unwrap(), LAYER);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_to_be_had_or_not_right_leaves_nothing() {
    for (content, password, reason) in [
        (Content::of("arm64", LAYER.len()), "me:wrong", "cannot fetch the manifest"),
        (Content::of("amd64", LAYER.len()), PASSWORD, "linux/arm64"),
        (Content::of("arm64", LAYER.len() - 1), PASSWORD, "longer than its manifest says"),
    ] {
        let registry = content.serve().await;
        let host = host(&registry, password);
        let reference = format!("docker://{registry}/some/app:1");
        let refused = base(host.path(), &["add", "mine:1", &reference]).await;
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && error.contains(reason), "{reason}: {error}");
        assert!(!host.path().join("store/pulling").exists());
        assert!(base(host.path(), &["list"]).await.stdout.is_empty());
    }
}
