//! Every refusal names the field and the reason.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use proptest::prelude::*;
use rotifer_devices::rate_limiter::{Change, Changes};
use rotifer_devices::virtio::block::Engine;
use serde_json::{Value, json};

use super::*;

/// A directory with the files a good configuration names.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { dir: tempfile::tempdir().unwrap() };
        host.file("Image", 4096);
        host.file("initrd", 512);
        host.file("root.ext4", 8192);
        host.file("data.img", 1024);
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, size_bytes: usize) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, vec![1; size_bytes]).unwrap();
        path
    }

    /// A configuration that uses every supported section.
    fn good(&self) -> Value {
        json!({
            "boot-source": {
                "kernel_image_path": self.path("Image"),
                "initrd_path": self.path("initrd"),
                "boot_args": "console=ttyS0 quiet"
            },
            "drives": [
                {"drive_id": "data", "path_on_host": self.path("data.img"),
                 "is_root_device": false, "is_read_only": false, "cache_type": "Writeback",
                 "io_engine": "Async"},
                {"drive_id": "rootfs", "path_on_host": self.path("root.ext4"),
                 "is_root_device": true, "is_read_only": true, "io_engine": "Sync",
                 "partuuid": null, "rate_limiter": null, "socket": null}
            ],
            "machine-config": {"vcpu_count": 2, "mem_size_mib": 256},
            "vsock": {"guest_cid": 3, "uds_path": "v.sock"},
            "entropy": {},
            "serial": {"serial_out_path": "console.log"},
            "network-interfaces": [], "balloon": null, "metrics": null
        })
    }
}

fn plan(document: &Value) -> Result<Plan, Error> {
    parse(document.to_string().as_bytes())?.plan()
}

#[test]
fn an_empty_document_is_a_configuration_with_defaults() {
    let config = parse(b"{}").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!((config.machine_config.vcpu_count, config.machine_config.mem_size_mib), (1, 128));
}

#[test]
fn a_good_configuration_becomes_a_plan_with_the_root_disk_first() {
    let host = Host::new();
    let plan = plan(&host.good()).unwrap();
    assert_eq!((plan.vcpu_count, plan.ram_bytes), (2, 256 << 20));
    assert_eq!(plan.boot.command_line, "console=ttyS0 quiet root=/dev/vda ro");
    assert!(plan.boot.initrd.is_some());
    let disks: Vec<_> = plan.disks.iter().map(|d| (&*d.id, d.size_bytes, d.read_only)).collect();
    assert_eq!(disks, [("rootfs", 8192, true), ("data", 1024, false)]);
    assert_eq!(plan.disks[1].cache, CacheType::Writeback);
    assert_eq!(
        plan.disks.iter().map(|d| d.engine).collect::<Vec<_>>(),
        [Engine::Sync, Engine::Async]
    );
    assert_eq!(plan.vsock, Some(VsockPlan { guest_cid: 3, uds_path: "v.sock".into() }));
    assert!(plan.entropy);
    assert_eq!(plan.console, Console::File("console.log".into()));
}

#[test]
fn root_arguments_go_before_those_of_init() {
    let host = Host::new();
    let mut document = host.good();
    document["boot-source"]["boot_args"] = json!("quiet -- --flag");
    document["drives"][1]["partuuid"] = json!("0eaa91a0-01");
    let line = plan(&document).unwrap().boot.command_line;
    assert_eq!(line, "quiet root=PARTUUID=0eaa91a0-01 ro -- --flag");
}

#[test]
fn without_boot_args_the_defaults_are_used() {
    let host = Host::new();
    let document = json!({"boot-source": {"kernel_image_path": host.path("Image")}});
    let plan = plan(&document).unwrap();
    assert_eq!(plan.boot.command_line, boot::DEFAULT_ARGS);
    assert_eq!((plan.vcpu_count, plan.ram_bytes, plan.console), (1, 128 << 20, Console::Stdio));
}

/// Changes the good configuration at a JSON pointer and expects every `text` in the refusal.
#[track_caller]
fn refused(pointer: &str, value: Value, texts: &[&str]) {
    let host = Host::new();
    let mut document = host.good();
    set(&mut document, pointer, value);
    expect_refusal(&document, texts);
}

#[track_caller]
fn expect_refusal(document: &Value, texts: &[&str]) {
    let error = plan(document).expect_err("must be refused");
    let report = report(&error);
    for text in texts {
        assert!(report.contains(text), "{text:?} is not in {report:?}");
    }
}

fn set(document: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match document.pointer_mut(parent).unwrap() {
        Value::Object(map) => {
            map.insert(key.into(), value);
        }
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
        _ => panic!("{parent} is a leaf"),
    }
}

#[test]
fn unknown_keys_are_refused_with_the_likely_one() {
    refused(
        "/boot_source",
        json!({}),
        &["boot_source: unknown key", "did you mean `boot-source`?"],
    );
    refused(
        "/machine-config/vcpus",
        json!(1),
        &["machine-config.vcpus", "unknown key", "vcpu_count"],
    );
    refused("/drives/0/readonly", json!(true), &["drives[0].readonly: unknown", "`is_read_only`?"]);
    refused("/vsock/guest_cdi", json!(1), &["vsock.guest_cdi", "did you mean `guest_cid`?"]);
    refused("/zebra", json!(1), &["zebra: unknown key", "line 1, column", "machine-config"]);
}

#[test]
fn missing_keys_are_named_with_their_place() {
    for (document, text) in [
        (json!({}), "boot-source: missing"),
        (json!({"boot-source": {}}), "boot-source.kernel_image_path: missing"),
        (json!({"machine-config": {"vcpu_count": 1}}), "machine-config.mem_size_mib: missing"),
        (json!({"drives": [{"drive_id": "a"}]}), "drives[0].is_root_device: missing"),
    ] {
        expect_refusal(&document, &[text]);
    }
    refused("/drives/1/path_on_host", Value::Null, &["drives[1].path_on_host: missing"]);
}

#[test]
fn values_of_the_wrong_type_are_named_with_their_place() {
    refused("/machine-config/vcpu_count", json!("two"), &["machine-config.vcpu_count", "string"]);
    refused("/machine-config/vcpu_count", json!(-1), &["machine-config.vcpu_count", "-1"]);
    refused("/machine-config/mem_size_mib", json!(1.5), &["machine-config.mem_size_mib", "1.5"]);
    refused("/drives", json!({}), &["drives: ", "expected a sequence"]);
    refused(
        "/drives/0/cache_type",
        json!("None"),
        &["drives[0].cache_type", "Unsafe", "Writeback"],
    );
    refused("/logger", json!({"level": "loud"}), &["logger.level", "loud", "Warning"]);
}

#[test]
fn text_that_is_not_json_is_refused_with_line_and_column() {
    for (text, place) in [
        ("{\n  \"drives\": [,]\n}", "line 2, column 14"),
        ("", "line 1, column 0"),
        ("{} {}", "line 1, column 4"),
        ("{\"drives\": [", "line 1, column 12"),
        ("\u{feff}{}", "line 1, column 1"),
    ] {
        let report = report(&parse(text.as_bytes()).unwrap_err());
        assert!(report.contains(place) && report.contains("not valid JSON"), "{report}");
    }
    let deep = "[".repeat(100_000);
    assert!(parse(deep.as_bytes()).is_err());
    assert!(matches!(parse(b"{\"boot-source\": \"\xff\"}"), Err(Error::Syntax { .. })));
    let twice = report(&parse(b"{\"drives\": [], \"drives\": []}").unwrap_err());
    assert!(twice.contains("duplicate field `drives`"), "{twice}");
}

#[test]
fn numbers_out_of_range_are_refused() {
    for count in [0, 17, 300, u64::MAX] {
        refused(
            "/machine-config/vcpu_count",
            json!(count),
            &["machine-config.vcpu_count", &count.to_string(), "1 to 16 vCPUs"],
        );
    }
    for mib in [0, 32769, u64::MAX] {
        refused(
            "/machine-config/mem_size_mib",
            json!(mib),
            &["machine-config.mem_size_mib", &mib.to_string(), "1 to 32768 MiB"],
        );
    }
    for cid in [0, 1, 2, u64::from(u32::MAX), u64::MAX] {
        refused("/vsock/guest_cid", json!(cid), &["vsock.guest_cid", &cid.to_string(), "CID"]);
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let bucket = json!({"size": 1, "refill_time": 1});
    for (pointer, value, path) in [
        ("/balloon", json!({"amount_mib": 1}), "balloon: not supported"),
        ("/cpu-config", json!({}), "cpu-config: not supported"),
        ("/metrics", json!({"metrics_path": "m"}), "metrics: not supported"),
        ("/mmds-config", json!({}), "mmds-config: not supported"),
        ("/memory-hotplug", json!({}), "memory-hotplug: not supported"),
        ("/pmem", json!([{}]), "pmem: not supported"),
        ("/machine-config/smt", json!(true), "machine-config.smt: not supported"),
        ("/machine-config/cpu_template", json!("V1N1"), "machine-config.cpu_template: not supp"),
        ("/machine-config/huge_pages", json!("2M"), "machine-config.huge_pages: not supported"),
        ("/drives/0/socket", json!("s"), "drives[0].socket: not supported"),
        ("/drives/0/rate_limiter", json!({"ops": bucket}), "drives[0].rate_limiter: not supp"),
        ("/entropy", json!({"rate_limiter": {"ops": bucket}}), "entropy.rate_limiter: not supp"),
        ("/serial", json!({"rate_limiter": bucket}), "serial.rate_limiter: not supported"),
    ] {
        refused(pointer, value, &[path]);
    }
}

#[test]
fn a_network_interface_that_cannot_be_is_refused_by_the_key_that_is_wrong() {
    let good = json!({
        "iface_id": "eth0", "host_dev_name": "no-such-tap", "guest_mac": "06:00:AC:10:00:02",
        "mtu": 1500, "rx_rate_limiter": {"ops": {"size": 1, "refill_time": 1}, "bandwidth": null}
    });
    let bucket = |refill_ms: u64| json!({"bandwidth": {"size": 1, "refill_time": refill_ms}});
    let host = Host::new();
    for (key, value, texts) in [
        // The last of all: everything else was right.
        ("mtu", json!(1500), ["host_dev_name", "there is no interface no-such-tap"]),
        ("iface_id", json!("eth-0"), ["iface_id", "'-'"]),
        ("host_dev_name", json!("sixteen_letters_"), ["host_dev_name", "more than 15 bytes"]),
        ("host_dev_name", json!("a/b"), ["host_dev_name", "no name of an interface"]),
        ("guest_mac", json!("06:00:AC:10:00"), ["guest_mac", "six pairs"]),
        ("guest_mac", json!("01:00:AC:10:00:02"), ["guest_mac", "one station"]),
        ("mtu", json!(67), ["mtu", "68 to 65535"]),
        ("mtu", json!(65536), ["mtu", "68 to 65535"]),
        ("tx_rate_limiter", bucket(86_400_001), ["tx_rate_limiter.bandwidth.refill_time", "ms"]),
    ] {
        let mut document = host.good();
        let mut interface = good.clone();
        interface[key] = value;
        document["network-interfaces"] = json!([interface]);
        let error = report(&plan(&document).unwrap_err());
        assert!(error.starts_with("network-interfaces[0]."), "{error}");
        assert!(texts.iter().all(|text| error.contains(text)), "{error}");
    }
    for (key, value) in [("iface_id", json!("e")), ("host_dev_name", json!("t"))] {
        let mut other = json!({"iface_id": "e1", "host_dev_name": "t1"});
        other[key] = value;
        let mut document = host.good();
        document["network-interfaces"] = json!([{"iface_id": "e", "host_dev_name": "t"}, other]);
        let at = format!("network-interfaces[1].{key}");
        expect_refusal(&document, &[&at, "network-interfaces[0] has the same"]);
    }
}

#[test]
fn a_patch_of_an_interface_changes_the_limits_it_names_and_no_others() {
    let bucket = |size: u64| json!({"size": size, "one_time_burst": null, "refill_time": 100});
    let interface: NetworkInterface = serde_json::from_value(json!({
        "iface_id": "e", "host_dev_name": "t", "guest_mac": null,
        "rx_rate_limiter": {"bandwidth": bucket(1), "ops": bucket(2)}, "tx_rate_limiter": null
    }))
    .unwrap();
    let patch = |rx: Value| {
        let patch = json!({"iface_id": "e", "rx_rate_limiter": rx});
        let (patched, limits) = interface.patched(&serde_json::from_value(patch).unwrap()).unwrap();
        (serde_json::to_value(patched).unwrap()["rx_rate_limiter"].take(), limits.receive)
    };
    let (now, changes) = patch(json!({"bandwidth": bucket(3)}));
    assert_eq!(now, json!({"bandwidth": bucket(3), "ops": bucket(2)}));
    assert!(matches!(changes.bandwidth, Change::Limit(_)) && changes.ops == Change::Keep);
    let (now, changes) = patch(json!({"bandwidth": bucket(0)}));
    assert_eq!(now, json!({"bandwidth": null, "ops": bucket(2)}));
    assert_eq!(changes.bandwidth, Change::Lift);
    let (now, changes) = patch(json!(null));
    assert_eq!(now["ops"], bucket(2));
    assert_eq!(changes, Changes::default());
}

#[test]
fn a_kernel_or_initrd_that_cannot_be_read_is_refused() {
    let host = Host::new();
    let empty = host.file("empty", 0);
    let fifo = host.path("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    for field in ["kernel_image_path", "initrd_path"] {
        let at = format!("boot-source.{field}");
        for (path, text) in [
            (host.path("absent"), "No such file"),
            (empty.clone(), "the file is empty"),
            (host.dir.path().into(), "a directory"),
            (fifo.clone(), "a FIFO"),
            (PathBuf::from("nul\0nul"), "nul"),
        ] {
            let mut document = host.good();
            document["boot-source"][field] = json!(path);
            expect_refusal(&document, &[&at, text]);
        }
    }
}

#[test]
fn a_drive_file_that_cannot_be_used_is_refused() {
    let host = Host::new();
    let read_only = host.file("sealed.img", 512);
    fs::set_permissions(&read_only, fs::Permissions::from_mode(0o444)).unwrap();
    for (path, text) in [
        (host.path("absent"), "No such file"),
        (host.file("empty", 0), "the file is empty"),
        (host.file("stub", 511), "less than one sector"),
        (host.dir.path().into(), "a directory"),
        (PathBuf::from("/dev/null"), "a character device"),
        (PathBuf::from("x".repeat(5000)), "File name too long"),
        (read_only, "the file is read-only and the drive is not"),
    ] {
        let mut document = host.good();
        document["drives"][0]["path_on_host"] = json!(path);
        expect_refusal(&document, &["drives[0].path_on_host", text]);
    }
    let sparse = host.path("huge.img");
    fs::File::create(&sparse).unwrap().set_len((32 << 30) + 1).unwrap();
    let mut document = host.good();
    document["drives"][0]["path_on_host"] = json!(sparse);
    expect_refusal(&document, &["drives[0].path_on_host", "34359738369", "at most"]);
}

#[test]
fn a_read_only_file_serves_a_read_only_drive() {
    let host = Host::new();
    fs::set_permissions(host.path("root.ext4"), fs::Permissions::from_mode(0o444)).unwrap();
    assert!(plan(&host.good()).is_ok());
}

#[test]
fn drives_that_contradict_one_another_are_refused() {
    refused("/drives/1/drive_id", json!("data"), &["drives[1].drive_id: data", "drives[0] has"]);
    refused("/drives/0/is_root_device", json!(true), &["drives[1].is_root_device", "drives[0]"]);
    for id in ["", "a b", "a/b", "a-b", "\u{e4}", &"x".repeat(65)] {
        refused("/drives/0/drive_id", json!(id), &["drives[0].drive_id", "an id"]);
    }
    for partuuid in ["", "x y", "0-1 init=/bin/sh", &"a".repeat(37)] {
        refused("/drives/1/partuuid", json!(partuuid), &["drives[1].partuuid", "partition id"]);
    }
    let host = Host::new();
    let mut document = host.good();
    let drive = document["drives"][0].clone();
    document["drives"] = Value::Array(vec![drive; 17]);
    expect_refusal(&document, &["drives: 17", "at most 16"]);
}

#[test]
fn a_command_line_the_kernel_would_cut_is_refused() {
    for args in ["a\nb", "a\0b", "a\tb", "\u{e4}"] {
        refused("/boot-source/boot_args", json!(args), &["boot-source.boot_args", "printable"]);
    }
    let root_bytes = " root=/dev/vda ro".len();
    let host = Host::new();
    let mut document = host.good();
    document["boot-source"]["boot_args"] = json!("x".repeat(2047 - root_bytes));
    assert_eq!(plan(&document).unwrap().boot.command_line.len(), 2047);
    document["boot-source"]["boot_args"] = json!("x".repeat(2048 - root_bytes));
    expect_refusal(&document, &["boot-source.boot_args", "2048 bytes", "at most 2047"]);
}

#[test]
fn a_socket_path_leaves_room_for_the_guests_ports() {
    refused("/vsock/uds_path", json!(""), &["vsock.uds_path", "needs a path"]);
    refused("/vsock/uds_path", json!("x".repeat(97)), &["vsock.uds_path", "97 bytes", "96"]);
    let host = Host::new();
    let mut document = host.good();
    document["vsock"]["uds_path"] = json!("x".repeat(96));
    assert!(plan(&document).is_ok());
}

#[test]
fn a_socket_path_that_is_taken_is_refused() {
    let host = Host::new();
    let path = host.path("v.sock");
    let mut document = host.good();
    document["vsock"]["uds_path"] = json!(path);
    let listener = UnixListener::bind(&path).unwrap();
    expect_refusal(&document, &["vsock.uds_path", "v.sock", "another live process"]);
    drop(listener);
    assert!(plan(&document).is_ok(), "a dead socket can be replaced");
    document["vsock"]["uds_path"] = json!(host.path("Image"));
    expect_refusal(&document, &["vsock.uds_path", "Image", "not a socket"]);
    document["vsock"]["uds_path"] = json!(host.path("absent/v.sock"));
    expect_refusal(&document, &["vsock.uds_path", "absent", "there is no such directory"]);
}

#[test]
fn a_serial_file_that_cannot_be_is_refused() {
    refused("/serial/serial_out_path", json!(""), &["serial.serial_out_path", "needs a path"]);
    refused("/serial/serial_out_path", json!("/"), &["serial.serial_out_path", "a directory"]);
}

#[test]
fn a_configuration_file_is_bounded_and_named() {
    let host = Host::new();
    let path = host.path("vm.json");
    fs::write(&path, vec![b' '; (FILE_BYTES_MAX + 1) as usize]).unwrap();
    let text = report(&load(&path).unwrap_err());
    assert!(text.contains("vm.json is refused") && text.contains("1048576 bytes"), "{text}");
    fs::write(&path, "{\n \"boot-source\": {,\n}").unwrap();
    let text = report(&load(&path).unwrap_err());
    assert!(text.contains("vm.json is refused: line 2, column 18: not valid JSON"), "{text}");
    let text = report(&load(&host.path("absent.json")).unwrap_err());
    assert!(text.contains("absent.json") && text.contains("No such file"), "{text}");
    assert!(report(&load(host.dir.path()).unwrap_err()).contains("directory"));
    assert!(load(std::path::Path::new("/dev/zero")).is_err());
}

#[test]
fn long_values_are_cut_in_messages() {
    let host = Host::new();
    let mut document = host.good();
    document["drives"][0]["drive_id"] = json!("a ".repeat(10_000));
    assert!(report(&plan(&document).unwrap_err()).len() < 400);
}

#[test]
fn a_configuration_survives_being_written_and_read() {
    let host = Host::new();
    let config = parse(host.good().to_string().as_bytes()).unwrap();
    let text = serde_json::to_vec(&config).unwrap();
    assert_eq!(parse(&text).unwrap(), config);
}

#[test]
fn the_documented_firecracker_examples_parse() {
    let files = ["firecracker-all-keys.json", "firecracker-minimal.json"];
    let texts = [include_str!("golden/all-keys.json"), include_str!("golden/minimal.json")];
    for (file, text) in files.iter().zip(texts) {
        parse(text.as_bytes()).unwrap_or_else(|error| panic!("{file}: {}", report(&error)));
    }
}

proptest! {
    #[test]
    fn no_bytes_can_panic_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn no_change_of_one_byte_can_panic_the_parser(at in 0usize..512, byte in any::<u8>()) {
        let mut text = include_bytes!("golden/all-keys.json").to_vec();
        let at = at % text.len();
        text[at] = byte;
        if let Err(error) = parse(&text) {
            prop_assert!(!report(&error).is_empty());
        }
    }
}

#[test]
fn an_overlay_lets_the_image_be_read_only_and_goes_with_sync_alone() {
    let host = Host::new();
    let mut document = host.good();
    document["drives"][0]["io_engine"] = json!("Sync");
    document["drives"][0]["overlay_path"] = json!("data.overlay");
    let path = host.path("data.img");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let disk = plan(&document).unwrap().disks.pop().unwrap();
    assert_eq!(disk.overlay, Some("data.overlay".into()));
    assert!(!disk.read_only, "to the guest");

    document["drives"][0]["io_engine"] = json!("Async");
    let error = plan(&document).unwrap_err().to_string();
    assert!(error.contains("drives[0].overlay_path") && error.contains("Async"), "{error}");
    document["drives"][0]["io_engine"] = json!("Sync");
    document["drives"][0]["is_read_only"] = json!(true);
    let error = plan(&document).unwrap_err().to_string();
    assert!(error.contains("the drive is read-only"), "{error}");
}
