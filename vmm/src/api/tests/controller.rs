use std::fs;
use std::path::Path;
use std::path::PathBuf;

use rotifer_devices::virtio::net::Limits;
use serde_json::{Value, json};

use crate::api::http::Method::{self, Delete, Get, Patch, Put};
use crate::api::{Controller, Load, MachineControl, Response, SnapshotCreate, State, route};
use crate::config::{self, Config, Plan};
use crate::machine_state::{Hardware, Then};
use crate::snapshots::ForkDescription;

/// A machine that remembers what it was asked for.
#[derive(Debug, Default)]
struct Recorder {
    calls: Vec<String>,
    broken: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("the recorder is broken")]
struct Broken;

impl Recorder {
    fn call(&mut self, text: String) -> Result<(), Broken> {
        self.calls.push(text);
        if self.broken { Err(Broken) } else { Ok(()) }
    }
}

impl MachineControl for Recorder {
    type Error = Broken;

    fn boot(&mut self, plan: Plan) -> Result<(), Broken> {
        let disks: Vec<_> = plan.disks.iter().map(|disk| disk.id.as_str()).collect();
        let (vcpus, mib) = (plan.vcpu_count, plan.ram_bytes >> 20);
        self.call(format!("boot {vcpus} {mib} {} {disks:?}", plan.boot.command_line))
    }

    fn pause(&mut self) -> Result<(), Broken> {
        self.call("pause".into())
    }

    fn resume(&mut self) -> Result<(), Broken> {
        self.call("resume".into())
    }

    fn snapshot(&mut self, request: &SnapshotCreate, _config: &Config) -> Result<(), Broken> {
        let (manifest, memory) = (&request.snapshot_path, &request.mem_file_path);
        let live = if request.live { "live " } else { "" };
        self.call(format!(
            "{live}{:?} {} {}",
            request.snapshot_type,
            manifest.display(),
            memory.display()
        ))
    }

    fn fork(&mut self, config: &Config) -> Result<ForkDescription, Broken> {
        self.call(format!("fork of {} vCPUs", config.machine_config.vcpu_count))?;
        Ok(fork())
    }

    fn forks(&self) -> Vec<ForkDescription> {
        vec![fork(), fork()]
    }

    fn end_fork(&mut self, id: &str) -> Result<(), Broken> {
        self.call(format!("end fork {id}"))
    }

    fn record_working_set(&mut self, path: &Path, _config: &Config) -> Result<(), Broken> {
        self.call(format!("record {}", path.display()))
    }

    fn limit_network(&mut self, iface_id: &str, limits: Limits) {
        self.calls.push(format!("limit {iface_id} {:?}", limits.transmit.ops));
    }

    fn restore(&mut self, hardware: Hardware, load: &Load, then: Then) -> Result<(), Broken> {
        let vsock = hardware.devices.vsock.map(|vsock| vsock.uds_path.display().to_string());
        self.call(format!("restore {} {vsock:?} {then:?}", load.snapshot_path.display()))
    }
}

fn fork() -> ForkDescription {
    ForkDescription {
        fork_id: "1".into(),
        snapshot_path: "/proc/9/fd/7".into(),
        host_file_path: "/proc/9/fd/8".into(),
        held_bytes: 4096,
        pause_us: 5,
    }
}

struct Bench {
    controller: Controller<Recorder>,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("Image"), [1; 64]).unwrap();
        fs::write(dir.path().join("disk"), [1; 512]).unwrap();
        Self { controller: Controller::new(Recorder::default(), "vm-1".into()), dir }
    }

    /// One that runs.
    fn started() -> Self {
        let mut bench = Self::new();
        let kernel = bench.path("Image");
        bench.done(Put, "/boot-source", json!({"kernel_image_path": kernel, "boot_args": "q"}));
        bench.done(Put, "/actions", json!({"action_type": "InstanceStart"}));
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ask(&mut self, method: Method, path: &str, body: Value) -> Response {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.controller.handle(route(method, path, body.as_bytes()).unwrap())
    }

    #[track_caller]
    fn done(&mut self, method: Method, path: &str, body: Value) {
        assert_eq!(self.ask(method, path, body), Response::Done);
    }

    #[track_caller]
    fn refused(&mut self, method: Method, path: &str, body: Value, texts: &[&str]) {
        match self.ask(method, path, body) {
            Response::Refused(reason) => {
                for text in texts {
                    assert!(reason.contains(text), "{text:?} is not in {reason:?}");
                }
            }
            response => panic!("{response:?}"),
        }
    }

    #[track_caller]
    fn json(&mut self, path: &str) -> Value {
        match self.ask(Get, path, Value::Null) {
            Response::Json(text) => serde_json::from_str(&text).unwrap(),
            response => panic!("{response:?}"),
        }
    }
}

#[test]
fn a_machine_is_configured_started_paused_and_resumed() {
    let mut bench = Bench::new();
    assert_eq!(bench.json("/")["state"], "Not started");
    let (kernel, disk) = (bench.path("Image"), bench.path("disk"));
    bench.done(Put, "/machine-config", json!({"vcpu_count": 2, "mem_size_mib": 256}));
    bench.done(Patch, "/machine-config", json!({"mem_size_mib": 512}));
    bench.done(Put, "/boot-source", json!({"kernel_image_path": kernel, "boot_args": "quiet"}));
    for (id, root) in [("data", false), ("rootfs", true)] {
        let drive = json!({"drive_id": id, "path_on_host": disk, "is_root_device": root});
        bench.done(Put, &format!("/drives/{id}"), drive);
    }
    bench.done(Put, "/vsock", json!({"guest_cid": 3, "uds_path": "v.sock"}));
    bench.done(Put, "/entropy", json!({}));
    bench.done(Put, "/actions", json!({"action_type": "InstanceStart"}));
    assert_eq!(bench.json("/")["state"], "Running");
    bench.done(Patch, "/vm", json!({"state": "Paused"}));
    bench.done(Patch, "/vm", json!({"state": "Paused"}));
    assert_eq!(bench.json("/")["state"], "Paused");
    bench.done(Patch, "/vm", json!({"state": "Resumed"}));
    bench.done(Patch, "/vm", json!({"state": "Resumed"}));
    let calls = &bench.controller.machine().calls;
    let boot = r#"boot 2 512 quiet root=/dev/vda rw ["rootfs", "data"]"#;
    assert_eq!(calls, &[boot, "pause", "resume"]);
}

#[test]
fn what_was_configured_can_be_read_back_and_written_as_a_file() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.json("/machine-config"),
        json!({"vcpu_count": 1, "mem_size_mib": 128, "smt": false,
               "track_dirty_pages": false, "huge_pages": "None"})
    );
    let disk = bench.path("disk");
    let drive = json!({"drive_id": "a", "path_on_host": disk, "is_root_device": true});
    bench.done(Put, "/drives/a", drive);
    let full = bench.json("/vm/config");
    assert_eq!(full["drives"][0]["drive_id"], "a");
    assert_eq!(full["drives"][0]["cache_type"], "Unsafe");
    assert_eq!((&full["balloon"], &full["network-interfaces"]), (&Value::Null, &json!([])));
    let config = config::parse(full.to_string().as_bytes()).unwrap();
    assert_eq!(config.drives[0].drive_id, "a");
}

#[test]
fn the_instance_and_the_version_describe_themselves() {
    let mut bench = Bench::new();
    let info = bench.json("/");
    assert_eq!((&info["id"], &info["app_name"]), (&json!("vm-1"), &json!("Rotifer")));
    assert_eq!(info["vmm_version"], env!("CARGO_PKG_VERSION"));
    assert!(bench.json("/version")["firecracker_version"].is_string());
}

#[test]
fn a_refused_section_leaves_the_old_one() {
    let mut bench = Bench::new();
    bench.done(Put, "/machine-config", json!({"vcpu_count": 4, "mem_size_mib": 64}));
    let texts = ["machine-config.vcpu_count", "17"];
    bench.refused(Patch, "/machine-config", json!({"vcpu_count": 17}), &texts);
    bench.refused(
        Put,
        "/machine-config",
        json!({"vcpu_count": 0, "mem_size_mib": 64}),
        &["machine-config.vcpu_count", "1 to 16"],
    );
    assert_eq!(bench.json("/machine-config")["vcpu_count"], 4);
    let disk = bench.path("disk");
    let drive = |id: &str, path: &PathBuf| json!({"drive_id": id, "path_on_host": path, "is_root_device": true});
    bench.done(Put, "/drives/a", drive("a", &disk));
    let absent = bench.path("absent");
    bench.refused(Put, "/drives/a", drive("a", &absent), &["drives[0].path_on_host", "absent"]);
    bench.refused(Put, "/drives/b", drive("b", &disk), &["drives[1].is_root_device"]);
    assert_eq!(bench.json("/vm/config")["drives"][0]["path_on_host"], json!(disk));
    assert_eq!(bench.json("/vm/config")["drives"].as_array().unwrap().len(), 1);
    let kernel = json!({"kernel_image_path": absent});
    bench.refused(Put, "/boot-source", kernel, &["boot-source.kernel_image_path", "absent"]);
    bench.refused(Put, "/vsock", json!({"guest_cid": 2, "uds_path": "v"}), &["vsock.guest_cid"]);
    bench.refused(Put, "/serial", json!({"serial_out_path": ""}), &["serial.serial_out_path"]);
}

#[test]
fn a_drive_can_be_described_anew() {
    let mut bench = Bench::new();
    let disk = bench.path("disk");
    for read_only in [false, true] {
        let drive = json!({"drive_id": "a", "path_on_host": disk, "is_root_device": true,
                           "is_read_only": read_only});
        bench.done(Put, "/drives/a", drive);
    }
    let full = bench.json("/vm/config");
    assert_eq!(full["drives"].as_array().unwrap().len(), 1);
    assert_eq!(full["drives"][0]["is_read_only"], true);
}

#[test]
fn a_machine_that_runs_cannot_be_configured() {
    let mut bench = Bench::started();
    let kernel = bench.path("Image");
    for (method, path, body) in [
        (Put, "/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 64})),
        (Patch, "/machine-config", json!({"vcpu_count": 1})),
        (Put, "/boot-source", json!({"kernel_image_path": kernel})),
        (Put, "/drives/a", json!({"drive_id": "a", "is_root_device": false})),
        (Put, "/vsock", json!({"guest_cid": 3, "uds_path": "v"})),
        (Put, "/entropy", json!({})),
        (Put, "/serial", json!({})),
        (Put, "/logger", json!({})),
        (Put, "/actions", json!({"action_type": "InstanceStart"})),
    ] {
        bench.refused(method, path, body, &["is not possible while the machine runs"]);
    }
}

#[test]
fn a_machine_that_is_not_started_cannot_be_paused() {
    let mut bench = Bench::new();
    for state in ["Paused", "Resumed"] {
        let texts = ["PATCH /vm", "before the machine is started"];
        bench.refused(Patch, "/vm", json!({"state": state}), &texts);
    }
}

#[test]
fn what_is_not_there_yet_is_refused_by_name_in_every_state() {
    for mut bench in [Bench::new(), Bench::started()] {
        bench.refused(Put, "/metrics", json!({}), &["metrics", "not collected yet"]);
        let action = |name| json!({ "action_type": name });
        bench.refused(Put, "/actions", action("FlushMetrics"), &["FlushMetrics"]);
        bench.refused(Put, "/actions", action("SendCtrlAltDel"), &["SendCtrlAltDel", "ARM64"]);
        bench.refused(Patch, "/drives/a", json!({"drive_id": "a"}), &["PATCH /drives"]);
    }
}

#[test]
fn the_limits_of_an_interface_change_while_the_machine_lives() {
    let lift = json!({"iface_id": "e", "tx_rate_limiter": {"ops": {"size": 0, "refill_time": 0}}});
    let path = "/network-interfaces/e";
    let texts = ["PATCH /network-interfaces", "before the machine is started"];
    Bench::new().refused(Patch, path, lift.clone(), &texts);
    let mut bench = Bench::started();
    bench.refused(Patch, path, lift.clone(), &["there is no network interface \"e\""]);
    let interface = json!({"iface_id": "e", "host_dev_name": "t",
                           "tx_rate_limiter": {"ops": {"size": 5, "refill_time": 10}}});
    let texts = ["PUT /network-interfaces", "while the machine runs"];
    bench.refused(Put, path, interface.clone(), &texts);
    bench.controller.config.network_interfaces = vec![serde_json::from_value(interface).unwrap()];
    bench.done(Patch, path, lift);
    assert_eq!(bench.controller.machine().calls.last().unwrap(), "limit e Lift");
    let config = bench.json("/vm/config");
    assert_eq!(config["network-interfaces"][0]["tx_rate_limiter"], Value::Null);
}

#[test]
fn a_snapshot_is_of_a_paused_machine_and_leaves_it_paused() {
    let mut bench = Bench::started();
    let create = json!({"mem_file_path": "m", "snapshot_path": "s", "snapshot_type": "Diff"});
    let texts = ["/snapshot/create without \"live\"", "while the machine runs"];
    bench.refused(Put, "/snapshot/create", create.clone(), &texts);
    bench.done(Patch, "/vm", json!({"state": "Paused"}));
    bench.done(Put, "/snapshot/create", create);
    assert_eq!(bench.controller.state(), State::Paused);
    assert_eq!(bench.controller.machine().calls[2..], ["Diff s m"]);
    let load = json!({"snapshot_path": "s"});
    bench.refused(Put, "/snapshot/load", load, &["/snapshot/load", "while the machine is paused"]);
}

#[test]
fn a_live_snapshot_is_of_a_machine_that_runs_and_goes_on() {
    let mut bench = Bench::started();
    let create = json!({"mem_file_path": "m", "snapshot_path": "s", "live": true});
    bench.done(Put, "/snapshot/create", create.clone());
    assert_eq!(bench.controller.state(), State::Running);
    assert_eq!(bench.controller.machine().calls[1..], ["live Full s m"]);
    bench.done(Patch, "/vm", json!({"state": "Paused"}));
    let texts = ["/snapshot/create with \"live\"", "while the machine is paused"];
    bench.refused(Put, "/snapshot/create", create.clone(), &texts);
    Bench::new().refused(Put, "/snapshot/create", create, &["before the machine is started"]);
}

#[test]
fn forks_are_made_of_a_machine_whether_it_runs_or_not_told_and_ended() {
    let mut bench = Bench::new();
    for (method, path) in [(Put, "/fork"), (Get, "/forks"), (Delete, "/fork/1")] {
        bench.refused(method, path, Value::Null, &[path.trim_end_matches("/1"), "before"]);
    }
    let mut bench = Bench::started();
    for state in ["Resumed", "Paused"] {
        bench.done(Patch, "/vm", json!({"state": state}));
        let Response::Json(made) = bench.ask(Put, "/fork", Value::Null) else { panic!("no fork") };
        let made: Value = serde_json::from_str(&made).unwrap();
        assert_eq!(
            made,
            json!({"fork_id": "1", "snapshot_path": "/proc/9/fd/7", "pause_us": 5,
                   "host_file_path": "/proc/9/fd/8", "held_bytes": 4096})
        );
        assert_eq!(bench.json("/forks"), json!([made, made]));
    }
    assert_eq!(bench.controller.state(), State::Paused);
    bench.done(Delete, "/fork/1", Value::Null);
    let calls = &bench.controller.machine().calls;
    assert_eq!(calls[1..], ["fork of 1 vCPUs", "pause", "fork of 1 vCPUs", "end fork 1"]);
    bench.controller.machine().broken = true;
    bench.refused(Put, "/fork", Value::Null, &["PUT /fork failed: the recorder is broken"]);
}

#[test]
fn a_machine_is_loaded_into_what_the_host_provided_or_what_was_configured() {
    let (mut bench, mut other) = (Bench::new(), Bench::new());
    let vsock = |path: &str| json!({"guest_cid": 3, "uds_path": path});
    let snapshot = bench.path("vm.snap");
    let load = json!({"snapshot_path": snapshot});
    bench.refused(Put, "/snapshot/load", load.clone(), &["no host file beside", "vm.snap"]);
    let config = json!({"vsock": vsock("/run/v.sock")});
    let host = json!({"config": config, "packs": {}});
    fs::write(bench.path("vm.snap.host.json"), host.to_string()).unwrap();
    bench.done(Put, "/snapshot/load", load);
    assert_eq!(bench.controller.state(), State::Paused);
    assert_eq!(bench.json("/vm/config")["vsock"]["uds_path"], "/run/v.sock");
    let [call] = &bench.controller.machine().calls[..] else { panic!("one call") };
    assert!(call.ends_with("vm.snap Some(\"/run/v.sock\") StayPaused"), "{call}");

    // A fork's host file is not beside it.
    let mut child = Bench::new();
    let host = bench.path("vm.snap.host.json");
    let fork = json!({"snapshot_path": "/proc/1/fd/9", "host_file_path": host});
    child.done(Put, "/snapshot/load", fork);
    assert_eq!(child.json("/vm/config")["vsock"]["uds_path"], "/run/v.sock");
    let absent = json!({"snapshot_path": "s", "host_file_path": bench.path("absent")});
    Bench::new().refused(Put, "/snapshot/load", absent, &["read the host file", "absent"]);

    other.done(Put, "/vsock", vsock("/run/other"));
    let load = json!({"snapshot_path": snapshot, "resume_vm": true});
    other.done(Put, "/snapshot/load", load);
    assert_eq!(other.controller.state(), State::Running);
    let [call] = &other.controller.machine().calls[..] else { panic!("one call") };
    assert!(call.ends_with("Some(\"/run/other\") Run"), "{call}");
}

#[test]
fn a_working_set_is_taken_of_a_machine_that_stands_still() {
    let mut bench = Bench::new();
    bench.done(Put, "/entropy", json!({}));
    let body = json!({"snapshot_path": "w"});
    let texts = ["PUT /snapshot/working-set is not possible before the machine is started"];
    bench.refused(Put, "/snapshot/working-set", body.clone(), &texts);
    let load = json!({"snapshot_path": "s", "record_working_set": true});
    bench.done(Put, "/snapshot/load", load);
    bench.done(Put, "/snapshot/working-set", body);
    assert_eq!(bench.controller.machine().calls.last().unwrap(), "record w");
}

#[test]
fn a_load_that_is_not_possible_is_refused_with_the_reason() {
    let mut bench = Bench::new();
    bench.done(Put, "/entropy", json!({}));
    let mut refused = |extra: Value, text: &str| {
        let mut load = json!({"snapshot_path": "s"});
        load.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        bench.refused(Put, "/snapshot/load", load, &[text]);
    };
    let backend = |name: &str| json!({"backend_type": name, "backend_path": "m"});
    refused(json!({"mem_backend": backend("Tape")}), "\"Tape\"");
    let both = json!({"mem_file_path": "m", "mem_backend": backend("File")});
    refused(both, "contradict");
    let recording = json!({"record_working_set": true, "mem_backend": backend("Uffd")});
    refused(recording, "record_working_set and mem_backend");
    let eager = json!({"load_eagerly": true, "mem_backend": backend("Uffd")});
    refused(eager, "load_eagerly and mem_backend");
    let eager = json!({"load_eagerly": true, "record_working_set": true});
    refused(eager, "load_eagerly and record_working_set");
    let base = json!({"base_snapshot_path": "b"});
    refused(base, "base_snapshot_path needs mem_backend \"Uffd\"");
    refused(json!({"clock_realtime": true}), "clock_realtime");
    let overrides = json!([{"iface_id": "eth0", "host_dev_name": "tap0"}]);
    refused(json!({"network_overrides": overrides}), "interface \"eth0\", which the machine does");
    refused(json!({"vsock_override": {"uds_path": "v"}}), "vsock_override");
}

#[test]
fn a_start_that_fails_can_be_repeated() {
    let mut bench = Bench::new();
    let start = json!({"action_type": "InstanceStart"});
    bench.refused(Put, "/actions", start.clone(), &["boot-source: missing"]);
    let kernel = bench.path("Image");
    bench.done(Put, "/boot-source", json!({"kernel_image_path": kernel}));
    bench.controller.machine().broken = true;
    let texts = ["InstanceStart failed: the recorder is broken"];
    bench.refused(Put, "/actions", start.clone(), &texts);
    assert_eq!(bench.controller.state(), State::NotStarted);
    bench.controller.machine().broken = false;
    bench.done(Put, "/actions", start);
    bench.controller.machine().broken = true;
    let pause = json!({"state": "Paused"});
    bench.refused(Patch, "/vm", pause, &["PATCH /vm (Paused) failed: the recorder is broken"]);
    assert_eq!(bench.controller.state(), State::Running);
}

#[test]
fn a_file_that_vanished_since_it_was_configured_is_named_at_the_start() {
    let mut bench = Bench::new();
    let kernel = bench.path("Image");
    bench.done(Put, "/boot-source", json!({"kernel_image_path": kernel}));
    fs::remove_file(&kernel).unwrap();
    let start = json!({"action_type": "InstanceStart"});
    bench.refused(Put, "/actions", start, &["boot-source.kernel_image_path", "No such file"]);
}

#[test]
fn a_configuration_file_starts_the_machine_through_the_same_checks() {
    let mut bench = Bench::new();
    let document = json!({"boot-source": {"kernel_image_path": bench.path("Image")},
                          "machine-config": {"vcpu_count": 99, "mem_size_mib": 64}});
    let config = config::parse(document.to_string().as_bytes()).unwrap();
    let text = config::report(&bench.controller.start(config).unwrap_err());
    assert!(text.contains("machine-config.vcpu_count: 99"), "{text}");
    assert_eq!(bench.controller.state(), State::NotStarted);
}
