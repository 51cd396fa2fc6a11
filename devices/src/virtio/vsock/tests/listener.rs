//! The socket at which the host listens: what it replaces, refuses and leaves behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use super::super::{Vsock, VsockError};

#[test]
fn only_the_owner_may_connect_and_nothing_is_left_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v.sock");
    let device = Vsock::new(3, &path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(device);
    assert!(!path.exists());
}

#[test]
fn a_socket_that_somebody_listens_on_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v.sock");
    let _other = UnixListener::bind(&path).unwrap();
    let error = Vsock::new(3, &path).err().unwrap();
    assert!(matches!(error, VsockError::InUse { .. }), "{error:?}");
    assert!(error.to_string().contains("v.sock"), "{error}");
    assert!(path.exists());
}

#[test]
fn a_socket_of_a_dead_process_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _device = Vsock::new(3, &path).unwrap();
    std::os::unix::net::UnixStream::connect(&path).unwrap();
}

#[test]
fn a_file_that_is_not_a_socket_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious");
    fs::write(&path, "data").unwrap();
    let error = Vsock::new(3, &path).err().unwrap();
    assert!(matches!(error, VsockError::NotASocket { .. }), "{error:?}");
    assert_eq!(fs::read(&path).unwrap(), b"data");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(Vsock::new(3, &link).err().unwrap(), VsockError::NotASocket { .. }));
}

#[test]
fn a_path_that_cannot_be_bound_is_named() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path().join("none/v.sock"), directory.path().join("x".repeat(200))] {
        let error = Vsock::new(3, &path).err().unwrap();
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[test]
fn a_reserved_identifier_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v.sock");
    for cid in [0, 2, u64::from(u32::MAX), u64::MAX] {
        let error = Vsock::new(cid, &path).err().unwrap();
        assert!(error.to_string().contains(&cid.to_string()), "{error}");
    }
    assert!(!path.exists());
}
