//! The app and its log lines.

use crate::support::{TestAgent, refusal};
use rotifer_agent::limits::LOG_RING_BYTES;
use rotifer_agent::logs::{Line, Stream};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};

fn app(script: &str) -> Value {
    json!({ "command": ["/bin/sh", "-c", script], "env": { "COLOUR": "red" } })
}

/// Follows the log until a line of the agent says how the app ended.
fn lines_until_exit(agent: &TestAgent, after: u64) -> Vec<Line> {
    let follow = BufReader::new(agent.client.logs(after, true).unwrap());
    let mut lines: Vec<Line> = Vec::new();
    for line in follow.lines() {
        let line: Line = serde_json::from_str(&line.unwrap()).unwrap();
        let is_end = line.stream == Stream::Agent && !line.text.contains("started as");
        lines.push(line);
        if is_end {
            break;
        }
    }
    lines
}

#[test]
fn an_apps_output_becomes_numbered_lines_that_can_be_followed() {
    let agent = TestAgent::start();
    let state = agent.client.start_app(&app("echo one; echo two >&2; printf three")).unwrap();
    assert_eq!(state["state"], "running");
    let lines = lines_until_exit(&agent, 0);
    for (stream, text) in
        [(Stream::Stdout, "one"), (Stream::Stderr, "two"), (Stream::Stdout, "three")]
    {
        assert!(lines.iter().any(|line| line.stream == stream && line.text == text), "{lines:?}");
    }
    let sequences: Vec<u64> = lines.iter().map(|line| line.sequence).collect();
    assert_eq!(sequences, (1..=lines.len() as u64).collect::<Vec<_>>());
    let text = agent.client.logs(1, false).unwrap().text().unwrap();
    assert!(text.starts_with("{\"sequence\":2,"), "{text}");
}

#[test]
fn an_app_that_crashes_is_noted_and_another_can_be_started() {
    let agent = TestAgent::start();
    agent.client.start_app(&app("kill -SEGV $$")).unwrap();
    lines_until_exit(&agent, 0);
    let state = agent.client.app().unwrap();
    assert_eq!((&state["state"], &state["exit"]["signal"]), (&json!("exited"), &json!(11)));
    assert_eq!(agent.client.start_app(&app("exit 0")).unwrap()["state"], "running");
}

#[test]
fn a_second_app_is_refused_while_one_runs() {
    let agent = TestAgent::start();
    let pid = agent.client.start_app(&app("exec sleep 1000")).unwrap()["pid"].clone();
    assert_eq!(refusal(agent.client.start_app(&app("true"))), (409, "app_running".into()));
    let kill = crate::support::shell(&format!("kill -9 {pid}"));
    assert_eq!(agent.client.exec(&kill).unwrap().stderr, "");
    lines_until_exit(&agent, 0);
}

#[test]
fn an_app_that_cannot_start_is_a_state_with_a_reason() {
    let agent = TestAgent::start();
    let missing = json!({ "command": ["/does/not/exist"] });
    assert_eq!(refusal(agent.client.start_app(&missing)), (400, "cannot_start".into()));
    let state = agent.client.app().unwrap();
    assert_eq!(state["state"], "failed");
    assert!(state["reason"].as_str().unwrap().contains("/does/not/exist"), "{state}");
}

#[test]
fn a_flood_of_output_is_bounded_and_the_agent_answers_meanwhile() {
    let agent = TestAgent::start();
    let pid = agent.client.start_app(&app("exec yes flooding-flooding-flooding")).unwrap();
    // So many lines that the ring has turned over several times.
    let mut follow = BufReader::new(agent.client.logs(0, true).unwrap());
    let mut last = String::new();
    let sequence = loop {
        last.clear();
        follow.read_line(&mut last).unwrap();
        let line: Line = serde_json::from_str(&last).unwrap();
        if line.sequence > 50_000 {
            break line.sequence;
        }
    };
    assert!(agent.client.health().is_ok());
    let kept = agent.client.logs(0, false).unwrap();
    let text = kept.text().unwrap();
    assert!(text.lines().count() < 2 * LOG_RING_BYTES / 64, "{}", text.lines().count());
    let kill = crate::support::shell(&format!("kill -9 {}", pid["pid"]));
    agent.client.exec(&kill).unwrap();
    assert!(!lines_until_exit(&agent, sequence).is_empty());
}

#[test]
fn a_command_starts_as_the_app_would() {
    let agent = TestAgent::start();
    agent.client.start_app(&app("true")).unwrap();
    let colour = crate::support::shell("echo $COLOUR");
    assert_eq!(agent.client.exec(&colour).unwrap().stdout, "red\n");
}
