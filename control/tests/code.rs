//! Code artifacts of another S3-compatible service, which is another daemon of ours: over TLS, signed, as everybody else
//! would be asked.

#![expect(clippy::unwrap_used, reason = "tests")]

mod daemon;

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use daemon::Daemon;
use futures::stream::pending;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use ring::digest::{SHA256, digest};
use rotifer_control::client::{Ask, Client, Content};
use rotifer_control::settings::Settings;
use rotifer_control::state::Directory;
use rotifer_control::tls;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;

const DEADLINE: Duration = Duration::from_secs(120);
const IMAGES: &str = "/2025-09-09/microvm-images";
/// A key of letters that addresses write in other ways, and as it is written there.
const KEY: &str = "team!a/\u{e4}+b&c=d?%41.zip";
const KEY_IN_A_PATH: &str = "team%21a/%C3%A4%2Bb%26c%3Dd%3F%2541.zip";

fn client(daemon: &Daemon) -> Client {
    Client::new(&Directory::open(&daemon.state()).unwrap()).unwrap()
}

/// A daemon whose bucket `code` has an archive which every build refuses in words of its own.
async fn service() -> Daemon {
    let service = Daemon::start();
    let client = client(&service);
    for bucket in ["code", "no-secret", "elsewhere"] {
        client.put(&format!("/{bucket}"), None).await.unwrap();
    }
    let directory = service.file("code");
    fs::create_dir_all(directory.join("too-deep")).unwrap();
    fs::write(directory.join("too-deep/Dockerfile"), "FROM scratch").unwrap();
    let archive = rotifer_build::directory::pack(&directory).unwrap();
    let bytes = fs::read(archive.path()).unwrap();
    let sha256 = digest(&SHA256, &bytes).as_ref().iter().map(|it| format!("{it:02x}")).collect();
    let content = Content { file: archive.reopen().unwrap(), length: bytes.len() as u64, sha256 };
    client.put(&format!("/code/{KEY_IN_A_PATH}"), Some(content)).await.unwrap();
    service
}

/// A service that sends whoever comes to it elsewhere, or has too much; and where it was asked.
async fn odd_service(state: &Directory) -> (String, Arc<Mutex<Vec<String>>>) {
    let acceptor = TlsAcceptor::from(tls::server(state, &Settings::default()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("https://{}", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let (heard, elsewhere) = (Arc::clone(&asked), format!("{origin}/elsewhere/app.zip"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let (heard, elsewhere) = (Arc::clone(&heard), elsewhere.clone());
            let answer = service_fn(move |request: Request<Incoming>| {
                let path = request.uri().path().to_owned();
                let answer = match path.starts_with("/moved/") {
                    true => Response::builder()
                        .status(307)
                        .header("location", &elsewhere)
                        .header("content-length", 0),
                    false => Response::builder().header("content-length", (2_u64 << 30) + 1),
                };
                // Whoever waits for what is announced does so forever.
                let body = StreamBody::new(pending::<Result<Frame<Bytes>, Infallible>>());
                heard.lock().unwrap().push(path);
                async move { Ok::<_, Infallible>(answer.body(body).unwrap()) }
            });
            let serving = hyper::server::conn::http1::Builder::new();
            tokio::spawn(serving.serve_connection(TokioIo::new(stream), answer));
        }
    });
    (origin, asked)
}

/// The settings of a host that builds, up to where it would need a machine.
fn settings(endpoints: &Value) -> String {
    json!({ "host": {
        "vmm": "empty", "kernel": "empty", "initramfs": "empty", "builds": "builds.json",
        "code-endpoints": endpoints,
    }})
    .to_string()
}

/// What the build of an image says in the end.
async fn fails(client: &Client, name: &str, uri: &str) -> String {
    let ask = async |method: &str, path: &str, body: &Value| {
        let ask = Ask { service: "lambda", method, path, operation: None, body };
        client.ask(ask).await.unwrap()
    };
    let image = json!({
        "name": name, "codeArtifact": { "uri": uri },
        "baseImageArn": "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1",
        "buildRoleArn": "arn:aws:iam::000000000000:role/Build",
    });
    let made = ask("POST", IMAGES, &image).await;
    let arn = made["imageArn"].as_str().unwrap().replace(':', "%3A");
    let builds = format!("{IMAGES}/{arn}/versions/1.0/builds");
    let failed = async {
        loop {
            let build = ask("GET", &builds, &Value::Null).await["items"][0].take();
            match build["buildState"].as_str().unwrap() {
                "FAILED" => return build["stateReason"].as_str().unwrap().to_owned(),
                "PENDING" | "IN_PROGRESS" => tokio::time::sleep(Duration::from_millis(20)).await,
                other => panic!("{name}: {other}"),
            }
        }
    };
    tokio::time::timeout(DEADLINE, failed).await.unwrap_or_else(|_| panic!("{name} ends"))
}

#[tokio::test(flavor = "multi_thread")]
async fn code_is_fetched_from_another_service_or_the_reason_says_what_to_do() {
    let service = service().await;
    let place = fs::read_to_string(service.state().join("endpoint")).unwrap();
    let origin = place.lines().next().unwrap();
    let (keys, ca) = (service.state().join("credentials.json"), service.state().join("ca.pem"));
    let odd = tempfile::tempdir().unwrap();
    let odd = Directory::open(odd.path()).unwrap();
    let (odd_origin, asked) = odd_service(&odd).await;
    // A port that is taken, and that nobody listens at.
    let taken = TcpSocket::new_v4().unwrap();
    taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = format!("https://{}", taken.local_addr().unwrap());
    let wrong = service.file("wrong.json");
    let mut pair: Value = serde_json::from_slice(&fs::read(&keys).unwrap()).unwrap();
    let secret = std::mem::replace(&mut pair["secret_access_key"], json!("not-this-one"));
    fs::write(&wrong, pair.to_string()).unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600)).unwrap();
    let open = service.file("open.json");
    fs::write(&open, fs::read(&keys).unwrap()).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let endpoint = |endpoint: &str, more: Value| {
        let mut it = json!({ "endpoint": endpoint, "credentials-file": keys, "ca": ca });
        it.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        it
    };
    let odd_ca = json!({ "ca": odd.file("ca.pem") });
    let endpoints = json!({
        "code": endpoint(origin, json!({})),
        "not-there": endpoint(origin, json!({})),
        "no-secret": endpoint(origin, json!({ "credentials-file": wrong })),
        "elsewhere": endpoint(origin, json!({ "region": "eu-west-1" })),
        "readable": endpoint(origin, json!({ "credentials-file": open })),
        "untrusted": endpoint(origin, odd_ca.clone()),
        "nobody": endpoint(&nobody, json!({})),
        "moved": endpoint(&odd_origin, odd_ca.clone()),
        "huge": endpoint(&odd_origin, odd_ca),
    });
    let builds = json!({
        "vmm": "empty", "kernel": "empty", "initramfs": "empty", "builder_disk": "empty", "worker": "empty",
        "store": "store",
    });
    let files = [("empty", ""), ("builds.json", &builds.to_string())];
    let host = Daemon::start_with(&settings(&endpoints), &files);
    let client = client(&host);
    // The archive was there, and is what was uploaded.
    let reason = fails(&client, "fetched", &format!("s3://code/{KEY}")).await;
    assert!(reason.starts_with("ARCHIVE_DOCKERFILE_NOT_FOUND: "), "{reason}");
    assert!(reason.contains("too-deep/Dockerfile"), "{reason}");
    // Of each: the key, how the reason begins, and what is in it.
    let cases: [(&str, &str, &str, &[&str]); 10] = [
        ("code", "none.zip", "S3_NO_SUCH_KEY", &[origin, "404 NoSuchKey", "upload it there"]),
        ("code", "../no-secret/x", "S3_INVALID_OBJECT", &["'..'"]),
        ("not-there", "x.zip", "S3_NO_SUCH_BUCKET", &[origin, "404 NoSuchBucket"]),
        ("no-secret", "x.zip", "S3_ACCESS_DENIED", &[origin, "403", "SignatureDoesNotMatch"]),
        ("elsewhere", "x.zip", "S3_CROSS_REGION_ACCESS_DENIED", &[origin, "region"]),
        ("readable", "x.zip", "INTERNAL_PLATFORM_ERROR", &["open.json", "chmod 600"]),
        ("untrusted", "x.zip", "INTERNAL_PLATFORM_ERROR", &[origin, "certificate"]),
        (
            "nobody",
            "x.zip",
            "INTERNAL_PLATFORM_ERROR",
            &[&nobody, "refused", "host.code-endpoints"],
        ),
        ("moved", "x.zip", "S3_CROSS_REGION_ACCESS_DENIED", &[&odd_origin, "307", "not followed"]),
        ("huge", "x.zip", "S3_INVALID_OBJECT", &[&odd_origin, "2147483648 bytes"]),
    ];
    for (place, (bucket, key, code, texts)) in cases.into_iter().enumerate() {
        let uri = format!("s3://{bucket}/{key}");
        let reason = fails(&client, &format!("image-{place}"), &uri).await;
        assert!(reason.starts_with(&format!("{code}: ")), "{uri}: {reason}");
        for text in texts.iter().chain(&[bucket]) {
            assert!(reason.contains(text), "{uri}: {text:?} is not in {reason}");
        }
        assert!(!reason.contains(secret.as_str().unwrap()), "{reason}");
    }
    assert_eq!(*asked.lock().unwrap(), ["/moved/x.zip", "/huge/x.zip"]);
    // Others are this daemon's own.
    let own = fails(&client, "own", "s3://other/x.zip").await;
    assert!(own.starts_with("S3_NO_SUCH_BUCKET: the bucket other"), "{own}");
    // A key that is replaced is used at once.
    fs::copy(&keys, &wrong).unwrap();
    let reason = fails(&client, "replaced", "s3://no-secret/x.zip").await;
    assert!(reason.starts_with("S3_NO_SUCH_KEY: "), "{reason}");
}
