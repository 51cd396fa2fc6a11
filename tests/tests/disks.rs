//! Disks in snapshots: a machine's file system is suspended with it, and goes on in other machines.
//!
//! hosts: gicv3, 16k
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rotifer_tests::{Artifacts, ExitCode, Pager, Vm, VmBuilder, damage_disks};
use serde_json::Value;
use tempfile::TempDir;

const BASE_BYTES: usize = 32 << 20;
const PAGE_BYTES: u64 = 4096;

/// A base that is nowhere zero: what is read where the guest has trimmed is not from there.
fn base(directory: &Path) -> PathBuf {
    let mut content = vec![0; BASE_BYTES];
    blake3::Hasher::new_derive_key("rotifer test base").finalize_xof().fill(&mut content);
    let path = directory.join("base");
    fs::write(&path, content).unwrap();
    path
}

fn builder(base: &Path) -> VmBuilder {
    VmBuilder::new().memory_mib(256).debian().overlaid_drive("data", base)
}

/// What the guest's files are, read from its disk.
fn sums(vm: &Vm) -> String {
    vm.shell("sync; echo 3 > /proc/sys/vm/drop_caches; cd /tmp/disk && find . -type f | sort | xargs sha256sum")
}

/// Of the disk as a whole, which the guest does not use any more.
fn sum_of_disk(vm: &Vm) -> String {
    vm.shell("umount /tmp/disk && fsck.ext4 -fn /dev/vdb >&2 && sha256sum < /dev/vdb")
}

/// The number of pages of the disk that two snapshots differ in.
fn different_pages(before: &Path, after: &Path) -> u64 {
    let diff = ["snapshot", "diff", "--json"];
    let output = Command::new(Artifacts::find().vmm).args(diff).args([before, after]).output();
    let difference: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let images = difference["images"].as_array().unwrap();
    let disk = images.iter().find(|image| image["name"] != "ram").unwrap();
    let blocks = disk["blocks"].as_array().unwrap().iter();
    blocks.map(|block| block["pages"].as_array().unwrap().len() as u64).sum()
}

fn vmm(arguments: &[&str], snapshot: &Path) -> String {
    let output =
        Command::new(Artifacts::find().vmm).args(arguments).arg(snapshot).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_file_system_is_suspended_with_its_machine_and_goes_on_in_clones() {
    let directory = TempDir::new().unwrap();
    let base = base(directory.path());
    let before = blake3::hash(&fs::read(&base).unwrap());
    let [first, second, alone] = ["first", "second", "alone"].map(|name| {
        fs::create_dir(directory.path().join(name)).unwrap();
        directory.path().join(name).join("vm.snap")
    });

    // It writes, deletes and trims. mkfs has discarded the whole disk before.
    let mut vm = builder(&base).start();
    vm.wait_until_ready();
    vm.shell(
        "mkfs.ext4 -q /dev/vdb && mkdir -p /tmp/disk && mount /dev/vdb /tmp/disk && cd /tmp/disk \
         && head -c 4M /dev/urandom > kept && head -c 4M /dev/urandom > gone && sync \
         && rm gone && sync && fstrim /tmp/disk",
    );
    let kept = sums(&vm);
    vm.suspend(&first, "Full");
    vm.signal(libc::SIGKILL);
    drop(vm);
    let shown = vmm(&["snapshot", "inspect"], &first);
    assert!(shown.contains("(Disk), 32.0 MiB, of it ") && shown.contains(", base "), "{shown}");
    vmm(&["snapshot", "verify"], &first);

    // Another process with another overlay takes it up, and what it writes makes the next one.
    let vm = builder(&base).restore(&first);
    assert_eq!(sums(&vm), kept);
    vm.shell("head -c 1M /dev/urandom > /tmp/disk/more");
    let more = sums(&vm);
    vm.suspend(&second, "Diff");
    vm.signal(libc::SIGKILL);
    drop(vm);
    let pages = different_pages(&first, &second);
    println!("{pages} pages of the disk differ");
    assert!((256..400).contains(&pages), "{pages} pages for 256 of a file");

    // Two clones of it: one shares its memory, and each has a disk of its own.
    let pager = Pager::start();
    let clones = [builder(&base).restore_shared(&second, &pager), builder(&base).restore(&second)];
    let mut found = Vec::new();
    for (clone, name) in clones.iter().zip(["a", "b"]) {
        assert_eq!(sums(clone), more);
        clone.shell(&format!("yes {name} | head -c 100000 > /tmp/disk/own; rm /tmp/disk/more"));
        found.push(sums(clone));
    }
    assert_ne!(found[0], found[1]);
    assert_eq!(sums(&clones[0]), found[0], "the other one's writes are not seen");

    // One of them alone, without the snapshots that it comes from, and without what it goes on to write.
    clones[0].live_snapshot(&alone, "Full");
    clones[0].shell("yes later | head -c 4M > /tmp/disk/own; rm /tmp/disk/kept");
    assert_ne!(sums(&clones[0]), found[0], "it goes on");
    let refused = [&clones[1]].map(|clone| clone.overlay_path("data"));
    assert_refuses_what_is_not_its_own(&base, &second, &refused[0]);
    drop(clones);
    for gone in [&first, &second] {
        fs::remove_dir_all(gone.parent().unwrap()).unwrap();
    }
    let vm = builder(&base).restore(&alone);
    assert_eq!(sums(&vm), found[0]);
    sum_of_disk(&vm);
    drop(vm);
    assert_eq!(blake3::hash(&fs::read(&base).unwrap()), before, "nobody wrote the base");

    // Damage of a disk is an error where it is read, and never read as something else.
    damage_disks(alone.parent().unwrap());
    let vm = builder(&base).restore(&alone);
    vm.shell(
        "! dd if=/dev/vdb of=/dev/null iflag=direct bs=64k 2> /tmp/why && grep 'Input/output error' /tmp/why",
    );
    vm.messages.wait_for("the guest gets an I/O error");
}

/// A base that was changed, and the overlay of a living machine.
fn assert_refuses_what_is_not_its_own(base: &Path, snapshot: &Path, living: &Path) {
    let other = base.with_file_name("other");
    fs::copy(base, &other).unwrap();
    File::options().write(true).open(&other).unwrap().write_all_at(b"changed", PAGE_BYTES).unwrap();
    let mut vm = builder(&other).start_restore(snapshot);
    vm.wait_for_exit(ExitCode::Usage);
    let text = vm.messages.all();
    assert!(text.contains(other.to_str().unwrap()) && text.contains("its content"), "{text}");

    let directory = TempDir::new().unwrap();
    let mut config = builder(base).config(directory.path());
    config["drives"][1]["overlay_path"] = living.to_str().unwrap().into();
    let restore = ["--restore".as_ref(), snapshot.as_os_str()];
    let mut vm = Vm::start(&Artifacts::find(), directory, &config, &restore);
    vm.wait_for_exit(ExitCode::Usage);
    let text = vm.messages.all();
    assert!(text.contains(living.to_str().unwrap()) && text.contains("being used"), "{text}");
}
