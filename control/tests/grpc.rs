//! gRPC through an endpoint: `./x test control` installs the client and says where it is.

mod world;

use std::path::Path;

use serde_json::json;
use tokio::process::Command;
use world::{World, within};

#[tokio::test(flavor = "multi_thread")]
async fn grpc_passes_with_its_trailers_and_streams_both_ways() {
    let world = World::new().await;
    let vm = world.vm(json!({})).await;
    let token = world.token(&vm, json!([{ "port": 8080 }]));
    let python = std::env::var_os("ROTIFER_PYTHON");
    let python = python.expect("ROTIFER_PYTHON is set by ./x test, which installs the client");
    let mut command = Command::new(Path::new(&python).join("bin/python"));
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/grpc_journey.py"))
        .args([world.worker.socket(8080), world.ca()])
        .args([&world.port.to_string(), &vm.host, &token])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .kill_on_drop(true);
    let output = within(command.output()).await.unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}{error}");
    assert_eq!(shown.matches("ok ").count(), 7, "{shown}");
    // A cancelled call leaves nothing behind.
    world.until_counts(0, 0).await;
}
