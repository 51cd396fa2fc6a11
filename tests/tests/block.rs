//! Disks: what the guest writes is in the file, what is in the file the guest reads.
//!
//! hosts: gicv3, 16k
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rotifer_tests::{ExitCode, Vm, VmBuilder, empty_disk};
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

fn sha256_in_guest(vm: &Vm, path: &str) -> String {
    vm.shell(&format!("sha256sum {path}")).split_whitespace().next().unwrap().to_owned()
}

#[test]
fn what_is_in_the_file_is_what_the_guest_reads() {
    let directory = TempDir::new().unwrap();
    let disk = directory.path().join("disk");
    fs::write(&disk, pattern(16 << 20)).unwrap();
    let host_sum = std::process::Command::new("sha256sum").arg(&disk).output().unwrap().stdout;
    let vm = start(&disk, true);
    let guest_sum = sha256_in_guest(&vm, "/dev/vdb");
    assert!(String::from_utf8(host_sum).unwrap().starts_with(&guest_sum));
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
