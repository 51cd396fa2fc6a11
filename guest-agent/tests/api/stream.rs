//! Commands as streams of frames.

use crate::support::{TestAgent, Watched, fifo, refusal, shell};
use rotifer_agent::client::{ExecEvent, ExecStream};
use rotifer_agent::exec::ExecRequest;
use rotifer_agent::frame::Frame;
use rotifer_agent::limits::{EXECS_MAX_COUNT, FRAME_PAYLOAD_MAX_BYTES, STDIN_WINDOW_BYTES};
use rotifer_agent::process::Exit;
use rotifer_agent::process::spawn::WindowSize;

/// Reads standard output until it contains `text`.
fn wait_for(stream: &mut ExecStream, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        match stream.next_event().unwrap() {
            ExecEvent::Stdout(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    seen
}

fn terminal(script: &str) -> ExecRequest {
    ExecRequest { tty: Some(WindowSize { rows: 24, columns: 80 }), ..shell(script) }
}

#[test]
fn output_comes_apart_and_the_exit_comes_last() {
    let agent = TestAgent::start();
    let stream = agent.client.exec_stream(&shell("echo out; echo err >&2; exit 5")).unwrap();
    let (report, stdout, stderr) = stream.wait().unwrap();
    assert_eq!((report.exit, report.timed_out), (Exit::Code(5), false));
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
}

#[test]
fn input_of_many_windows_comes_back_unchanged() {
    let agent = TestAgent::start();
    let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i ^ (i >> 7)) as u8).collect();
    let mut stream = agent.client.exec_stream(&shell("cat")).unwrap();
    stream.write_stdin(&sent).unwrap();
    stream.close_stdin().unwrap();
    let (report, stdout, _) = stream.wait().unwrap();
    assert_eq!(report.exit, Exit::Code(0));
    assert!(stdout == sent, "{} bytes came back", stdout.len());
}

#[test]
fn a_slow_client_gets_all_output_although_the_command_has_ended() {
    let agent = TestAgent::start();
    let stream = agent.client.exec_stream(&shell("head -c 4000000 /dev/zero; exit 1")).unwrap();
    let (report, stdout, _) = stream.wait().unwrap();
    assert_eq!((report.exit, stdout.len()), (Exit::Code(1), 4_000_000));
}

#[test]
fn a_signal_overtakes_input_that_is_not_read() {
    let agent = TestAgent::start();
    let script = "trap 'exit 7' USR1; echo ready; sleep 1000 & wait";
    let mut stream = agent.client.exec_stream(&shell(script)).unwrap();
    wait_for(&mut stream, "ready");
    stream.write_stdin(&vec![0; STDIN_WINDOW_BYTES]).unwrap();
    stream.input().unwrap().signal(libc::SIGUSR1 as u8).unwrap();
    assert_eq!(stream.wait().unwrap().0.exit, Exit::Code(7));
}

#[test]
fn a_client_that_goes_takes_the_process_group_along() {
    let agent = TestAgent::start();
    let script = "sleep 1000 & echo $! end; wait";
    let mut stream = agent.client.exec_stream(&shell(script)).unwrap();
    let pid = wait_for(&mut stream, "end").split(' ').next().unwrap().parse().unwrap();
    let child = Watched::open(pid);
    drop(stream);
    child.assert_ends();
}

#[test]
fn a_command_that_is_kept_outlives_its_client() {
    let agent = TestAgent::start();
    let (go, done) = (agent.path("go"), agent.path("done"));
    fifo(&go);
    fifo(&done);
    // More output than pipes and sockets hold: it must not block once nobody takes it.
    let script = format!(
        "echo ready; read x < {}; head -c 2000000 /dev/zero; echo $x > {}",
        go.display(),
        done.display()
    );
    let request = ExecRequest { keep: true, ..shell(&script) };
    let mut stream = agent.client.exec_stream(&request).unwrap();
    wait_for(&mut stream, "ready");
    drop(stream);
    std::fs::write(&go, "alive\n").unwrap();
    assert_eq!(std::fs::read_to_string(&done).unwrap(), "alive\n");
}

#[test]
fn breaking_the_protocol_ends_the_command() {
    let agent = TestAgent::start();
    let piece = Frame::Stdin(vec![0; FRAME_PAYLOAD_MAX_BYTES]);
    let beyond_the_window = vec![piece; STDIN_WINDOW_BYTES / FRAME_PAYLOAD_MAX_BYTES + 1];
    let too_long = vec![Frame::Stdin(vec![0; FRAME_PAYLOAD_MAX_BYTES + 1])];
    for frames in [beyond_the_window, too_long, vec![Frame::Window(1)]] {
        let mut stream = agent.client.exec_stream(&shell("echo $$ end; exec sleep 1000")).unwrap();
        let pid = wait_for(&mut stream, "end").split(' ').next().unwrap().parse().unwrap();
        let process = Watched::open(pid);
        for frame in &frames {
            // The agent may hang up before the last of it.
            let _ = stream.send(frame);
        }
        process.assert_ends();
        assert!(stream.wait().is_err());
    }
}

#[test]
fn a_timeout_is_told_in_the_last_frame() {
    let agent = TestAgent::start();
    let request = ExecRequest { timeout_ms: Some(200), ..shell("sleep 1000") };
    let (report, ..) = agent.client.exec_stream(&request).unwrap().wait().unwrap();
    assert_eq!((report.exit, report.timed_out), (Exit::Signal(9), true));
}

#[test]
fn a_terminal_has_a_size_that_follows_the_client() {
    let agent = TestAgent::start();
    let script = "stty size; trap 'stty size; exit 0' WINCH; echo ready; sleep 1000 & wait";
    let mut stream = agent.client.exec_stream(&terminal(script)).unwrap();
    assert!(wait_for(&mut stream, "ready").starts_with("24 80\r\n"));
    stream.resize(50, 132).unwrap();
    let (report, stdout, _) = stream.wait().unwrap();
    assert_eq!(report.exit, Exit::Code(0));
    assert_eq!(String::from_utf8_lossy(&stdout).lines().last(), Some("50 132"));
}

#[test]
fn control_characters_of_a_terminal_work() {
    let agent = TestAgent::start();
    let mut stream = agent.client.exec_stream(&terminal("echo ready; exec sleep 1000")).unwrap();
    wait_for(&mut stream, "ready");
    stream.write_stdin(b"\x03").unwrap();
    assert_eq!(stream.wait().unwrap().0.exit, Exit::Signal(libc::SIGINT));

    let mut stream = agent.client.exec_stream(&terminal("echo ready; cat; exit 6")).unwrap();
    wait_for(&mut stream, "ready");
    stream.close_stdin().unwrap();
    assert_eq!(stream.wait().unwrap().0.exit, Exit::Code(6));
}

#[test]
fn a_command_obeys_signals_that_the_agent_was_started_to_ignore() {
    let agent = TestAgent::start();
    // SAFETY: plain numbers. No other test needs the default action of this signal in this process.
    unsafe { libc::signal(libc::SIGQUIT, libc::SIG_IGN) };
    let stream = agent.client.exec_stream(&shell("kill -QUIT $$; exit 1")).unwrap();
    assert_eq!(stream.wait().unwrap().0.exit, Exit::Signal(libc::SIGQUIT));
}

#[test]
fn commands_beyond_the_limit_are_refused_until_one_ends() {
    let agent = TestAgent::start();
    let mut streams: Vec<_> =
        (0..EXECS_MAX_COUNT).map(|_| agent.client.exec_stream(&shell("cat")).unwrap()).collect();
    let refused = refusal(agent.client.exec(&shell("true")));
    assert_eq!(refused, (503, "too_many_execs".into()));
    let mut one = streams.pop().unwrap();
    one.close_stdin().unwrap();
    assert_eq!(one.wait().unwrap().0.exit, Exit::Code(0));
    // Its room is free once its connection is closed: that the agent does when we have.
    let health = agent.client.health().unwrap();
    assert_eq!(health["app"]["state"], "none");
}

#[test]
fn another_protocol_is_refused() {
    let agent = TestAgent::start();
    let headers = [("connection", "upgrade"), ("upgrade", "websocket")];
    let result = agent.client.request("POST", "/v1/exec", &headers, b"{}");
    assert_eq!(refusal(result), (400, "bad_request".into()));
}
