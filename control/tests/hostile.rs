//! What clients do who mean no good: it costs them their connection, and nobody else anything.

mod world;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rotifer_control::settings::Settings;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use world::app::App;
use world::{World, within};

const PORT: u16 = 8080;

fn impatient() -> Settings {
    let mut settings = Settings::default();
    settings.limits.handshake_seconds = 1;
    settings.limits.head_seconds = 1;
    settings
}

/// Two readings of one request are how a second one is smuggled past a proxy. Each of these is refused,
/// or the app hears exactly one request, with the body that the client sent.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_smuggled_inside_another() {
    let world = World::new().await;
    let app = App::serve(&world.worker.socket(PORT));
    let vm = world.vm(json!({})).await;
    let token = world.token_for_all(&vm);
    let start =
        format!("POST /digest HTTP/1.1\r\nHost: {}\r\nX-aws-proxy-auth: {token}\r\n", vm.host);
    let close = "Connection: close\r\n";
    let refused = [
        ("two lengths", "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
        ("two lengths in a line", "Content-Length: 3, 4\r\n\r\nabcd"),
        ("a signed length", "Content-Length: +3\r\n\r\nabc"),
        ("a negative length", "Content-Length: -3\r\n\r\nabc"),
        ("a length with a unit", "Content-Length: 3x\r\n\r\nabc"),
        ("chunks not last", "Transfer-Encoding: chunked, gzip\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        ("an unknown coding", "Transfer-Encoding: xchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        ("a space before the colon", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        ("a folded line", "X-A: b\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("two hosts", "Host: other\r\nContent-Length: 0\r\n\r\n"),
        ("a host with a user", "Host: a@b\r\nContent-Length: 0\r\n\r\n"),
        ("a zero byte", "X-A: a\0b\r\nContent-Length: 0\r\n\r\n"),
    ];
    for (name, rest) in refused {
        let heard = world.raw(&vm.host, format!("{start}{close}{rest}").as_bytes()).await;
        assert!(heard.starts_with("HTTP/1.1 400"), "{name}: {heard}");
        assert_eq!(app.count(), 0, "{name}");
    }
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let both = format!(
        "{start}{close}Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}",
        smuggled.len()
    );
    let heard = world.raw(&vm.host, both.as_bytes()).await;
    assert!(!heard.contains("hello"), "{heard}");
    let seen = app.seen.lock().unwrap().clone();
    assert!(seen.iter().all(|(_, target, _)| target == "/digest"), "{seen:?}");
    for (_, _, headers) in &seen {
        let framings = ["content-length", "transfer-encoding"];
        let count = framings.iter().filter(|name| headers.contains_key(**name)).count();
        assert!(count <= 1, "{headers:?}");
    }
    // The target's host is who is asked, whatever the header says.
    let absolute = format!(
        "GET https://other.lambda-microvm.us-east-1.localhost/ HTTP/1.1\r\nHost: {}\r\n\
         X-aws-proxy-auth: {token}\r\n{close}\r\n",
        vm.host
    );
    let heard = world.raw(&vm.host, absolute.as_bytes()).await;
    assert!(heard.starts_with("HTTP/1.1 400"), "{heard}");
    let h2c = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nX-aws-proxy-auth: {token}\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nConnection: Upgrade, HTTP2-Settings, close\r\n\r\n",
        vm.host
    );
    let heard = world.raw(&vm.host, h2c.as_bytes()).await;
    assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");
    let (_, _, headers) = app.last();
    assert!(!headers.contains_key("upgrade") && !headers.contains_key("http2-settings"));
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_without_end_are_refused() {
    let world = World::new().await;
    let app = App::serve(&world.worker.socket(PORT));
    let vm = world.vm(json!({})).await;
    let token = world.token_for_all(&vm);
    let start = format!("GET / HTTP/1.1\r\nHost: {}\r\nX-aws-proxy-auth: {token}\r\n", vm.host);
    let long = format!("{start}X-Long: {}\r\n\r\n", "a".repeat(200_000));
    let many = format!("{start}{}\r\n", "X-Many: a\r\n".repeat(5000));
    for head in [long, many] {
        let heard = world.raw(&vm.host, head.as_bytes()).await;
        assert!(heard.is_empty() || heard.starts_with("HTTP/1.1 431"), "{heard}");
    }
    assert_eq!(app.count(), 0);
    assert_eq!(world.get(&vm, &token, "/").await.status, 200);
}

/// A client that says nothing, or a letter now and then, loses its place.
#[tokio::test(flavor = "multi_thread")]
async fn the_slow_and_the_half_open_are_hung_up_on() {
    let mut settings = impatient();
    settings.limits.connections = 3;
    let world = World::with(settings).await;
    App::serve(&world.worker.socket(PORT));
    let vm = world.vm(json!({})).await;
    let token = world.token_for_all(&vm);
    // All places are taken: by one without TLS, one without a request, one whose head has no end.
    let mut silent = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    let mut idle = world.connect(&vm.host).await;
    let mut slow = world.connect(&vm.host).await;
    slow.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ").await.unwrap();
    // Somebody else comes later, and has to wait only for that.
    assert_eq!(world.get(&vm, &token, "/").await.status, 200);
    let mut rest = Vec::new();
    let _end = within(silent.read_to_end(&mut rest)).await;
    let _end = within(idle.read_to_end(&mut rest)).await;
    let _end = within(slow.read_to_end(&mut rest)).await;
    let said = String::from_utf8_lossy(&rest).into_owned();
    assert!(said.is_empty() || said.contains(" 408 "), "{said}");
}

/// An HTTP/2 client that asks for nothing more loses its place, too.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_http2_connection_is_ended() {
    let world = World::with(impatient()).await;
    let vm = world.vm(json!({})).await;
    let io = TokioIo::new(world.connect(&vm.host).await);
    let (_sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), io)
            .await
            .unwrap();
    // It is told to go, and that is no error.
    within(connection).await.unwrap();
}

/// An app may be hostile, too: a head without end, an answer that is none, a body cut short.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_is_none() {
    let world = World::new().await;
    let vm = world.vm(json!({})).await;
    let token = world.token_for_all(&vm);
    let long = format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n", "a".repeat(200_000));
    let answers: [(&str, u16); 6] = [
        ("", 502),
        ("nonsense\r\n\r\n", 502),
        (&long, 502),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 502),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 502),
        ("HTTP/1.1 204 No Content\r\nX-aws-proxy-auth: mine\r\n\r\n", 204),
    ];
    for (number, (said, status)) in answers.into_iter().enumerate() {
        let port = 9000 + u16::try_from(number).unwrap();
        let app = tokio::net::UnixListener::bind(world.worker.socket(port)).unwrap();
        let said = said.to_owned();
        tokio::spawn(async move {
            let (mut stream, _) = app.accept().await.unwrap();
            let mut head = [0; 16];
            let _head = stream.read(&mut head).await;
            let _gone = stream.write_all(said.as_bytes()).await;
        });
        let port = port.to_string();
        let headers = [("x-aws-proxy-auth", token.as_str()), ("x-aws-proxy-port", &port)];
        assert_eq!(world.send(&vm.host, "/", &headers).await.status, status, "{number}");
    }
}
