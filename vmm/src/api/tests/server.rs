use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::api::{Request, Response, Server};

/// Machines can be very slow; a test that passes never waits this long.
const DEADLINE: Duration = Duration::from_secs(60);
/// As in the server.
const CONNECTIONS_MAX: usize = 16;

const GET: &str = "GET / HTTP/1.1\r\n\r\n";
const ANSWER: &str = "HTTP/1.1 200 OK\r\nServer: rotifer-vmm\r\nConnection: keep-alive\r\n\
                      Content-Type: application/json\r\nContent-Length: 12\r\n\r\n{\"count\": 1}";

/// A server and the loop that a main thread would have.
struct Bench {
    server: Server,
    requests: Vec<Request>,
    /// What every request is answered with.
    response: Response,
    path: PathBuf,
    epoll: Epoll,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let server = Server::listen(&path).unwrap();
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, server.as_raw_fd(), event).unwrap();
        let response = Response::Json("{\"count\": 1}".into());
        Self { server, requests: Vec::new(), response, path, epoll, _dir: dir }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// Whether the server has something to do within `wait_ms`.
    fn ready(&self, wait_ms: i32) -> bool {
        self.epoll.wait(wait_ms, &mut [EpollEvent::default()]).unwrap() > 0
    }

    fn process(&mut self) {
        let Self { server, requests, response, .. } = self;
        server
            .process(&mut |request| {
                requests.push(request);
                response.clone()
            })
            .unwrap();
    }

    /// Serves until there is nothing left to do. More rounds than any exchange here needs mean
    /// that the server spins.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.ready(0) {
                return;
            }
            self.process();
        }
        panic!("the server spins");
    }

    /// Serves until `client` has received `bytes` bytes or the end, and returns them.
    fn receive(&mut self, client: &mut UnixStream, bytes: usize) -> String {
        let deadline = Instant::now() + DEADLINE;
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while text.len() < bytes {
            assert!(Instant::now() < deadline, "{:?}", String::from_utf8_lossy(&text));
            let want = buffer.len().min(bytes - text.len());
            match client.read(&mut buffer[..want]) {
                Ok(0) => break,
                Ok(count) => text.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.process(),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("{error}"),
            }
        }
        String::from_utf8(text).unwrap()
    }

    fn is_closed(&mut self, client: &mut UnixStream) -> bool {
        self.settle();
        match client.read(&mut [0]) {
            Ok(0) => true,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
            Ok(_) => false,
        }
    }

    fn is_served(&mut self, client: &mut UnixStream) -> bool {
        client.write_all(GET.as_bytes()).is_ok() && self.receive(client, ANSWER.len()) == ANSWER
    }
}

#[test]
fn requests_are_answered_one_after_the_other_on_one_connection() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    for _ in 0..3 {
        assert!(bench.is_served(&mut client));
    }
    assert_eq!(bench.requests, vec![Request::InstanceInfo; 3]);
}

#[test]
fn answers_have_firecrackers_shapes() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    bench.response = Response::Done;
    client.write_all(b"PUT /entropy HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}").unwrap();
    let done = "HTTP/1.1 204 No Content\r\nServer: rotifer-vmm\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(bench.receive(&mut client, done.len()), done);
    bench.response = Response::Refused("no \"way\"\n".into());
    client.write_all(GET.as_bytes()).unwrap();
    let head = "HTTP/1.1 400 Bad Request\r\nServer: rotifer-vmm\r\nConnection: keep-alive\r\n\
                Content-Type: application/json\r\nContent-Length: 34\r\n\r\n";
    let body = r#"{"fault_message":"no \"way\"\n"}"#;
    let head = head.replace("34", &body.len().to_string());
    let answer = format!("{head}{body}");
    assert_eq!(bench.receive(&mut client, answer.len()), answer);
}

#[test]
fn what_is_no_request_is_answered_without_the_machine() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    client.write_all(b"GET /zebra HTTP/1.1\r\n\r\n").unwrap();
    let text = bench.receive(&mut client, 100);
    assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
    assert_eq!(bench.requests, []);
    bench.receive(&mut client, 61);
    client.shutdown(Shutdown::Write).unwrap();
    bench.settle();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    client.write_all(GET.repeat(50).as_bytes()).unwrap();
    assert_eq!(bench.receive(&mut client, ANSWER.len() * 50), ANSWER.repeat(50));
}

#[test]
fn a_message_may_come_byte_by_byte() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    for byte in b"PUT /entropy HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}" {
        client.write_all(&[*byte]).unwrap();
        bench.settle();
    }
    assert_eq!(bench.requests.len(), 1);
}

#[test]
fn a_client_is_told_to_continue_once() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    let head = b"PUT /entropy HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    client.write_all(head).unwrap();
    let word = "HTTP/1.1 100 Continue\r\n\r\n";
    assert_eq!(bench.receive(&mut client, word.len()), word);
    client.write_all(b"{").unwrap();
    bench.settle();
    client.write_all(b"}").unwrap();
    assert_eq!(bench.receive(&mut client, ANSWER.len()), ANSWER);
}

#[test]
fn a_half_closed_client_still_gets_its_answers() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    client.write_all(GET.repeat(2).as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(bench.receive(&mut client, usize::MAX), ANSWER.repeat(2));
}

#[test]
fn a_client_that_leaves_in_the_middle_is_forgotten() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    client.write_all(b"PUT /vsock HTTP/1.1\r\nContent-Length: 9\r\n\r\n{").unwrap();
    bench.settle();
    drop(client);
    bench.settle();
    assert_eq!(bench.requests, []);
    let mut client = bench.connect();
    client.write_all(GET.as_bytes()).unwrap();
    drop(client);
    bench.settle();
}

#[test]
fn connection_close_is_honoured() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    client
        .write_all(format!("GET / HTTP/1.1\r\nConnection: close\r\n\r\n{GET}").as_bytes())
        .unwrap();
    let text = bench.receive(&mut client, usize::MAX);
    assert!(text.contains("Connection: close\r\n") && text.ends_with("{\"count\": 1}"), "{text}");
    assert_eq!(bench.requests.len(), 1);
}

#[test]
fn an_oversized_or_malformed_message_ends_the_connection_with_a_reason() {
    let endless = format!("GET /{}", "x".repeat(10_000));
    for (bytes, reason) in [
        ("PUT /vsock HTTP/1.1\r\nContent-Length: 51201\r\n\r\n", "51201 bytes"),
        ("PUT /vsock HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "Content-Length"),
        ("\x16\x03\x01 is this TLS?\r\n\r\n", "not HTTP/1.1"),
        (&endless, "head is larger"),
    ] {
        let mut bench = Bench::new();
        let mut client = bench.connect();
        client.write_all(bytes.as_bytes()).unwrap();
        let text = bench.receive(&mut client, usize::MAX);
        assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("fault_message"), "{text}");
        assert!(text.contains(reason) && text.contains("Connection: close"), "{reason}: {text}");
    }
}

#[test]
fn slow_clients_do_not_hold_others_up() {
    let mut bench = Bench::new();
    let mut slow: Vec<_> = (0..CONNECTIONS_MAX - 1).map(|_| bench.connect()).collect();
    for client in &mut slow {
        client.write_all(b"PUT /vsock HTTP/1.1\r\nContent-Length: 9\r\n\r\n{").unwrap();
    }
    bench.settle();
    let mut quick = bench.connect();
    assert!(bench.is_served(&mut quick));
}

#[test]
fn one_client_too_many_makes_the_longest_silent_one_go() {
    let mut bench = Bench::new();
    let mut clients: Vec<_> = (0..CONNECTIONS_MAX).map(|_| bench.connect()).collect();
    bench.settle();
    assert!(bench.is_served(&mut clients[0]));
    let mut one_more = bench.connect();
    assert!(bench.is_served(&mut one_more));
    assert!(bench.is_closed(&mut clients[1]));
    assert!(bench.is_served(&mut clients[0]));
    // More than there is room for at once, too.
    let mut many: Vec<_> = (0..3 * CONNECTIONS_MAX).map(|_| bench.connect()).collect();
    bench.settle();
    assert!(bench.is_served(many.last_mut().unwrap()));
}

#[test]
fn a_client_that_does_not_take_its_answers_is_not_read_and_others_are_served() {
    let mut bench = Bench::new();
    bench.response = Response::Json("x".repeat(8 << 10));
    let mut greedy = bench.connect();
    let mut sent = 0;
    for _ in 0..1000 {
        match greedy.write(GET.repeat(100).as_bytes()) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock && !bench.ready(0) => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => bench.settle(),
            Err(error) => panic!("{error}"),
        }
    }
    bench.settle();
    let answered = bench.requests.len();
    assert!(answered < sent / GET.len(), "all {answered} were answered into nowhere");
    bench.response = Response::Json("{\"count\": 1}".into());
    let mut other = bench.connect();
    assert!(bench.is_served(&mut other));
    // As soon as it takes them, it goes on.
    bench.response = Response::Json("x".repeat(8 << 10));
    bench.receive(&mut greedy, 1 << 20);
    assert!(bench.requests.len() > answered + 1);
}

#[test]
fn an_idle_server_has_nothing_to_do() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    assert!(bench.is_served(&mut client));
    bench.settle();
    assert!(!bench.ready(0));
    client.shutdown(Shutdown::Both).unwrap();
    bench.settle();
    assert!(!bench.ready(0));
}
