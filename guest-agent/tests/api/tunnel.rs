//! `CONNECT` to TCP ports of the guest.

use crate::support::{DEADLINE, TestAgent, refusal};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};

#[test]
fn bytes_pass_both_ways_and_each_side_ends_by_itself() {
    let agent = TestAgent::start();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"welcome").unwrap();
        let mut request = Vec::new();
        stream.read_to_end(&mut request).unwrap(); // the client's half-close arrives
        stream.write_all(&request).unwrap(); // and this direction still works
        stream.shutdown(Shutdown::Write).unwrap();
        request.len()
    });
    let mut tunnel = agent.client.tunnel(&format!("localhost:{port}")).unwrap();
    let mut welcome = [0; 7];
    tunnel.read_exact(&mut welcome).unwrap();
    assert_eq!(&welcome, b"welcome");
    let sent = vec![42; 1_000_000];
    tunnel.write_all(&sent).unwrap();
    tunnel.finish_writing().unwrap();
    let mut answer = Vec::new();
    tunnel.read_to_end(&mut answer).unwrap();
    assert!(answer == sent);
    assert_eq!(thread.join().unwrap(), sent.len());
}

#[test]
fn a_server_that_ends_first_still_hears_the_client() {
    let agent = TestAgent::start();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        rest
    });
    let mut tunnel = agent.client.tunnel(&format!("127.0.0.1:{port}")).unwrap();
    let mut nothing = Vec::new();
    tunnel.read_to_end(&mut nothing).unwrap();
    assert!(nothing.is_empty());
    tunnel.write_all(b"still here").unwrap();
    tunnel.finish_writing().unwrap();
    assert_eq!(thread.join().unwrap(), "still here");
}

#[test]
fn what_cannot_be_reached_is_refused_with_its_reason() {
    let agent = TestAgent::start();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let connect = |target: &str| refusal(agent.client.tunnel(target));
    assert_eq!(connect(&format!("127.0.0.1:{free}")), (502, "cannot_connect".into()));
    assert_eq!(connect("192.0.2.1:80"), (403, "not_loopback".into()));
    assert_eq!(connect("example.org:80"), (400, "bad_target".into()));
}
