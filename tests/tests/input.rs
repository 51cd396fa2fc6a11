//! Wrong input is refused with a message that names the field or file and the reason, and with
//! the exit status for wrong configuration.
//!
//! hosts: gicv3
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rotifer_tests::{Artifacts, ExitCode, Vm, VmBuilder, empty_disk};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Starts a VMM whose configuration `change` has spoilt; what it says before it ends.
fn refusal(change: impl FnOnce(&mut Value, &Path)) -> String {
    let directory = TempDir::new().unwrap();
    let mut config = VmBuilder::new().config(directory.path());
    change(&mut config, directory.path());
    let mut vm = Vm::start(&Artifacts::find(), directory, &config, &[]);
    vm.wait_for_exit(ExitCode::Usage);
    let messages = vm.messages.all();
    assert!(!messages.contains("panicked"), "{messages}");
    messages
}

#[track_caller]
fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in the refusal:\n{message}");
    }
}

#[test]
fn an_unknown_key_is_named() {
    let message = refusal(|config, _| config["machine-config"]["vcpu_cuont"] = json!(2));
    assert_names(&message, &["vcpu_cuont", "vcpu_count"]);
}

#[test]
fn a_missing_kernel_is_named() {
    let message = refusal(|config, _| {
        config["boot-source"]["kernel_image_path"] = json!("/nowhere/Image");
    });
    assert_names(&message, &["kernel_image_path", "/nowhere/Image"]);
}

#[test]
fn a_truncated_kernel_is_named() {
    let message = refusal(|config, directory| {
        let mut kernel = fs::read(Artifacts::find().kernel).unwrap();
        kernel.truncate(1 << 20);
        let path = directory.join("cut");
        fs::write(&path, kernel).unwrap();
        config["boot-source"]["kernel_image_path"] = json!(path);
    });
    assert_names(&message, &["cut", "truncated"]);
}

#[test]
fn a_file_that_is_no_kernel_is_named() {
    let message = refusal(|config, directory| {
        let path = directory.join("novel");
        fs::write(&path, "Call me Ishmael. ".repeat(100)).unwrap();
        config["boot-source"]["kernel_image_path"] = json!(path);
    });
    assert_names(&message, &["novel", "Image"]);
}

#[test]
fn zero_vcpus_and_too_many_are_refused() {
    for count in [0, 17, 300] {
        let message = refusal(|config, _| config["machine-config"]["vcpu_count"] = json!(count));
        assert_names(&message, &["vcpu_count", &count.to_string()]);
    }
}

#[test]
fn a_read_only_file_opened_for_writing_is_refused() {
    let message = refusal(|config, directory| {
        let path = directory.join("fixed.img");
        empty_disk(&path, 1 << 20);
        fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        config["drives"] = json!([{
            "drive_id": "fixed", "path_on_host": path, "is_root_device": false,
            "is_read_only": false,
        }]);
    });
    assert_names(&message, &["fixed.img", "is_read_only"]);
}

#[test]
fn a_busy_socket_is_refused_and_left_alone() {
    let mut listener = None;
    let message = refusal(|config, directory| {
        let path = directory.join("busy.sock");
        listener = Some(UnixListener::bind(&path).unwrap());
        config["vsock"]["uds_path"] = json!(path);
    });
    assert_names(&message, &["busy.sock", "uds_path"]);
}

#[test]
fn what_is_not_supported_yet_is_refused_by_name() {
    let message = refusal(|config, _| {
        config["network-interfaces"] = json!([{ "iface_id": "eth0", "host_dev_name": "tap0" }]);
    });
    assert_names(&message, &["network-interfaces"]);
}

#[test]
fn broken_json_is_refused_by_line() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("broken.json");
    File::create(&file).unwrap().write_all(b"{\n  \"boot-source\": {,\n}").unwrap();
    let output = std::process::Command::new(Artifacts::find().vmm)
        .arg("--config-file")
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(ExitCode::Usage as i32));
    assert_names(&String::from_utf8_lossy(&output.stderr), &["broken.json", "line 2"]);
}
