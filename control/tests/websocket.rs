//! WebSockets through an endpoint.

#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use futures::{SinkExt, StreamExt};
use serde_json::json;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use world::app::App;
use world::{Vm, World, within};

const PORT: u16 = 8080;

type Socket = WebSocketStream<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>;

/// A WebSocket and the subprotocol that was chosen, or the status of the refusal.
async fn open(
    world: &World,
    vm: &Vm,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<(Socket, Option<String>), u16> {
    let mut request =
        world.url(vm, path).replacen("https", "wss", 1).into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match within(client_async(request, world.connect(&vm.host).await)).await {
        Ok((socket, response)) => {
            let chosen = response.headers().get("sec-websocket-protocol");
            Ok((socket, chosen.map(|chosen| chosen.to_str().unwrap().to_owned())))
        }
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_go_to_and_fro_and_the_app_sees_its_own_subprotocols_only() {
    let world = World::new().await;
    let app = App::serve(&world.worker.socket(PORT));
    let vm = world.vm(json!({})).await;
    let token = world.token(&vm, json!([{ "port": PORT }]));
    let offer =
        |more: &str| format!("lambda-microvms, lambda-microvms.authentication.{token}{more}");
    let cases = [
        ("x-aws-proxy-auth", token.clone(), None, None),
        ("sec-websocket-protocol", offer(""), Some("lambda-microvms"), None),
        (
            "sec-websocket-protocol",
            offer(", lambda-microvms.port.8080"),
            Some("lambda-microvms"),
            None,
        ),
        ("sec-websocket-protocol", offer(", chat"), Some("chat"), Some("chat")),
    ];
    for (name, value, chosen, offered) in cases {
        let (mut socket, got) = open(&world, &vm, "/socket", &[(name, &value)]).await.unwrap();
        assert_eq!(got.as_deref(), chosen, "{value}");
        let (_, _, headers) = app.last();
        let seen = headers.get("sec-websocket-protocol").map(|seen| seen.to_str().unwrap());
        assert_eq!(seen, offered);
        let large = Message::binary(vec![7; 1 << 20]);
        for message in [Message::text("ü"), large] {
            socket.send(message.clone()).await.unwrap();
            assert_eq!(within(socket.next()).await.unwrap().unwrap(), message);
        }
        socket.close(None).await.unwrap();
        while within(socket.next()).await.is_some_and(|message| message.is_ok()) {}
    }
    let unmarked = format!("lambda-microvms.authentication.{token}");
    for (name, value, status) in [
        ("sec-websocket-protocol", unmarked, 403),
        ("sec-websocket-protocol", offer(", lambda-microvms.port.81"), 403),
        ("x-aws-proxy-auth", world.token_for_all(&vm), 200),
    ] {
        // The last is no refusal of ours: the app wants no WebSocket there.
        let path = if status == 200 { "/" } else { "/socket" };
        let refusal = open(&world, &vm, path, &[(name, &value)]).await.map(|_| ());
        assert_eq!(refusal, Err(status), "{value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_socket_keeps_a_microvm_awake_and_ends_with_it() {
    let world = World::new().await;
    App::serve(&world.worker.socket(PORT));
    let policy = json!({ "idlePolicy": {
        "maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 600, "autoResumeEnabled": true,
    } });
    let vm = world.vm(policy).await;
    let token = world.token_for_all(&vm);
    let headers = [("x-aws-proxy-auth", token.as_str())];
    let (mut socket, _) = open(&world, &vm, "/socket", &headers).await.unwrap();
    world.pass(1000);
    assert_eq!(world.state(&vm), "RUNNING");
    world.suspend(&vm).await;
    let end = within(socket.next()).await;
    assert!(end.is_none_or(|message| message.is_err()), "it is cut");
    // A handshake wakes it, as any request does; the token before has expired.
    let token = world.token_for_all(&vm);
    let headers = [("x-aws-proxy-auth", token.as_str())];
    let (mut socket, _) = open(&world, &vm, "/socket", &headers).await.unwrap();
    socket.send(Message::text("again")).await.unwrap();
    assert_eq!(within(socket.next()).await.unwrap().unwrap(), Message::text("again"));
}
