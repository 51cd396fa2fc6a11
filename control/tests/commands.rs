//! `rotifer ps` and its like, as people run them, against a daemon.

#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use std::fs;
use std::process::Stdio;

use rotifer_control::fleet::microvm::Phase;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use world::{World, within};

fn command(world: &World, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rotifer"));
    command.args(line.split_whitespace()).arg("--state").arg(world.file("state"));
    command
}

/// The exit status, and what is printed where.
async fn rotifer(world: &World, line: &str) -> (i32, String, String) {
    let mut command = command(world, line);
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
        ("logs nothing".to_owned(), 1, "there is no image \"nothing\""),
        // It has said nothing yet.
        ("logs app".to_owned(), 0, ""),
        ("rm".to_owned(), 2, "needs the id of a microVM"),
    ] {
        let (code, _, said) = rotifer(&world, &line).await;
        assert!(code == status && said.contains(text), "{line}: {code} {said}");
    }
}

/// A directory to build, and how many archives the daemon has.
fn sources(world: &World) -> (String, impl Fn() -> usize) {
    let directory = world.file("app");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("Dockerfile"), "FROM debian:12\n").unwrap();
    let objects = world.file("state/objects");
    (directory.display().to_string(), move || fs::read_dir(&objects).unwrap().count())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_becomes_an_image_and_its_next_version() {
    let world = World::new().await;
    let (directory, archives) = sources(&world);
    let line = format!("build {directory} --name mine --memory 512");
    let (status, said, error) = rotifer(&world, &line).await;
    assert_eq!((status, said.as_str()), (0, "mine 1.0\n"), "{error}");
    let blob = fs::read_dir(world.file("state/objects")).unwrap().next().unwrap().unwrap();
    assert!(fs::read(blob.path()).unwrap().starts_with(b"PK"), "the archive is no zip");
    // What is the same is not sent again.
    let (status, said, _) = rotifer(&world, &line).await;
    assert_eq!((status, said.as_str(), archives()), (0, "mine 2.0\n", 1));
    fs::write(world.file("app/more"), "x").unwrap();
    let (status, said, _) = rotifer(&world, &line).await;
    assert_eq!((status, said.as_str(), archives()), (0, "mine 3.0\n", 2));
    for (line, text) in [
        (format!("build {directory} --name mine --memory 8193"), "8193"),
        (format!("build {directory} --name a/b"), "name"),
        (format!("build {} --name mine", world.file("state").display()), "no Dockerfile"),
    ] {
        let (status, said, error) = rotifer(&world, &line).await;
        assert!(status == 1 && said.is_empty() && error.contains(text), "{line}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_followed_to_its_end_or_left_going() {
    let world = World::new().await;
    let (directory, _) = sources(&world);
    world.worker.hold_builds();
    let line = format!("build {directory} --name mine");
    let (child, mut lines) = begin(&world, &line);
    world.says("mine", 1, "STEP 1").await;
    assert_eq!(within(lines.next_line()).await.unwrap().as_deref(), Some("STEP 1"));
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = within(child.wait_with_output()).await.unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(130) && error.contains("rotifer logs -f mine"), "{error}");
    world.worker.release_builds(Ok(()));
    let image = world.image.replace(":app", ":mine");
    world.until_image(&image, "CREATED").await;
    world.worker.hold_builds();
    let (child, mut lines) = begin(&world, &line);
    world.says("mine", 2, "STEP 2").await;
    assert_eq!(within(lines.next_line()).await.unwrap().as_deref(), Some("STEP 2"));
    world.says("mine", 2, "the last word").await;
    world.worker.release_builds(Err("CONTAINER_BUILD_FAILED: no"));
    assert_eq!(within(lines.next_line()).await.unwrap().as_deref(), Some("the last word"));
    let output = within(child.wait_with_output()).await.unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(1) && error.contains("CONTAINER_BUILD_FAILED: no"),
        "{error}"
    );
}

fn begin(world: &World, line: &str) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut command = command(world, line);
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = piped.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}
