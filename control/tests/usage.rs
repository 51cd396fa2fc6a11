//! `rotifer usage`, as people run it, against a daemon whose time the test lets pass.

#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use std::time::Duration;

use rotifer_control::clock::Timestamp;
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

/// The only thing that a command lists.
async fn listed(world: &World, line: &str) -> Value {
    let (status, shown, error) = rotifer(world, &format!("{line} --json")).await;
    assert_eq!(status, 0, "{error}");
    serde_json::from_str(shown.trim()).unwrap_or_else(|_| panic!("{line}: {shown:?}"))
}

/// Seconds of processors that the only microVM has used, and those of them that are burst.
async fn processors(world: &World, since: &str) -> (f64, f64) {
    let used = listed(world, &format!("usage {since}")).await;
    let number = |name: &str| used[name].as_f64().unwrap();
    (number("usedVcpuSeconds"), number("burstVcpuSeconds"))
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_follows_from_the_phases_and_a_timeline_shows_them() {
    let world = World::new().await;
    let (_, made, _) = rotifer(&world, "run app").await;
    let (id, host) = made.trim().split_once("  ").unwrap();
    let vm = world::Vm { id: id.into(), host: host.into() };
    world.until_phase(&vm, Phase::Running).await;
    world.worker.has_used(8);
    world.pass(10);
    // Nobody answers; it was let in all the same.
    let token = world.token_for_all(&vm);
    assert_eq!(world.get(&vm, &token, "/").await.status, 502);
    world.worker.measured.lock().unwrap().stored_bytes = Some(512 << 20);
    world.suspend(&vm).await;
    world.pass(100);
    world.worker.has_used(0);
    rotifer(&world, &format!("resume {id}")).await;
    world.until_phase(&vm, Phase::Running).await;
    world.pass(30);
    let (status, shown, error) = rotifer(&world, "usage --json").await;
    assert_eq!(status, 0, "{error}");
    let used: Value = serde_json::from_str(shown.trim()).unwrap();
    let wanted = json!({
        "microvmId": id, "imageName": "app", "imageVersion": "1.0", "state": "RUNNING", "memoryMiB": 2048,
        "runningSeconds": 40.0, "suspendedSeconds": 100.0, "baselineVcpuSeconds": 40.0,
        "usedVcpuSeconds": 8.0, "burstVcpuSeconds": 0.0, "memoryGiBSeconds": 80.0,
        "snapshotGiBSeconds": 50.0, "requests": 1, "launches": 1, "resumes": 1, "suspends": 1,
    });
    assert_eq!(used, wanted);
    let (_, table, _) = rotifer(&world, "usage").await;
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    let wanted =
        [id, "app", "RUNNING", "40.0", "100.0", "40.0", "0.0", "80.0", "50.0", "1", "1", "1"];
    assert_eq!(row, wanted);
    world.terminate(&vm).await;
    let (_, timeline, _) = rotifer(&world, &format!("usage {id} --json")).await;
    let lines: Vec<Value> =
        timeline.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let phases: Vec<_> = lines.iter().map(|line| line["phase"].as_str().unwrap()).collect();
    let all = [
        "Launching",
        "Running",
        "Suspending",
        "Suspended",
        "Resuming",
        "Running",
        "Terminating",
        "Terminated",
    ];
    assert_eq!(phases, all);
    let after: Vec<_> = lines.iter().map(|line| line["afterMs"].as_i64()).collect();
    assert_eq!(
        after,
        [None, Some(0), Some(10_000), Some(0), Some(100_000), Some(0), Some(30_000), Some(0)]
    );
    // What had ended before does not count; nobody else has a timeline.
    world.pass(1);
    let (_, shown, _) = rotifer(&world, "usage --since 2100-01-01T00:00:00Z --json").await;
    assert_eq!(shown, "");
    let (status, _, error) = rotifer(&world, "usage microvm-x").await;
    assert!(status == 1 && error.contains("microvm-x"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn burst_is_what_is_above_the_baseline_whenever_it_is() {
    let world = World::new().await;
    // What it takes to come to run is not used while it runs.
    world.worker.has_used(2);
    let vm = world.vm(json!({})).await;
    // The baseline of 2 GiB is one processor.
    world.worker.has_used(17);
    world.pass(10);
    // Time in which it does little does not make up for it.
    world.worker.has_used(18);
    world.pass(10);
    assert_eq!(processors(&world, "").await, (16.0, 5.0));
    // To ask uses nothing.
    assert_eq!(processors(&world, "").await, (16.0, 5.0));
    // The last reading comes with the suspension; the next process counts from its own beginning.
    world.worker.has_used(30);
    world.suspend(&vm).await;
    assert_eq!(processors(&world, "").await, (28.0, 17.0));
    world.pass(100);
    world.worker.has_used(1);
    world.call("POST", &format!("microvms/{}/resume", vm.id), &json!({}));
    world.until_phase(&vm, Phase::Running).await;
    let resumed = Timestamp(world.now()).iso8601();
    world.worker.has_used(3);
    world.pass(5);
    // It is asked for before it would be looked at.
    assert_eq!(processors(&world, "").await, (30.0, 17.0));
    assert_eq!(processors(&world, &format!("--since {resumed}")).await, (2.0, 0.0));
    world.terminate(&vm).await;
    assert_eq!(processors(&world, "").await, (30.0, 17.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_is_counted_once_across_a_killed_daemon_and_a_killed_machine() {
    let world = World::new().await;
    let vm = world.vm(json!({})).await;
    world.worker.has_used(4);
    world.pass(10);
    // Used before the daemon is killed, and while there is none.
    world.worker.has_used(30);
    let world = world.started_again().await;
    world.worker.has_used(40);
    world.pass(30);
    // 4 in the first ten seconds, and 36 in thirty.
    assert_eq!(processors(&world, "").await, (40.0, 6.0));
    // A machine that is killed takes with it what nobody has read.
    *world.worker.measured.lock().unwrap() = Default::default();
    world.pass(5);
    world.terminate(&vm).await;
    assert_eq!(processors(&world, "").await, (40.0, 6.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_makes_no_burst() {
    let world = World::new().await;
    let _vm = world.vm(json!({})).await;
    for (used, passed, all) in [
        (8, 10, (8.0, 0.0)),
        (12, -3600, (12.0, 0.0)),
        (20, 10, (20.0, 0.0)),
        (35, 10, (35.0, 5.0)),
    ] {
        world.worker.has_used(used);
        world.pass(passed);
        assert_eq!(processors(&world, "").await, all);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_is_found_in_the_hour_that_it_was_used_in() {
    let world = World::new().await;
    let _vm = world.vm(json!({})).await;
    for hour in 1..=3 {
        world.worker.has_used(hour * 100);
        world.pass(3600);
    }
    let ago =
        |seconds: i64| format!("--since {}", Timestamp(world.now() - seconds * 1000).iso8601());
    assert_eq!(processors(&world, "").await, (300.0, 0.0));
    assert_eq!(processors(&world, &ago(7200)).await, (200.0, 0.0));
    assert_eq!(processors(&world, &ago(1800)).await, (50.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_says_what_each_step_of_a_launch_and_a_resume_took() {
    let world = World::new().await;
    let us = Duration::from_micros;
    world.worker.measured.lock().unwrap().steps = vec![("files", us(1500)), ("hook", us(20_042))];
    let vm = world.vm(json!({})).await;
    world.worker.measured.lock().unwrap().steps = Vec::new();
    world.suspend(&vm).await;
    world.worker.measured.lock().unwrap().steps = vec![("step", us(1)); 100];
    world.call("POST", &format!("microvms/{}/resume", vm.id), &json!({}));
    world.until_phase(&vm, Phase::Running).await;
    // It is kept.
    let world = world.started_again().await;
    let (_, timeline, _) = rotifer(&world, &format!("usage {} --json", vm.id)).await;
    let steps: Vec<Value> = timeline
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["steps"].clone())
        .collect();
    assert_eq!(steps[1], json!([{ "name": "files", "ms": 1.5 }, { "name": "hook", "ms": 20.042 }]));
    for place in [0, 2, 3, 4] {
        assert!(steps[place].is_null(), "{timeline}");
    }
    assert_eq!(steps[5].as_array().unwrap().len(), 16, "{timeline}");
    let (_, table, _) = rotifer(&world, &format!("usage {}", vm.id)).await;
    let launched = table.lines().nth(2).unwrap();
    assert!(launched.ends_with("files 1.5, hook 20.0"), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_takes_room_until_it_is_removed() {
    let world = World::new().await;
    world.pass(100);
    let mut wanted = json!({
        "imageName": "app", "imageVersion": "1.0", "storedBytes": world::VERSION_BYTES,
        "storedSeconds": 100.0, "storedGiBSeconds": 100.0,
    });
    assert_eq!(listed(&world, "usage --images").await, wanted);
    let (_, table, _) = rotifer(&world, "usage --images").await;
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["app", "1.0", "1073741824", "100.0", "100.0"]);
    let path = format!("microvm-images/{}", world.image.replace(':', "%3A"));
    world.call("DELETE", &path, &Value::Null);
    let gone = async {
        while listed(&world, "usage --images").await["storedBytes"] != 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(gone).await;
    world.pass(50);
    wanted["storedBytes"] = json!(0);
    assert_eq!(listed(&world, "usage --images").await, wanted);
    let now = Timestamp(world.now()).iso8601();
    let (_, shown, _) = rotifer(&world, &format!("usage --images --since {now} --json")).await;
    assert_eq!(shown, "");
}
