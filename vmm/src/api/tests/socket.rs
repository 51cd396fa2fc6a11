use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use crate::api::{Server, ServerError, SocketError};
use crate::config::report;

fn refusal(path: &std::path::Path) -> SocketError {
    match Server::listen(path) {
        Err(ServerError::Socket(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_socket_is_for_its_owner_and_goes_with_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let server = Server::listen(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(server);
    assert!(!path.exists());
}

#[test]
fn a_socket_somebody_listens_on_is_busy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let server = Server::listen(&path).unwrap();
    let text = report(&refusal(&path));
    assert!(text.contains("in use by another live process") && text.contains("api.sock"), "{text}");
    assert!(UnixStream::connect(&path).is_ok());
    drop(server);
    assert!(Server::listen(&path).is_ok());
}

#[test]
fn a_socket_whose_queue_is_full_is_busy_and_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let _waiting: Vec<_> = (0..64).map(|_| UnixStream::connect(&path).unwrap()).collect();
    assert!(matches!(refusal(&path), SocketError::Busy { .. }));
    let path = dir.path().join("datagram.sock");
    let _other_kind = UnixDatagram::bind(&path).unwrap();
    assert!(matches!(refusal(&path), SocketError::Busy { .. }));
}

#[test]
fn a_dead_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    let _server = Server::listen(&path).unwrap();
    assert!(UnixStream::connect(&path).is_ok());
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("precious");
    fs::write(&path, "data").unwrap();
    let text = report(&refusal(&path));
    assert!(text.contains("precious") && text.contains("not a socket"), "{text}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(refusal(&link), SocketError::NotASocket { .. }));
    let text = report(&refusal(&dir.path().join("absent/api.sock")));
    assert!(text.contains("absent/api.sock") && text.contains("No such file"), "{text}");
    let long = dir.path().join("x".repeat(120));
    assert!(matches!(refusal(&long), SocketError::Listen { .. }));
}

#[test]
fn another_socket_that_took_the_place_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let server = Server::listen(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
}
