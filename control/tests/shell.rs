//! The shell, with the real agent behind it.

mod world;

use std::time::Instant;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use world::{DEADLINE, World, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_is_a_terminal_that_is_typed_into_resized_and_left() {
    let world = World::new().await;
    world.start_agent();
    let vm = world.vm_with_shell().await;
    let token = world.shell_token(&vm);
    assert_eq!(world.get(&vm, &token, "/").await.status, 502, "it is no WebSocket");
    let mut request =
        world.url(&vm, "/shell").replacen("https", "wss", 1).into_client_request().unwrap();
    let offer = format!(
        "lambda-microvms, lambda-microvms.authentication.{token}, lambda-microvms.port.8022"
    );
    request.headers_mut().insert("sec-websocket-protocol", offer.parse().unwrap());
    let (mut socket, response) =
        within(client_async(request, world.connect(&vm.host).await)).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "lambda-microvms");
    let first = within(socket.next()).await.unwrap().unwrap();
    let first: Value = serde_json::from_str(first.to_text().unwrap()).unwrap();
    assert_eq!(first["type"], "session_init");
    assert_eq!(first["session_id"].as_str().unwrap().len(), 36);
    let resize = json!({ "type": "resize", "cols": 132, "rows": 43 });
    socket.send(Message::text(resize.to_string())).await.unwrap();
    // Text is typed as well as bytes are. What is looked for is not in what is typed, which is echoed.
    socket.send(Message::text("stty size; echo $TERM-$((6*7))\n")).await.unwrap();
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
