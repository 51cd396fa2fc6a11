//! Commands that answer at their end.

use crate::support::{TestAgent, Watched, fifo, refusal, shell};
use rotifer_agent::exec::ExecRequest;
use rotifer_agent::limits::EXEC_OUTPUT_MAX_BYTES;
use rotifer_agent::process::Exit;
use rotifer_agent::process::spawn::WindowSize;

#[test]
fn a_command_returns_its_output_and_its_status() {
    let agent = TestAgent::start();
    let result = agent.client.exec(&shell("echo out; echo err >&2; exit 3")).unwrap();
    assert_eq!(result.report.exit, Exit::Code(3));
    assert_eq!((result.stdout.as_str(), result.stderr.as_str()), ("out\n", "err\n"));
    assert!(!result.truncated && !result.report.timed_out);
}

#[test]
fn the_signal_that_killed_a_command_is_told_even_a_real_time_one() {
    let agent = TestAgent::start();
    for signal in [9, 15, 34, 64] {
        let result = agent.client.exec(&shell(&format!("kill -{signal} $$"))).unwrap();
        assert_eq!(result.report.exit, Exit::Signal(signal));
    }
}

#[test]
fn input_environment_and_directory_reach_the_command() {
    let agent = TestAgent::start();
    let request = ExecRequest {
        input: Some("line\n".into()),
        env: [("COLOUR".to_owned(), "blue".to_owned())].into(),
        cwd: Some("/usr".into()),
        ..shell("cat; pwd; echo $COLOUR $HOME_NOT_SET")
    };
    assert_eq!(agent.client.exec(&request).unwrap().stdout, "line\n/usr\nblue\n");
}

#[test]
fn input_that_is_not_read_does_not_matter() {
    let agent = TestAgent::start();
    let request = ExecRequest { input: Some("x".repeat(500_000)), ..shell("exit 4") };
    assert_eq!(agent.client.exec(&request).unwrap().report.exit, Exit::Code(4));
}

#[test]
fn output_beyond_the_limit_is_cut_and_the_command_still_ends() {
    let agent = TestAgent::start();
    let result = agent.client.exec(&shell("head -c 5000000 /dev/zero; echo e >&2")).unwrap();
    assert_eq!(result.report.exit, Exit::Code(0));
    assert_eq!(result.stdout.len(), EXEC_OUTPUT_MAX_BYTES);
    assert_eq!(result.stderr, "e\n");
    assert!(result.truncated);
}

#[test]
fn a_command_that_takes_too_long_is_killed_with_its_children() {
    let agent = TestAgent::start();
    let request = ExecRequest { timeout_ms: Some(300), ..shell("sleep 1000 | sleep 1000") };
    let result = agent.client.exec(&request).unwrap();
    assert!(result.report.timed_out);
    assert_eq!(result.report.exit, Exit::Signal(9));
}

#[test]
fn a_background_process_that_holds_the_pipes_does_not_hold_the_answer() {
    let agent = TestAgent::start();
    let result = agent.client.exec(&shell("sleep 1000 & echo $!; yes >&2 & echo $!")).unwrap();
    assert_eq!(result.report.exit, Exit::Code(0));
    let pids = result.stdout.replace('\n', " ");
    let kill = agent.client.exec(&shell(&format!("kill -9 {pids}"))).unwrap();
    assert_eq!(kill.report.exit, Exit::Code(0), "they were left alone: {}", kill.stderr);
}

#[test]
fn a_client_that_disconnects_takes_its_command_along() {
    let agent = TestAgent::start();
    let pipe = agent.path("pipe");
    fifo(&pipe);
    let body =
        serde_json::to_vec(&shell(&format!("echo $$ > {}; exec sleep 1000", pipe.display())));
    let body = body.unwrap();
    let mut socket = std::os::unix::net::UnixStream::connect(agent.socket()).unwrap();
    let head = format!("POST /v1/exec HTTP/1.1\r\ncontent-length: {}\r\n\r\n", body.len());
    std::io::Write::write_all(&mut socket, &[head.as_bytes(), &body].concat()).unwrap();
    let pid = std::fs::read_to_string(&pipe).unwrap().trim().parse().unwrap();
    let process = Watched::open(pid);
    drop(socket);
    process.assert_ends();
}

#[test]
fn what_cannot_be_started_is_refused_with_its_reason() {
    let agent = TestAgent::start();
    let run = |request: &ExecRequest| refusal(agent.client.exec(request));
    let command =
        |program: &str| ExecRequest { command: vec![program.into()], ..Default::default() };
    assert_eq!(run(&command("/does/not/exist")), (400, "cannot_start".into()));
    assert_eq!(run(&command("")), (400, "bad_request".into()));
    assert_eq!(run(&ExecRequest::default()), (400, "bad_request".into()));
    let nowhere = ExecRequest { cwd: Some("/does/not/exist".into()), ..shell("true") };
    assert_eq!(run(&nowhere), (400, "bad_directory".into()));
    let tty = Some(WindowSize { rows: 24, columns: 80 });
    assert_eq!(run(&ExecRequest { tty, ..shell("true") }), (400, "bad_request".into()));
    let long = ExecRequest { timeout_ms: Some(u64::MAX), ..shell("true") };
    assert_eq!(run(&long), (400, "bad_request".into()));
}

#[test]
fn a_body_that_is_no_request_is_refused() {
    let agent = TestAgent::start();
    let bodies: [&[u8]; 5] = [b"", b"{", b"[]", b"{\"command\": \"x\"}", b"{\"comand\": [\"x\"]}"];
    for body in bodies {
        let result = agent.client.request("POST", "/v1/exec", &[], body);
        assert_eq!(refusal(result), (400, "bad_request".into()));
    }
    let huge = vec![b' '; 2 * 1024 * 1024];
    let result = agent.client.request("POST", "/v1/exec", &[], &huge);
    assert_eq!(refusal(result), (413, "body_too_large".into()));
}
