use proptest::prelude::*;

use crate::api::http::Method::{self, Delete, Get, Patch, Put};
use crate::api::{Request, route};
use crate::config::{Drive, MachineConfig, MachineConfigPatch, Vsock, report};

fn asked(method: Method, path: &str, body: &str) -> Request {
    route(method, path, body.as_bytes()).unwrap_or_else(|error| panic!("{}", report(&error)))
}

#[track_caller]
fn refused(method: Method, path: &str, body: &str, text: &str) {
    let error = route(method, path, body.as_bytes()).expect_err("must be refused");
    let report = report(&error);
    assert!(report.contains(text), "{text:?} is not in {report:?}");
}

#[test]
fn every_route_that_asks_is_a_request() {
    assert_eq!(asked(Get, "/", ""), Request::InstanceInfo);
    assert_eq!(asked(Get, "/version", ""), Request::Version);
    assert_eq!(asked(Get, "/vm/config", ""), Request::VmConfig);
    assert_eq!(asked(Get, "/machine-config/", ""), Request::MachineConfig);
}

#[test]
fn every_route_that_configures_is_a_request() {
    let body = r#"{"vcpu_count": 2, "mem_size_mib": 64}"#;
    let expected = MachineConfig { vcpu_count: 2, mem_size_mib: 64, ..MachineConfig::default() };
    assert_eq!(asked(Put, "/machine-config", body), Request::SetMachineConfig(expected));
    let patch = MachineConfigPatch { vcpu_count: Some(2), ..MachineConfigPatch::default() };
    let body = r#"{"vcpu_count": 2}"#;
    assert_eq!(asked(Patch, "/machine-config", body), Request::PatchMachineConfig(patch));
    let body = r#"{"guest_cid": 3, "uds_path": "v"}"#;
    let vsock = Vsock { vsock_id: None, guest_cid: 3, uds_path: "v".into() };
    assert_eq!(asked(Put, "/vsock", body), Request::SetVsock(vsock));
    let body = r#"{"drive_id": "a", "path_on_host": "f", "is_root_device": true}"#;
    let request = asked(Put, "/drives/a", body);
    assert!(matches!(request, Request::SetDrive(Drive { is_root_device: true, .. })));
    assert!(matches!(
        asked(Patch, "/drives/a", r#"{"drive_id": "a", "path_on_host": "f"}"#),
        Request::PatchDrive(_)
    ));
    let body = r#"{"kernel_image_path": "k"}"#;
    assert!(matches!(asked(Put, "/boot-source", body), Request::SetBootSource(_)));
    assert!(matches!(asked(Put, "/entropy", "{}"), Request::SetEntropy(_)));
    assert!(matches!(asked(Put, "/serial", "{}"), Request::SetSerial(_)));
    assert!(matches!(asked(Put, "/logger", r#"{"level": "debug"}"#), Request::SetLogger(_)));
}

#[test]
fn forks_are_made_told_and_ended_without_a_body() {
    assert_eq!(asked(Put, "/fork", ""), Request::Fork);
    assert_eq!(asked(Get, "/forks", ""), Request::Forks);
    assert_eq!(asked(Delete, "/fork/12", ""), Request::EndFork("12".into()));
    refused(Put, "/fork", "{}", "PUT /fork has no body");
    refused(Delete, "/fork/1", "{}", "DELETE /fork/1 has no body");
    refused(Delete, "/fork", "", "there is no DELETE /fork");
    refused(Delete, "/drives/a", "", "there is no DELETE /drives/a");
}

#[test]
fn every_route_that_acts_is_a_request() {
    for (action, request) in [
        ("InstanceStart", Request::Start),
        ("FlushMetrics", Request::FlushMetrics),
        ("SendCtrlAltDel", Request::SendCtrlAltDel),
    ] {
        let body = format!(r#"{{"action_type": "{action}"}}"#);
        assert_eq!(asked(Put, "/actions", &body), request);
    }
    assert_eq!(asked(Patch, "/vm", r#"{"state": "Paused"}"#), Request::Pause);
    assert_eq!(asked(Patch, "/vm", r#"{"state": "Resumed"}"#), Request::Resume);
    let body = r#"{"mem_file_path": "m", "snapshot_path": "s", "snapshot_type": "Diff"}"#;
    assert!(matches!(asked(Put, "/snapshot/create", body), Request::CreateSnapshot(_)));
    let body = r#"{"snapshot_path": "s", "resume_vm": true,
                   "mem_backend": {"backend_type": "File", "backend_path": "m"},
                   "network_overrides": [{"iface_id": "e", "host_dev_name": "t"}],
                   "vsock_override": {"uds_path": "v"}}"#;
    assert!(matches!(asked(Put, "/snapshot/load", body), Request::LoadSnapshot(_)));
}

#[test]
fn the_routes_of_what_is_not_there_yet_exist() {
    for (method, path, section) in [
        (Get, "/balloon", "balloon"),
        (Get, "/balloon/statistics", "balloon"),
        (Get, "/balloon/hinting/status", "balloon"),
        (Put, "/balloon", "balloon"),
        (Patch, "/balloon", "balloon"),
        (Patch, "/balloon/statistics", "balloon"),
        (Patch, "/balloon/hinting/start", "balloon"),
        (Patch, "/balloon/hinting/stop", "balloon"),
        (Put, "/cpu-config", "cpu-config"),
        (Put, "/metrics", "metrics"),
        (Get, "/mmds", "mmds-config"),
        (Put, "/mmds", "mmds-config"),
        (Patch, "/mmds", "mmds-config"),
        (Put, "/mmds/config", "mmds-config"),
        (Put, "/pmem/p", "pmem"),
        (Patch, "/pmem/p", "pmem"),
        (Get, "/hotplug/memory", "memory-hotplug"),
        (Put, "/hotplug/memory", "memory-hotplug"),
        (Patch, "/hotplug/memory", "memory-hotplug"),
    ] {
        let body = if method == Get { "" } else { "{}" };
        assert_eq!(asked(method, path, body), Request::Unsupported(section));
    }
}

#[test]
fn what_is_no_route_is_named() {
    refused(Get, "/zebra", "", "there is no GET /zebra");
    refused(Put, "/vm", "{}", "there is no PUT /vm");
    refused(Patch, "/actions", "{}", "there is no PATCH /actions");
    refused(Get, "/a/b/c/d/e/f/g", "", "there is no GET");
    refused(Put, "/machine-config/x", "{}", "there is no PUT");
    refused(Put, "/drives", "{}", "/drives/ID");
}

#[test]
fn bodies_are_where_they_belong() {
    refused(Put, "/vsock", "", "PUT /vsock needs a body");
    refused(Patch, "/vm", "", "PATCH /vm needs a body");
    refused(Put, "/actions", "", "needs a body");
    refused(Put, "/drives/a", "", "PUT /drives/a needs a body");
    refused(Get, "/version", "{}", "GET /version has no body");
}

#[test]
fn what_a_body_gets_wrong_is_named() {
    refused(Put, "/vsock", "{", "not valid JSON");
    refused(Put, "/vsock", r#"{"guest_cid": "3"}"#, "vsock.guest_cid");
    refused(Put, "/vsock", r#"{"guest_cid": 3}"#, "vsock.uds_path: missing");
    refused(Put, "/machine-config", r#"{"vcpu_cuont": 1}"#, "did you mean `vcpu_count`?");
    refused(Put, "/actions", r#"{"action_type": "Explode"}"#, "actions.action_type");
    refused(Put, "/actions", "{}", "actions.action_type: missing");
    refused(Patch, "/vm", r#"{"state": "Running"}"#, "vm.state");
    let body = r#"{"drive_id": "b", "path_on_host": "f", "is_root_device": true}"#;
    refused(Put, "/drives/a", body, "the path names drives/\"a\" and the body drives/\"b\"");
    refused(Put, "/drives/a", r#"{"drive_id": 1}"#, "drives/a.drive_id");
    let body = r#"{"iface_id": "b"}"#;
    refused(Patch, "/network-interfaces/a", body, "the body network-interfaces/\"b\"");
    refused(Put, "/network-interfaces/a", body, "network-interfaces/a.host_dev_name: missing");
}

proptest! {
    #[test]
    fn no_path_or_body_can_panic(
        method in prop_oneof![Just(Get), Just(Put), Just(Patch)],
        path in "/(drives|vm|snapshot|mmds|actions|logger)?(/[ -~]{0,8}){0,6}",
        body in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        if let Err(error) = route(method, &path, &body) {
            prop_assert!(report(&error).len() < 1024);
        }
    }
}
