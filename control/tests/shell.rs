//! The shell, with the real agent behind it.

#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use std::time::Instant;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, client_async};
use world::{DEADLINE, Vm, World, within};

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// A WebSocket to the endpoint, that offers these subprotocols.
async fn socket(world: &World, vm: &Vm, offer: &str) -> (Socket, Response) {
    let url = world.url(vm, "/shell").replacen("https", "wss", 1);
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", offer.parse().unwrap());
    within(client_async(request, world.connect(&vm.host).await)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_is_a_terminal_that_is_typed_into_resized_and_left() {
    let world = World::new().await;
    world.start_agent();
    world.start_app(&json!({ "command": ["true"], "env": { "OF_THE_IMAGE": "here" } })).await;
    let vm = world.vm_with_shell().await;
    let token = world.shell_token(&vm);
    assert_eq!(world.get(&vm, &token, "/").await.status, 502, "it is no WebSocket");
    let offer = format!(
        "lambda-microvms, lambda-microvms.authentication.{token}, lambda-microvms.port.8022"
    );
    let (mut socket, response) = socket(&world, &vm, &offer).await;
    assert_eq!(response.headers()["sec-websocket-protocol"], "lambda-microvms");
    let first = within(socket.next()).await.unwrap().unwrap();
    let first: Value = serde_json::from_str(first.to_text().unwrap()).unwrap();
    assert_eq!(first["type"], "session_init");
    assert_eq!(first["session_id"].as_str().unwrap().len(), 36);
    let resize = json!({ "type": "resize", "cols": 132, "rows": 43 });
    socket.send(Message::text(resize.to_string())).await.unwrap();
    // Text is typed as well as bytes are. What is looked for is not in what is typed, which is echoed.
    socket.send(Message::text("stty size; echo $TERM-${OF_THE_IMAGE:-$((6*7))}\n")).await.unwrap();
    let mut shown = String::new();
    let end = Instant::now() + DEADLINE;
    while !(shown.contains("43 132") && shown.contains("xterm-42")) {
        assert!(Instant::now() < end, "{shown}");
        let message = within(socket.next()).await.unwrap().unwrap();
        assert!(message.is_binary(), "{message:?}");
        shown.push_str(&String::from_utf8_lossy(&message.into_data()));
    }
    socket.send(Message::binary(&b"exit\n"[..])).await.unwrap();
    let closed = loop {
        if let Message::Close(frame) = within(socket.next()).await.unwrap().unwrap() {
            break frame.unwrap();
        }
    };
    assert_eq!((closed.code, closed.reason.as_str()), (CloseCode::Normal, "shell exited"));
}

/// Whatever a client says, the stream ends, and the next one is served.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_makes_no_sense_ends() {
    let world = World::new().await;
    world.start_agent();
    let vm = world.vm_with_shell().await;
    let (token, frame) = (world.shell_token(&vm), |bytes: &[u8]| Message::binary(bytes.to_vec()));
    let offer = format!("lambda-microvms, lambda-microvms.authentication.{token}, rotifer-stream");
    let cat = || Message::text(json!({ "command": ["cat"] }).to_string());
    for (said, answer) in [
        (vec![Message::text("no JSON")], "\"bad_request\""),
        (vec![Message::text(json!({ "command": [] }).to_string())], "\"bad_request\""),
        (vec![frame(b"\x01not what to run")], ""),
        (vec![Message::text("x".repeat(2 << 20))], ""),
        (vec![cat(), frame(b"")], ""),
        (vec![cat(), frame(b"\x63?")], ""),
        (vec![cat(), frame(b"\x14{}")], ""),
        (vec![cat(), frame(&[1; 100_000])], ""),
        // More than is granted, at once.
        (vec![cat()].into_iter().chain(vec![frame(&[1; 60_000]); 200]).collect(), ""),
    ] {
        let (mut socket, response) = socket(&world, &vm, &offer).await;
        assert_eq!(response.headers()["sec-websocket-protocol"], "rotifer-stream");
        for message in said.clone() {
            // It may have ended already.
            let _gone = within(socket.send(message)).await;
        }
        let mut texts = String::new();
        while let Some(Ok(message)) = within(socket.next()).await {
            if let Message::Text(text) = message {
                texts.push_str(&text);
            }
        }
        let first =
            said.first().map(|message| message.to_string().chars().take(40).collect::<String>());
        assert!(
            texts.contains(answer) && (texts.is_empty() == answer.is_empty()),
            "{first:?}: {texts}"
        );
    }
    let (mut socket, _) = socket(&world, &vm, &offer).await;
    socket.send(Message::text(json!({ "command": ["echo", "hi"] }).to_string())).await.unwrap();
    let first = within(socket.next()).await.unwrap().unwrap();
    assert!(first.into_data().ends_with(b"hi\n"));
}
