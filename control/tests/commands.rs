//! `rotifer ps` and its like, as people run them, against a daemon.

#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use rotifer_control::fleet::microvm::Phase;
use serde_json::{Value, json};
use tokio::process::Command;
use world::{World, within};

/// The exit status, and what is printed where.
async fn rotifer(world: &World, line: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rotifer"));
    command.args(line.split_whitespace()).arg("--state").arg(world.file("state"));
    let output = within(command.kill_on_drop(true).output()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_microvm_is_run_seen_suspended_resumed_and_removed_by_command() {
    let world = World::new().await;
    let (status, images, _) = rotifer(&world, "images").await;
    assert!(status == 0 && images.lines().nth(1).unwrap().starts_with("app   CREATED"), "{images}");
    let (status, made, error) = rotifer(&world, "run app").await;
    assert_eq!(status, 0, "{error}");
    let (id, host) = made.trim().split_once("  ").unwrap();
    let vm = world::Vm { id: id.into(), host: host.into() };
    world.until_phase(&vm, Phase::Running).await;
    for (command, phase, state) in [
        ("suspend", Phase::Suspended, "SUSPENDED"),
        ("resume", Phase::Running, "RUNNING"),
        ("rm", Phase::Terminated, "TERMINATED"),
    ] {
        let (status, said, _) = rotifer(&world, &format!("{command} {id}")).await;
        assert_eq!((status, said.as_str()), (0, ""));
        world.until_phase(&vm, phase).await;
        let (_, shown, _) = rotifer(&world, "ps --json").await;
        let shown: Value = serde_json::from_str(shown.trim()).unwrap();
        assert_eq!((&shown["microvmId"], &shown["state"]), (&json!(id), &json!(state)));
    }
    for (line, status, text) in [
        ("run nothing".to_owned(), 1, "there is no image \"nothing\""),
        (format!("rm microvm-x {id}"), 1, "MicroVM not found: microvm-x"),
        (format!("suspend {id}"), 1, "has been terminated"),
        ("logs app".to_owned(), 1, "does not exist"),
        ("rm".to_owned(), 2, "needs the id of a microVM"),
    ] {
        let (code, _, said) = rotifer(&world, &line).await;
        assert!(code == status && said.contains(text), "{line}: {code} {said}");
    }
}
