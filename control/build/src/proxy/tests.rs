use super::*;
use std::net::TcpListener;
use tempfile::tempdir;

fn network(allow: &str) -> Network {
    Network { allow: [allow.to_owned()].into(), ..Network::default() }
}

fn understood(head: &str) -> Result<Wish, Refusal> {
    understand(head.as_bytes(), &network("example.org"))
}

#[test]
fn a_plain_request_becomes_one_for_its_server() {
    let wish = understood(
        "GET http://example.org/a?b HTTP/1.1\r\nHost: other\r\nProxy-Connection: x\r\nRange: r\r\n\r\n",
    )
    .unwrap();
    let head = String::from_utf8(wish.head.unwrap()).unwrap();
    assert_eq!(
        head,
        "GET /a?b HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\nRange: r\r\n\r\n"
    );
    assert_eq!((wish.host.as_str(), wish.port), ("example.org", 80));
}

#[test]
fn other_names_and_ports_and_forms_are_refused() {
    for (head, status) in [
        ("CONNECT evil.org:443 HTTP/1.1\r\n\r\n", 403),
        ("CONNECT example.org:22 HTTP/1.1\r\n\r\n", 403),
        ("CONNECT example.org HTTP/1.1\r\n\r\n", 400),
        ("GET http://example.org@evil.org/ HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", 400),
        ("GET https://example.org/ HTTP/1.1\r\n\r\n", 400),
        ("CONNECT 127.0.0.1:443 HTTP/1.1\r\n\r\n", 403),
        ("\0\0\r\n\r\n", 400),
    ] {
        assert_eq!(understood(head).unwrap_err().0, status, "{head:?}");
    }
}

#[test]
fn a_tunnel_carries_bytes_both_ways_to_a_listed_server() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let directory = tempdir().unwrap();
    let socket = directory.path().join("proxy");
    serve(&socket, Arc::new(network(&format!("localhost:{port}")))).unwrap();
    let echo = thread::spawn(move || {
        // The name may have two addresses, and the listener is on one of them.
        let (mut stream, _) = server.accept().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        stream.write_all(text.to_uppercase().as_bytes()).unwrap();
    });
    let mut client = UnixStream::connect(&socket).unwrap();
    write!(client, "CONNECT localhost:{port} HTTP/1.1\r\n\r\nhello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    echo.join().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nHELLO"), "{answer}");
}

#[test]
fn a_head_without_end_is_refused() {
    let directory = tempdir().unwrap();
    let socket = directory.path().join("proxy");
    serve(&socket, Arc::new(Network::default())).unwrap();
    let mut client = UnixStream::connect(&socket).unwrap();
    let sender = client.try_clone().unwrap();
    let sending = thread::spawn(move || {
        // The proxy hangs up in the middle.
        let _ = io::copy(&mut io::repeat(b'a').take(1 << 20), &mut &sender);
    });
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    sending.join().unwrap();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "));
}
