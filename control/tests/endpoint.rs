//! MicroVMs' endpoints, between real clients and real apps.

mod world;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use rotifer_control::fleet::microvm::{Event, Phase};
use serde_json::json;
use world::app::App;
use world::{World, within};

const PORT: u16 = 8080;

fn policy(may_wake: bool) -> serde_json::Value {
    json!({ "idlePolicy": {
        "maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 600, "autoResumeEnabled": may_wake,
    } })
}

/// Every recorded refusal, and those of the same kind.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_right_is_told_what_the_service_tells() {
    let world = World::new().await;
    let app = App::serve(&world.worker.socket(PORT));
    let (a, b) = (world.vm(json!({})).await, world.vm(policy(false)).await);
    let (all, other) = (world.token_for_all(&a), world.token_for_all(&b));
    let one = world.token(&a, json!([{ "port": PORT }]));
    let mut forged = one.clone();
    forged.replace_range(forged.len() - 5..forged.len() - 1, "AAAA");
    const MISSING: (u16, &str) = (403, "Request missing authentication");
    const FAILED: (u16, &str) = (403, "Token authentication failed");
    const DENIED: (u16, &str) = (403, "Access to port denied");
    let unknown = a.host.replacen(|c: char| c.is_ascii_hexdigit(), "g", 1);
    let (token, port) = ("x-aws-proxy-auth", "x-aws-proxy-port");
    type Case<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>, (u16, &'a str));
    let cases: Vec<Case> = vec![
        ("no token", &a.host, vec![], MISSING),
        ("nonsense", &a.host, vec![(token, "nonsense")], MISSING),
        ("two tokens", &a.host, vec![(token, &all), (token, &other)], MISSING),
        ("no token, no such host", &unknown, vec![], MISSING),
        ("another's token", &a.host, vec![(token, &other)], FAILED),
        ("a changed token", &a.host, vec![(token, &forged)], FAILED),
        ("no such host", &unknown, vec![(token, &all)], FAILED),
        ("another port", &a.host, vec![(token, &one), (port, "9000")], DENIED),
        ("no port", &a.host, vec![(token, &all), (port, "http")], DENIED),
        ("port 0", &a.host, vec![(token, &all), (port, "0")], DENIED),
        ("nobody listens", &a.host, vec![(token, &all), (port, "9000")], (502, "")),
    ];
    for (name, host, headers, expected) in cases {
        let answer = world.send(host, "/", &headers).await;
        assert_eq!((answer.status, answer.body.as_str()), expected, "{name}");
        assert!(answer.headers.contains_key("x-amzn-requestid"), "{name}");
    }
    assert_eq!(app.count(), 0, "nothing of it came to the app");
    assert_eq!(world.get(&a, &one, "/").await.status, 200);
    world.suspend(&b).await;
    assert_eq!(world.get(&b, &other, "/").await.status, 502);
    assert_eq!(world.state(&b), "SUSPENDED", "it may not be woken");
    world.terminate(&b).await;
    let ended = world.get(&b, &other, "/").await;
    assert_eq!((ended.status, ended.body.as_str()), (502, ""));
    world.pass(5 * 60);
    let late = world.get(&a, &one, "/").await;
    assert_eq!((late.status, late.body.as_str()), FAILED);
    assert_eq!(app.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_app_gets_the_request_and_nothing_of_ours() {
    let world = World::new().await;
    let app = App::serve(&world.worker.socket(PORT));
    let vm = world.vm(json!({})).await;
    let token = world.token(&vm, json!([{ "port": PORT }]));
    let header = format!("X-aws-proxy-auth: {token}");
    for version in ["--http1.1", "--http2"] {
        let url = world.url(&vm, "/a%20b/../c?x=1&y=%2F");
        let body = "-w%{http_version} %{http_code}";
        let mut arguments = vec![version, "--path-as-is", "-i", body, "-H", &header];
        arguments.extend(["-H", "X-Mine: ü", "-d", "body", "-X", "PUT", &url]);
        if version == "--http1.1" {
            // HTTP/2 has no such header.
            arguments.extend(["-H", "Connection: x-hop", "-H", "X-Hop: 1"]);
        }
        let shown = world.curled(&arguments).await;
        let wanted = if version == "--http2" { "2 200" } else { "1.1 200" };
        assert!(shown.starts_with("HTTP/") && shown.ends_with(wanted), "{shown}");
        let (method, target, headers) = app.last();
        assert_eq!((method.as_str(), target.as_str()), ("PUT", "/a%20b/../c?x=1&y=%2F"));
        let id = headers["x-amzn-requestid"].to_str().unwrap();
        assert!(shown.contains(&format!("x-amzn-requestid: {id}")), "{shown}");
        assert_eq!(headers["host"], format!("{}:{}", vm.host, world.port).as_str());
        assert_eq!(headers["x-mine"].as_bytes(), "ü".as_bytes());
        assert_eq!(headers["content-length"], "4");
        assert!(headers["via"].to_str().unwrap().ends_with("rotifer"), "{headers:?}");
        assert!(!headers.contains_key("x-hop"), "{headers:?}");
        let ours = |name: &str| name.starts_with("x-aws-proxy");
        assert!(!headers.keys().any(|name| ours(name.as_str())), "{headers:?}");
    }
    // Connections to the app are kept and used again.
    assert_eq!(world.worker.connections.load(Ordering::SeqCst), 1);
}

/// 200 MiB each way over HTTP/2, and the same bytes at the end.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_any_size_pass_both_ways() {
    const PIECES: u64 = 3200;
    let world = World::new().await;
    App::serve(&world.worker.socket(PORT));
    let vm = world.vm(json!({})).await;
    let header = format!("X-aws-proxy-auth: {}", world.token_for_all(&vm));
    let (file, url) = (world.file("down"), world.url(&vm, &format!("/flood?{PIECES}")));
    world.curled(&["--http2", "-H", &header, "-o", file.to_str().unwrap(), &url]).await;
    let (mut context, mut wanted) = (
        ring::digest::Context::new(&ring::digest::SHA256),
        ring::digest::Context::new(&ring::digest::SHA256),
    );
    std::io::copy(&mut std::fs::File::open(&file).unwrap(), &mut Digest(&mut context)).unwrap();
    (0..PIECES).for_each(|number| wanted.update(&world::app::piece(number)));
    let wanted = world::app::hex(wanted.finish().as_ref());
    assert_eq!(world::app::hex(context.finish().as_ref()), wanted);
    let url = world.url(&vm, "/digest");
    let said = world.curled(&["--http2", "-H", &header, "-T", file.to_str().unwrap(), &url]).await;
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said, json!({ "length": PIECES * 65536, "sha256": wanted }));
}

struct Digest<'a>(&'a mut ring::digest::Context);

impl std::io::Write for Digest<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_requests_at_once_wake_a_microvm_once_and_all_are_answered() {
    let world = World::new().await;
    let app = App::serve(&world.worker.socket(PORT));
    let vm = world.vm(policy(true)).await;
    world.suspend(&vm).await;
    // A token can be had for one that is suspended.
    let token = world.token_for_all(&vm);
    world.worker.hold_resumes();
    let requests = (0..10).map(|_| world.get(&vm, &token, "/"));
    let answers = futures::future::join_all(requests);
    let released = async {
        world.until_phase(&vm, Phase::Waking).await;
        // All ten wait there.
        world.until_counts(0, 10).await;
        assert_eq!((world.state(&vm).as_str(), app.count()), ("PENDING", 0));
        world.worker.release_resumes(Event::Resumed);
    };
    let (answers, ()) = within(futures::future::join(answers, released)).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!((world.worker.resumes.load(Ordering::SeqCst), app.count()), (1, 10));
    assert_eq!(world.state(&vm), "RUNNING");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_that_fails_or_takes_too_long_is_answered() {
    let mut settings = rotifer_control::settings::Settings::default();
    settings.limits.hold_seconds = 1;
    settings.limits.held_per_microvm = 1;
    let world = World::with(settings).await;
    App::serve(&world.worker.socket(PORT));
    let vm = world.vm(policy(true)).await;
    let token = world.token_for_all(&vm);
    world.suspend(&vm).await;
    world.worker.hold_resumes();
    let fail = async {
        world.until_phase(&vm, Phase::Waking).await;
        let second = world.get(&vm, &token, "/").await;
        assert_eq!(second.status, 429, "one may wait");
        world.worker.release_resumes(Event::ResumeFailed);
    };
    let (answer, ()) = futures::future::join(world.get(&vm, &token, "/"), fail).await;
    assert_eq!((answer.status, answer.body.as_str()), (502, ""));
    assert_eq!(world.state(&vm), "SUSPENDED");
    world.worker.hold_resumes();
    assert_eq!(world.get(&vm, &token, "/").await.status, 502, "after a second");
    world.worker.release_resumes(Event::Resumed);
    world.until_phase(&vm, Phase::Running).await;
    assert_eq!(world.get(&vm, &token, "/").await.status, 200);
}

/// Idle is whom nobody talks to: not while an answer goes on, and from its end on.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_keeps_a_microvm_awake() {
    let world = World::new().await;
    let app = App::serve(&world.worker.socket(PORT));
    let vm = world.vm(policy(true)).await;
    let token = world.token_for_all(&vm);
    let headers = [("x-aws-proxy-auth", token.as_str())];
    let response = world.begin(&vm.host, "/stream", &headers).await;
    let mut events = response.into_body();
    let sender = app.streams.lock().unwrap().pop().unwrap();
    for text in ["data: 1\n\n", "data: 2\n\n"] {
        // Each event comes through by itself.
        sender.unbounded_send(Bytes::from(text)).unwrap();
        let frame = within(events.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), text);
        world.pass(100);
        assert_eq!(world.state(&vm), "RUNNING");
    }
    drop(sender);
    assert!(within(events.frame()).await.is_none(), "the stream has ended");
    world.until_counts(0, 0).await;
    world.pass(59);
    assert_eq!(world.state(&vm), "RUNNING");
    world.pass(1);
    world.until_phase(&vm, Phase::Suspended).await;
    assert_eq!(world.get(&vm, &token, "/").await.status, 200);
    assert_eq!(world.worker.resumes.load(Ordering::SeqCst), 1);
    assert_eq!(world.worker.connections.load(Ordering::SeqCst), 2, "none outlives a suspension");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_ends_when_the_microvm_does() {
    let world = World::new().await;
    let app = App::serve(&world.worker.socket(PORT));
    let vm = world.vm(json!({})).await;
    let token = world.token_for_all(&vm);
    let headers = [("x-aws-proxy-auth", token.as_str())];
    let mut events = world.begin(&vm.host, "/stream", &headers).await.into_body();
    let _sender = app.streams.lock().unwrap().pop().unwrap();
    world.terminate(&vm).await;
    assert!(within(events.frame()).await.unwrap().is_err(), "no end that looks like one");
}

/// One microVM's clients cannot use up what others need.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_to_one_microvm_are_refused_and_others_are_not() {
    let mut settings = rotifer_control::settings::Settings::default();
    settings.limits.streams_per_microvm = 2;
    let world = World::with(settings).await;
    App::serve(&world.worker.socket(PORT));
    let (a, b) = (world.vm(json!({})).await, world.vm(json!({})).await);
    let (for_a, for_b) = (world.token_for_all(&a), world.token_for_all(&b));
    let headers = [("x-aws-proxy-auth", for_a.as_str())];
    let first = world.begin(&a.host, "/stream", &headers).await;
    let _second = world.begin(&a.host, "/stream", &headers).await;
    assert_eq!(world.get(&a, &for_a, "/").await.status, 429);
    assert_eq!(world.get(&b, &for_b, "/").await.status, 200);
    drop(first);
    within(async { while world.get(&a, &for_a, "/").await.status == 429 {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_what_there_is() {
    let world = World::new().await;
    App::serve(&world.worker.socket(PORT));
    world.worker.measured.lock().unwrap().steps = vec![("snapshot", Duration::from_millis(3))];
    let (a, b) = (world.vm(json!({})).await, world.vm(json!({})).await);
    let token = world.token_for_all(&a);
    let _stream = world.begin(&a.host, "/stream", &[("x-aws-proxy-auth", &token)]).await;
    assert_eq!(world.send(&a.host, "/", &[]).await.status, 403);
    world.suspend(&b).await;
    let shown = world.send("localhost", "/metrics", &[]).await.body;
    for line in [
        "rotifer_requests_total{service=\"endpoint\",status=\"2xx\"} 1",
        "rotifer_requests_total{service=\"endpoint\",status=\"4xx\"} 1",
        "rotifer_microvms{state=\"RUNNING\"} 1",
        "rotifer_microvms{state=\"SUSPENDED\"} 1",
        "rotifer_microvms{state=\"PENDING\"} 0",
        "rotifer_endpoint_streams 1",
        "rotifer_step_seconds_count{action=\"launch\",step=\"snapshot\"} 2",
        "rotifer_step_seconds_sum{action=\"launch\",step=\"snapshot\"} 0.006",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }
}
