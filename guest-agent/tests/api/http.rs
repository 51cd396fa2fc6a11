//! What the agent makes of HTTP that is wrong, and its limits.

use crate::support::{DEADLINE, TestAgent, refusal};
use rotifer_agent::agent::ShutdownMode;
use rotifer_agent::limits::{CONNECTIONS_MAX_COUNT, REQUEST_HEAD_MAX_BYTES};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Sends raw bytes and reads until the agent closes.
fn raw(agent: &TestAgent, bytes: &[u8]) -> String {
    let mut socket = UnixStream::connect(agent.socket()).unwrap();
    // The agent may refuse before it has read everything.
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let _ = socket.write_all(bytes);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn health_tells_the_version_and_the_time_line() {
    let agent = TestAgent::start();
    let health = agent.client.health().unwrap();
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(health["timeline"]["kernel_start_ns"], 0);
    assert!(health["timeline"]["now_ns"].as_u64().unwrap() > 0);
    assert_eq!(health["app"]["state"], "none");
}

#[test]
fn unknown_endpoints_methods_and_parameters_are_refused_by_name() {
    let agent = TestAgent::start();
    let request =
        |method: &str, target: &str| refusal(agent.client.request(method, target, &[], b""));
    assert_eq!(request("GET", "/"), (404, "no_endpoint".into()));
    assert_eq!(request("GET", "/v2/health"), (404, "no_endpoint".into()));
    assert_eq!(request("POST", "/v1/health"), (405, "wrong_method".into()));
    assert_eq!(request("GET", "/v1/health?a=b"), (400, "bad_request".into()));
    assert_eq!(request("GET", "/v1/files/stat"), (400, "bad_path".into()));
}

#[test]
fn heads_that_are_too_long_or_no_http_are_refused() {
    let agent = TestAgent::start();
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(2 * REQUEST_HEAD_MAX_BYTES));
    let many = format!("GET /v1/health HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    for (bytes, status) in [(long, "4"), (many, "431"), ("\0\x01\x02\r\n\r\n".into(), "400")] {
        let answer = raw(&agent, bytes.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    assert!(agent.client.health().is_ok());
}

#[test]
fn a_connection_can_be_used_again() {
    let agent = TestAgent::start();
    let twice = "GET /v1/health HTTP/1.1\r\n\r\n\
                 GET /v1/health HTTP/1.1\r\nconnection: close\r\n\r\n";
    let answer = raw(&agent, twice.as_bytes());
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
}

#[test]
fn connections_beyond_the_limit_are_told_so_and_later_ones_are_served() {
    let agent = TestAgent::start();
    let mut held: Vec<_> =
        (0..CONNECTIONS_MAX_COUNT).map(|_| UnixStream::connect(agent.socket()).unwrap()).collect();
    assert_eq!(refusal(agent.client.health()), (503, "too_many_connections".into()));
    // Its answer shows that the agent has let the first one go.
    let mut first = held.remove(0);
    first.write_all(b"GET /v1/health HTTP/1.1\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    first.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"));
    assert!(agent.client.health().is_ok());
}

#[test]
fn a_shutdown_is_answered_before_it_happens() {
    let agent = TestAgent::start();
    let wrong = agent.client.request("POST", "/v1/shutdown", &[], b"{\"mode\": \"explode\"}");
    assert_eq!(refusal(wrong), (400, "bad_request".into()));
    let body = br#"{"mode": "reboot", "grace_ms": 1500}"#;
    let answer = agent.client.request("POST", "/v1/shutdown", &[], body).unwrap();
    assert_eq!(answer.status, 202);
    let shutdown = agent.shutdown();
    assert_eq!(shutdown.mode, ShutdownMode::Reboot);
    assert_eq!(shutdown.grace, Duration::from_millis(1500));
}
