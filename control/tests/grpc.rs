//! gRPC through an endpoint: `./x test control` installs the client and says where it is.

mod world;

use serde_json::json;
use world::{World, python, sees};

#[tokio::test(flavor = "multi_thread")]
async fn grpc_passes_with_its_trailers_and_streams_both_ways() {
    let world = World::new().await;
    let vm = world.vm(json!({})).await;
    let token = world.token(&vm, json!([{ "port": 8080 }]));
    let mut command = python("grpc_journey.py");
    command.args([world.worker.socket(8080), world.ca()]);
    command.args([&world.port.to_string(), &vm.host, &token]);
    sees(&mut command, 7).await;
    // A cancelled call leaves nothing behind.
    world.until_counts(0, 0).await;
}
