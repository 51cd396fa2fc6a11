//! Base images from a registry: `rotifer base add NAME docker://...`, and builds that pull what they start from. There is
//! no machine here to build in: a build that fails to start one has found its base image.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use ring::digest::{SHA256, digest};
use rotifer_build::{BuildRequest, Cancel, Failure, ReasonCode, Settings};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const LAYER: &[u8] = b"a layer";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const PASSWORD: &str = "me:secret";
const TOKEN: &str = "a-token";
/// Half of what the client gives a registry that says nothing.
const DEADLINE: Duration = Duration::from_secs(60);

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
    is_open: bool,
    /// Hears the path of each request.
    heard: Option<UnboundedSender<String>>,
    /// What is in the paths of requests that wait for a permit.
    gate: Option<(String, Arc<Semaphore>)>,
}

impl Content {
    /// For whoever has no password; and what hears the paths of requests.
    fn open() -> (Self, UnboundedReceiver<String>) {
        let (heard, paths) = unbounded_channel();
        let content = Self::of("arm64", LAYER.len());
        (Self { is_open: true, heard: Some(heard), ..content }, paths)
    }

    fn holding(self, part: &str) -> (Self, Arc<Semaphore>) {
        let gate = Arc::new(Semaphore::new(0));
        (Self { gate: Some((part.into(), Arc::clone(&gate))), ..self }, gate)
    }

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
                    let (content, name) = (Arc::clone(&content), name.clone());
                    async move {
                        content.hear(request.uri().path()).await;
                        Ok::<_, Infallible>(content.answer(&name, &request))
                    }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        address
    }

    async fn hear(&self, path: &str) {
        if let Some(heard) = &self.heard {
            let _nobody_listens = heard.send(path.into());
        }
        if let Some((part, gate)) = &self.gate
            && path.contains(part)
        {
            gate.acquire().await.unwrap().forget();
        }
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
        if !self.is_open && says != Some(&format!("Bearer {TOKEN}")) {
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

/// A build that goes on.
struct Build {
    lines: UnboundedReceiver<String>,
    cancel: Cancel,
    ended: JoinHandle<Failure>,
}

impl Build {
    fn start(host: &TempDir, registries: &[&str], dockerfile: &str) -> Self {
        Self::start_with_room(host, registries, dockerfile, u64::MAX)
    }

    /// One for which base images may take so many bytes.
    fn start_with_room(host: &TempDir, registries: &[&str], dockerfile: &str, bytes: u64) -> Self {
        let mut settings = Settings::read(&host.path().join("builds.json")).unwrap();
        settings.registries = registries.iter().map(|&name| name.into()).collect();
        settings.base_bytes = bytes;
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("Dockerfile"), dockerfile).unwrap();
        let (said, lines) = unbounded_channel();
        let cancel = Cancel::default();
        let canceled = cancel.clone();
        let ended = tokio::task::spawn_blocking(move || {
            let archive = rotifer_build::directory::pack(directory.path()).unwrap();
            let (archive, disk) = (archive.path().into(), directory.path().join("disk"));
            let request =
                BuildRequest { archive, disk, cancel: canceled, ..BuildRequest::default() };
            let mut log = |event: rotifer_build::Event| drop(said.send(event.to_string()));
            rotifer_build::build(&settings, &request, &mut log).unwrap_err()
        });
        Self { lines, cancel, ended }
    }

    /// Its end, and what it has said and nobody has heard.
    async fn end(mut self) -> (Failure, String) {
        let failure = timeout(DEADLINE, self.ended).await.expect("the build ends").unwrap();
        let mut said = String::new();
        while let Some(line) = self.lines.recv().await {
            said += &format!("{line}\n");
        }
        (failure, said)
    }
}

async fn await_with(lines: &mut UnboundedReceiver<String>, part: &str) {
    let found = async {
        while let Some(line) = lines.recv().await {
            if line.contains(part) {
                return true;
            }
        }
        false
    };
    let is_found = timeout(DEADLINE, found).await;
    assert_eq!(is_found, Ok(true), "nothing has {part:?}");
}

fn assert_base_is_there(failure: &Failure) {
    assert!(failure.text().contains("cannot start a build machine"), "{}", failure.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_pulls_what_it_starts_from_once() {
    let (content, mut paths) = Content::open();
    let registry = content.serve().await;
    let host = host(&registry, PASSWORD);
    let dockerfile = format!("FROM {registry}/some/app:1\nCMD [\"/app\"]\n");
    let (failure, said) = Build::start(&host, &[&registry], &dockerfile).end().await;
    assert_base_is_there(&failure);
    assert!(said.contains("layer 1 of 1: 0 KiB"), "{said}");
    await_with(&mut paths, "/manifests/1").await;
    while paths.try_recv().is_ok() {}
    let (failure, said) = Build::start(&host, &[&registry], &dockerfile).end().await;
    assert_base_is_there(&failure);
    assert!(paths.try_recv().is_err() && !said.contains("layer"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_pulled_when_base_images_take_what_they_may() {
    let (content, mut paths) = Content::open();
    let registry = content.serve().await;
    let host = host(&registry, PASSWORD);
    let build = |name: &str, bytes| {
        let dockerfile = format!("FROM {registry}/some/{name}:1\n");
        Build::start_with_room(&host, &[&registry], &dockerfile, bytes).end()
    };
    let (failure, _) = build("app", 1).await;
    let text = failure.text();
    assert!(failure.line() == Some(1) && text.contains("than `base_bytes` leaves"), "{text}");
    // With room for it, it is there, and takes some.
    assert_base_is_there(&build("app", u64::MAX).await.0);
    while paths.try_recv().is_ok() {}
    let (failure, _) = build("other", 1).await;
    let text = failure.text();
    assert!(text.contains("rotifer base rm") && text.contains("beyond 1:"), "{text}");
    assert!(paths.try_recv().is_err(), "the registry is not asked");
    assert_base_is_there(&build("app", 1).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_not_listed_is_not_asked() {
    let (content, mut paths) = Content::open();
    let registry = content.serve().await;
    let host = host(&registry, PASSWORD);
    let dockerfile = format!("\nFROM {registry}/some/app:1\n");
    let (failure, _) = Build::start(&host, &["docker.io"], &dockerfile).end().await;
    let refused = (failure.code(), failure.line());
    assert_eq!(refused, (ReasonCode::ContainerBuildFailed, Some(2)), "{failure:?}");
    let text = failure.text();
    let add = format!("rotifer base add {registry}/some/app:1 docker://{registry}/some/app:1");
    for remedy in [&add, "`aliases`", &format!("list {registry} under `registries`")] {
        assert!(text.contains(remedy), "{remedy}: {text}");
    }
    assert!(paths.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_that_are_canceled_wait_neither_for_a_registry_nor_for_one_another() {
    let (content, mut paths) = Content::open();
    let (content, _silence) = content.holding("/manifests/");
    let registry = content.serve().await;
    let host = host(&registry, PASSWORD);
    let start = |tag| Build::start(&host, &[&registry], &format!("FROM {registry}/some/app:{tag}"));
    let pulling = start("1");
    await_with(&mut paths, "/manifests/1").await;
    let mut waiting = start("2");
    await_with(&mut waiting.lines, "waits until another image is pulled").await;
    for build in [waiting, pulling] {
        build.cancel.cancel();
        let (failure, _) = build.end().await;
        assert!(matches!(failure, Failure::Canceled), "{failure:?}");
    }
    assert!(!host.path().join("store/pulling").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_two_builds_want_is_pulled_once() {
    let (content, mut paths) = Content::open();
    let (content, gate) = content.holding("/manifests/");
    let registry = content.serve().await;
    let host = host(&registry, PASSWORD);
    let start = || Build::start(&host, &[&registry], &format!("FROM {registry}/some/app:1"));
    let first = start();
    await_with(&mut paths, "/manifests/1").await;
    let mut second = start();
    await_with(&mut second.lines, "waits until another image is pulled").await;
    gate.add_permits(Semaphore::MAX_PERMITS);
    for build in [first, second] {
        assert_base_is_there(&build.end().await.0);
    }
    let mut again = 0;
    while let Ok(path) = paths.try_recv() {
        again += usize::from(path.ends_with("/manifests/1"));
    }
    assert_eq!(again, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_its_digest_says_is_refused() {
    let asked = sha256(b"what is asked for");
    let other = |content: &Content| content.manifests["1"].clone();
    let is_manifest = |digest: &str| digest.starts_with("sha256:");

    // The registry's answer to a reference with a digest; an index's entry; a layer.
    let (mut named, _paths) = Content::open();
    named.manifests.insert(asked.clone(), other(&named));
    let (mut indexed, _paths) = Content::open();
    let another = other(&indexed);
    indexed.manifests.iter_mut().filter(|(digest, _)| is_manifest(digest)).for_each(|it| {
        *it.1 = another.clone();
    });
    let (mut layered, _paths) = Content::open();
    layered.blobs.insert(sha256(LAYER), b"b layer".into());
    for (content, reference, reason) in [
        (named, format!("@{asked}"), asked.clone()),
        (indexed, ":1".into(), "digest".into()),
        (layered, ":1".into(), sha256(LAYER)),
    ] {
        let registry = content.serve().await;
        let host = host(&registry, PASSWORD);
        let dockerfile = format!("FROM {registry}/some/app{reference}\n");
        let (failure, _) = Build::start(&host, &[&registry], &dockerfile).end().await;
        let refused = (failure.code(), failure.line());
        assert_eq!(refused, (ReasonCode::ContainerBuildFailed, Some(1)), "{failure:?}");
        let text = failure.text();
        assert!(text.contains("cannot fetch") && text.contains(&reason), "{reason}: {text}");
        assert!(base(host.path(), &["list"]).await.stdout.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_addresses_that_a_manifest_names_are_not_asked() {
    let (elsewhere, mut paths) = Content::open();
    let elsewhere = elsewhere.serve().await;
    let (mut content, _paths) = Content::open();
    let layer = sha256(LAYER);
    content.blobs.remove(&layer);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": layer_config(&content), "size": 1000 },
        "layers": [{
            "mediaType": TAR, "digest": layer, "size": LAYER.len(),
            "urls": [format!("http://{elsewhere}/v2/some/app/blobs/{layer}")],
        }],
    });
    content.manifests.insert("1".into(), (MANIFEST, manifest.to_string().into_bytes()));
    let registry = content.serve().await;
    let host = host(&registry, PASSWORD);
    let dockerfile = format!("FROM {registry}/some/app:1\n");
    let (failure, _) = Build::start(&host, &[&registry], &dockerfile).end().await;
    assert!(failure.text().contains(&format!("cannot fetch {layer}")), "{}", failure.text());
    assert!(paths.try_recv().is_err());
}

/// The digest of the configuration, the only blob beside the layer.
fn layer_config(content: &Content) -> &String {
    content.blobs.keys().find(|digest| **digest != sha256(LAYER)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_killed_leaves_nothing_that_the_next_one_minds() {
    let (content, mut paths) = Content::open();
    let (content, gate) = content.holding(&sha256(LAYER));
    let registry = content.serve().await;
    let host = host(&registry, PASSWORD);
    let reference = format!("docker://{registry}/some/app:1");
    let (words, layer) = (["add", "mine:1", &reference], sha256(LAYER));
    tokio::select! {
        ended = base(host.path(), &words) => panic!("{ended:?}"),
        () = await_with(&mut paths, &layer) => {}
    }
    // With the future, its process is killed.
    assert!(host.path().join("store/pulling").exists());
    assert!(base(host.path(), &["list"]).await.stdout.is_empty());
    gate.add_permits(Semaphore::MAX_PERMITS);
    let added = base(host.path(), &words).await;
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
}
