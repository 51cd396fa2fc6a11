//! Disks: what the guest writes is in the file, what is in the file the guest reads.
//!
//! hosts: gicv3, 16k
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rotifer_tests::{Artifacts, ExitCode, Vm, VmBuilder, empty_disk};
use serde_json::{Value, json};
use tempfile::TempDir;

const DISK_BYTES: u64 = 64 << 20;

/// Bytes that are everywhere different and always the same.
fn pattern(bytes: usize) -> Vec<u8> {
    let mut output = vec![0; bytes];
    blake3::Hasher::new_derive_key("rotifer test disk").finalize_xof().fill(&mut output);
    output
}

/// A Debian guest whose second disk is `disk`.
fn start(disk: &Path, read_only: bool) -> Vm {
    let mut vm = VmBuilder::new().debian().drive("data", disk, read_only).start();
    vm.wait_until_ready();
    vm
}

/// The same with more memory, vCPUs, keys of the drive, and the VMM's debug messages.
fn start_with(disk: &Path, vcpu_count: u64, keys: &[(&str, Value)]) -> Vm {
    let directory = TempDir::new().unwrap();
    let builder = VmBuilder::new().memory_mib(256).vcpus(vcpu_count).debian();
    let mut config = builder.drive("data", disk, false).config(directory.path());
    for (key, value) in keys {
        config["drives"][1][key] = value.clone();
    }
    config["logger"] = json!({ "level": "Debug" });
    let mut vm = Vm::start(&Artifacts::find(), directory, &config, &[]);
    vm.wait_until_ready();
    vm
}

/// How many requests the io_uring engine ever had in flight, as the VMM logs it when it pauses.
fn most_in_flight(vm: &Vm) -> u64 {
    const KEY: &str = "most_in_flight=";
    let (status, text) = vm.api("PATCH", "/vm", Some(&json!({ "state": "Paused" })));
    assert_eq!(status, 204, "{text}");
    vm.messages.wait_for(KEY);
    let messages = vm.messages.tail();
    let (_, number) = messages.rsplit_once(KEY).unwrap();
    number.split_whitespace().next().unwrap().parse().unwrap()
}

fn sha256_on_host(path: &Path) -> String {
    let output = std::process::Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

fn sha256_in_guest(vm: &Vm, path: &str) -> String {
    vm.shell(&format!("sha256sum {path}")).split_whitespace().next().unwrap().to_owned()
}

#[test]
fn what_is_in_the_file_is_what_the_guest_reads() {
    let directory = TempDir::new().unwrap();
    let disk = directory.path().join("disk");
    fs::write(&disk, pattern(16 << 20)).unwrap();
    let vm = start(&disk, true);
    assert_eq!(sha256_in_guest(&vm, "/dev/vdb"), sha256_on_host(&disk));
}

#[test]
fn what_the_guest_writes_is_in_the_file_after_its_sync() {
    let directory = TempDir::new().unwrap();
    let disk = directory.path().join("disk");
    empty_disk(&disk, DISK_BYTES);
    let vm = start(&disk, false);
    let data = pattern(DISK_BYTES as usize);
    // In pieces, since the guest has little memory.
    for (index, piece) in data.chunks(8 << 20).enumerate() {
        let path = Path::new("/tmp/piece");
        vm.agent_client().put_file(path, "", piece, piece.len() as u64).unwrap();
        vm.shell(&format!("dd if=/tmp/piece of=/dev/vdb bs=8M seek={index} conv=notrunc,fsync"));
    }
    assert!(fs::read(&disk).unwrap() == data, "the file differs from what was written");
    vm.signal(libc::SIGKILL);
    assert!(fs::read(&disk).unwrap() == data, "a killed VMM loses nothing that was synced");
}

#[test]
fn a_file_system_survives_a_reboot_with_its_content() {
    let directory = TempDir::new().unwrap();
    let disk = directory.path().join("disk");
    empty_disk(&disk, DISK_BYTES);
    let mut vm = start(&disk, false);
    vm.shell(
        "mkfs.ext4 -q /dev/vdb && mkdir -p /tmp/disk && mount /dev/vdb /tmp/disk && \
         seq 100000 > /tmp/disk/numbers && umount /tmp/disk",
    );
    let sum = vm.shell("seq 100000 | sha256sum");
    vm.agent_client().shutdown(rotifer_agent::agent::ShutdownMode::Reboot).unwrap();
    vm.wait_for_exit(ExitCode::Reset);
    drop(vm);
    let vm = start(&disk, false);
    vm.shell("mkdir -p /tmp/disk && mount /dev/vdb /tmp/disk");
    assert_eq!(vm.shell("sha256sum < /tmp/disk/numbers"), sum);
}

#[test]
fn a_read_only_disk_cannot_be_written() {
    let directory = TempDir::new().unwrap();
    let disk = directory.path().join("disk");
    fs::write(&disk, pattern(1 << 20)).unwrap();
    let vm = start(&disk, true);
    assert_eq!(vm.shell("cat /sys/block/vdb/ro").trim(), "1");
    let refusal = vm.shell("dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync 2>&1 || true");
    assert!(refusal.contains("Operation not permitted"), "{refusal}");
    assert!(fs::read(&disk).unwrap() == pattern(1 << 20));
}

#[test]
fn discard_frees_space_and_reads_as_zeroes() {
    let directory = TempDir::new().unwrap();
    let disk = directory.path().join("disk");
    fs::write(&disk, pattern(8 << 20)).unwrap();
    let before = fs::metadata(&disk).unwrap().blocks();
    let vm = start(&disk, false);
    vm.shell("blkdiscard -o 1M -l 4M /dev/vdb");
    let after = fs::metadata(&disk).unwrap().blocks();
    assert!(after + (4 << 20) / 512 <= before, "{before} blocks before, {after} after");
    let mut expected = pattern(8 << 20);
    expected[1 << 20..5 << 20].fill(0);
    assert!(fs::read(&disk).unwrap() == expected);
    vm.shell("blkdiscard -z -o 6M -l 1M /dev/vdb");
    expected[6 << 20..7 << 20].fill(0);
    assert!(fs::read(&disk).unwrap() == expected, "write zeroes");
}

#[test]
fn a_disk_that_shrinks_gives_errors_not_zeroes() {
    let directory = TempDir::new().unwrap();
    let disk = directory.path().join("disk");
    fs::write(&disk, pattern(8 << 20)).unwrap();
    let vm = start(&disk, false);
    File::options().write(true).open(&disk).unwrap().set_len(4 << 20).unwrap();
    let read = |skip: u32| {
        vm.shell(&format!(
            "dd if=/dev/vdb of=/tmp/read bs=1M skip={skip} count=1 iflag=direct 2>&1 || true"
        ))
    };
    assert!(read(6).contains("Input/output error"), "behind the end");
    assert!(!read(1).contains("error"), "before the end");
    assert!(vm.messages.has("data") || vm.messages.has("disk"), "{}", vm.report());
}

#[test]
fn a_disk_in_use_by_another_machine_is_refused() {
    let directory = TempDir::new().unwrap();
    let disk = directory.path().join("disk");
    empty_disk(&disk, 1 << 20);
    let _first = start(&disk, false);
    let mut second = VmBuilder::new().drive("data", &disk, false).start();
    second.wait_for_exit(ExitCode::Usage);
    assert!(second.messages.all().contains("disk"), "{}", second.report());
}

#[test]
fn a_disk_has_a_queue_for_each_vcpu() {
    for vcpu_count in [1, 2] {
        let mut vm = VmBuilder::new().vcpus(vcpu_count).debian().start();
        vm.wait_until_ready();
        let queues = vm.shell("ls /sys/block/vda/mq | wc -l");
        assert_eq!(queues.trim(), vcpu_count.to_string());
    }
}

#[test]
fn several_processes_keep_several_requests_in_flight() {
    const PROCESSES: u32 = 8;
    let directory = TempDir::new().unwrap();
    let disk = directory.path().join("disk");
    empty_disk(&disk, DISK_BYTES);
    let vm = start_with(&disk, 4, &[("io_engine", json!("Async"))]);
    assert_eq!(vm.shell("ls /sys/block/vdb/mq | wc -l").trim(), "4");
    // Each has 2 MiB of the disk: writes it past the page cache, reads it back likewise.
    let script = format!(
        "one() {{ head -c 2M /dev/urandom > /tmp/in$1
            dd if=/tmp/in$1 of=/dev/vdb bs=64k seek=$(($1 * 32)) oflag=direct conv=notrunc
            dd if=/dev/vdb of=/tmp/out$1 bs=64k skip=$(($1 * 32)) count=32 iflag=direct
            cmp /tmp/in$1 /tmp/out$1 && echo good $1; }} 2>/tmp/err$1
         for n in $(seq 0 {}); do one $n & done; wait; cat /tmp/err*",
        PROCESSES - 1
    );
    let output = vm.shell(&script);
    for process in 0..PROCESSES {
        assert!(output.contains(&format!("good {process}\n")), "{output}");
    }
    vm.shell(
        "mkfs.ext4 -q /dev/vdb && mkdir -p /tmp/disk && mount /dev/vdb /tmp/disk && \
         (seq 200000 > /tmp/disk/a & seq 300000 > /tmp/disk/b & wait) && \
         rm /tmp/disk/a && fstrim /tmp/disk && umount /tmp/disk",
    );
    let sum = sha256_in_guest(&vm, "/dev/vdb");
    let in_flight = most_in_flight(&vm);
    assert!(in_flight > 1, "at most {in_flight} in flight");
    assert_eq!(sha256_on_host(&disk), sum, "a paused machine has nothing in flight");
    let (status, text) = vm.api("PATCH", "/vm", Some(&json!({ "state": "Resumed" })));
    assert_eq!(status, 204, "{text}");
    assert_eq!(sha256_in_guest(&vm, "/dev/vdb"), sum, "and goes on");
}

#[test]
fn machines_share_a_base_and_each_keeps_what_it_wrote() {
    let directory = TempDir::new().unwrap();
    let base = directory.path().join("base");
    fs::write(&base, pattern(8 << 20)).unwrap();
    let overlay = |name: &str| directory.path().join(name);
    let start = |name| start_with(&base, 1, &[("overlay_path", json!(overlay(name)))]);
    let vms = [start("a"), start("b")];
    let sums = ["a", "b"].map(|name| {
        let vm = &vms[usize::from(name == "b")];
        // Not where blocks begin, nor where they end.
        vm.shell(&format!(
            "yes {name} | head -c 1000000 | dd of=/dev/vdb bs=1000 seek=1001 conv=notrunc,fsync"
        ));
        sha256_in_guest(vm, "/dev/vdb")
    });
    assert_ne!(sums[0], sums[1]);
    assert!(fs::read(&base).unwrap() == pattern(8 << 20), "nobody wrote the base");
    let [first, second] = vms;
    first.signal(libc::SIGKILL);
    drop(first);
    let again = start("a");
    assert_eq!(sha256_in_guest(&again, "/dev/vdb"), sums[0], "a killed VMM loses nothing synced");
    assert_eq!(sha256_in_guest(&second, "/dev/vdb"), sums[1]);

    again.shell("blkdiscard /dev/vdb && sync /dev/vdb");
    let bytes = fs::metadata(overlay("a")).unwrap().blocks() * 512;
    assert!(bytes < 100_000, "{bytes} bytes of an overlay of nothing");
    assert_eq!(again.shell("tr -d '\\0' < /dev/vdb | wc -c").trim(), "0");
}
