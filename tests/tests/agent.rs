//! The agent over vsock: commands, terminals, files, tunnels, an app that misbehaves.
//!
//! hosts: gicv3
#![cfg(target_arch = "aarch64")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use rotifer_agent::client::{AgentClient, ExecEvent};
use rotifer_agent::exec::ExecRequest;
use rotifer_agent::process::Exit;
use rotifer_agent::process::spawn::WindowSize;
use rotifer_tests::{Vm, VmBuilder};
use serde_json::json;

fn start() -> (Vm, AgentClient) {
    let mut vm = VmBuilder::new().memory_mib(512).debian().start();
    let agent = vm.agent();
    (vm, agent)
}

fn command(words: &[&str]) -> ExecRequest {
    ExecRequest { command: words.iter().map(|w| w.to_string()).collect(), ..Default::default() }
}

#[test]
fn commands_report_output_status_and_signals() {
    let (_vm, agent) = start();
    let done = agent.exec(&command(&["sh", "-c", "echo out; echo err >&2; exit 7"])).unwrap();
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(done.report.exit, Exit::Code(7));
    let killed = agent.exec(&command(&["sh", "-c", "kill -9 $$"])).unwrap();
    assert_eq!(killed.report.exit, Exit::Signal(9));
    let late = ExecRequest { timeout_ms: Some(100), ..command(&["sleep", "1000"]) };
    assert!(agent.exec(&late).unwrap().report.timed_out);
    let missing = agent.exec(&command(&["/no/such/program"])).unwrap_err().to_string();
    assert!(missing.contains("/no/such/program"), "{missing}");
}

#[test]
fn a_command_has_the_environment_user_and_directory_that_were_asked_for() {
    let (_vm, agent) = start();
    let request = ExecRequest {
        env: BTreeMap::from([("COLOUR".into(), "green".into())]),
        user: Some("nobody".into()),
        cwd: Some("/usr".into()),
        ..command(&["sh", "-c", "echo $COLOUR $(id -un) $(pwd)"])
    };
    assert_eq!(agent.exec(&request).unwrap().stdout, "green nobody /usr\n");
}

#[test]
fn a_stream_carries_input_and_output_at_the_same_time() {
    let (_vm, agent) = start();
    let mut stream = agent.exec_stream(&command(&["tr", "a-z", "A-Z"])).unwrap();
    stream.write_stdin(b"first ").unwrap();
    let mut seen = Vec::new();
    stream.write_stdin(b"second\n").unwrap();
    stream.close_stdin().unwrap();
    loop {
        match stream.next_event().unwrap() {
            ExecEvent::Stdout(bytes) => seen.extend(bytes),
            ExecEvent::Stderr(bytes) => panic!("{}", String::from_utf8_lossy(&bytes)),
            ExecEvent::Exit(report) => {
                assert_eq!(report.exit, Exit::Code(0));
                break;
            }
        }
    }
    assert_eq!(seen, b"FIRST SECOND\n");
}

#[test]
fn a_terminal_knows_its_size_and_hears_of_a_new_one() {
    let (_vm, agent) = start();
    let request = ExecRequest {
        tty: Some(WindowSize { rows: 40, columns: 100 }),
        ..command(&[
            "sh",
            "-c",
            "trap 'stty size; exit' WINCH; stty size; while :; do sleep 1 & wait; done",
        ])
    };
    let mut stream = agent.exec_stream(&request).unwrap();
    let mut seen = String::new();
    let mut resized = false;
    loop {
        match stream.next_event().unwrap() {
            ExecEvent::Stdout(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            ExecEvent::Exit(_) => break,
            ExecEvent::Stderr(_) => {}
        }
        if seen.contains("40 100") && !resized {
            stream.resize(50, 120).unwrap();
            resized = true;
        }
    }
    assert!(seen.contains("50 120"), "{seen:?}");
}

#[test]
fn a_hundred_mebibytes_go_into_a_file_and_come_back_the_same() {
    const BYTES: usize = 100 << 20;
    let (vm, agent) = start();
    let mut data = vec![0; BYTES];
    blake3::Hasher::new_derive_key("rotifer test file").finalize_xof().fill(&mut data);
    let path = Path::new("/tmp/large");
    agent.put_file(path, "", &data[..], BYTES as u64).unwrap();
    assert_eq!(vm.shell("stat -c %s /tmp/large").trim(), BYTES.to_string());
    let mut back = Vec::with_capacity(BYTES);
    assert_eq!(agent.get_file(path, &mut back).unwrap(), BYTES as u64);
    assert!(back == data, "the file came back different");
    agent.delete_file(path).unwrap();
    assert!(agent.stat(path).is_err());
}

#[test]
fn a_tunnel_reaches_the_web_app() {
    let (_vm, agent) = start();
    // The app says when it listens.
    let log = BufReader::new(agent.logs(0, true).unwrap());
    log.lines().map(Result::unwrap).find(|line| line.contains("Listening at")).unwrap();
    let mut tunnel = agent.tunnel("localhost:8080").unwrap();
    tunnel.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    tunnel.read_to_string(&mut answer).unwrap();
    let status = answer.lines().next().unwrap_or_default();
    assert!(status.starts_with("HTTP/1.") && status.contains(" 200"), "{answer}");
    assert!(answer.contains("\"visits\":1"), "{answer}");
}

#[test]
fn an_app_that_floods_and_one_that_crashes_leave_the_agent_well() {
    let (vm, agent) = start();
    let memory_kib =
        || -> u64 { vm.shell("awk '/VmRSS/ {print $2}' /proc/1/status").trim().parse().unwrap() };
    let flood = ["sh", "-c", "yes 'a line of output that nobody reads' | head -c 50000000"];
    let before = memory_kib();
    let done = agent.exec(&command(&flood)).unwrap();
    assert!(done.truncated);
    assert!(memory_kib() < before + 8192, "the agent grew from {before} to {} KiB", memory_kib());
    let crash = agent.exec(&command(&["sh", "-c", "kill -SEGV $$"])).unwrap();
    assert_eq!(crash.report.exit, Exit::Signal(libc::SIGSEGV));
    assert_eq!(agent.health().unwrap()["app"]["state"], json!("running"));
}
