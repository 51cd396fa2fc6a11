//! The socket API drives a machine as Firecracker's clients do.
//!
//! hosts: gicv3
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rotifer_agent::client::AgentClient;
use rotifer_tests::{Artifacts, Console, DEADLINE, VmBuilder, api_request};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A VMM that was told nothing yet.
struct Idle {
    child: Child,
    directory: TempDir,
}

impl Idle {
    fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("api.sock");
        let mut child = Command::new(Artifacts::find().vmm)
            .args(["--level", "Info", "--api-sock"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let messages = Console::collect(child.stderr.take().unwrap());
        messages.wait_for("the API listens");
        Self { child, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn call(&self, method: &str, path: &str, body: Value) -> (u16, String) {
        let body = (!body.is_null()).then_some(body);
        api_request(&self.path("api.sock"), method, path, body.as_ref())
    }

    #[track_caller]
    fn accepted(&self, method: &str, path: &str, body: Value) {
        assert_eq!(self.call(method, path, body), (204, String::new()), "{method} {path}");
    }

    #[track_caller]
    fn state(&self) -> String {
        let (status, body) = self.call("GET", "/", Value::Null);
        assert_eq!(status, 200);
        serde_json::from_str::<Value>(&body).unwrap()["state"].as_str().unwrap().to_owned()
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configure(vmm: &Idle) {
    let config = VmBuilder::new().config(vmm.directory.path());
    vmm.accepted("PUT", "/machine-config", config["machine-config"].clone());
    vmm.accepted("PUT", "/boot-source", config["boot-source"].clone());
    vmm.accepted("PUT", "/vsock", config["vsock"].clone());
    vmm.accepted("PUT", "/entropy", json!({}));
}

/// Whether the agent answers; it can only while the vCPUs run.
fn answers(socket: &Path) -> bool {
    AgentClient::over_vsock(socket, 1024).with_timeout(DEADLINE).health().is_ok()
}

#[test]
fn a_machine_is_configured_started_paused_and_resumed() {
    let vmm = Idle::start();
    assert_eq!(vmm.state(), "Not started");
    configure(&vmm);
    let ready = std::os::unix::net::UnixListener::bind(vmm.path("v.sock_1024")).unwrap();
    vmm.accepted("PUT", "/actions", json!({ "action_type": "InstanceStart" }));
    assert_eq!(vmm.state(), "Running");
    ready.accept().unwrap();
    assert!(answers(&vmm.path("v.sock")));

    vmm.accepted("PATCH", "/vm", json!({ "state": "Paused" }));
    assert_eq!(vmm.state(), "Paused");
    // Asked while it is paused, answered when it goes on.
    let asked = std::thread::spawn({
        let socket = vmm.path("v.sock");
        move || answers(&socket)
    });
    vmm.accepted("PATCH", "/vm", json!({ "state": "Paused" }));
    vmm.accepted("PATCH", "/vm", json!({ "state": "Resumed" }));
    assert_eq!(vmm.state(), "Running");
    assert!(asked.join().unwrap(), "the agent answers after the pause");
}

#[test]
fn what_comes_at_the_wrong_time_is_refused_with_a_reason() {
    let vmm = Idle::start();
    let refused = |method: &str, path: &str, body: Value| {
        let (status, body) = vmm.call(method, path, body);
        assert_eq!(status, 400, "{method} {path}: {body}");
        serde_json::from_str::<Value>(&body).unwrap()["fault_message"].as_str().unwrap().to_owned()
    };
    let message = refused("PUT", "/actions", json!({ "action_type": "InstanceStart" }));
    assert!(message.contains("boot-source"), "{message}");
    refused("PATCH", "/vm", json!({ "state": "Paused" }));
    let message = refused("PUT", "/machine-config", json!({ "vcpu_count": 0, "mem_size_mib": 1 }));
    assert!(message.contains("vcpu_count"), "{message}");
    let message = refused("PUT", "/machine-config", json!({ "vcpu_cuont": 1 }));
    assert!(message.contains("vcpu_cuont"), "{message}");
    configure(&vmm);
    vmm.accepted("PUT", "/actions", json!({ "action_type": "InstanceStart" }));
    refused("PUT", "/machine-config", json!({ "vcpu_count": 2, "mem_size_mib": 128 }));
    refused("PUT", "/actions", json!({ "action_type": "InstanceStart" }));
    assert_eq!(vmm.state(), "Running", "refusals change nothing");
}

#[test]
fn a_client_that_says_half_a_request_keeps_nobody_waiting() {
    let vmm = Idle::start();
    let mut half = UnixStream::connect(vmm.path("api.sock")).unwrap();
    std::io::Write::write_all(&mut half, b"PUT /machine-config HTTP/1.1\r\nContent-Le").unwrap();
    assert_eq!(vmm.state(), "Not started");
}
