//! A machine is suspended, its process killed, and another process takes it up again.
//!
//! hosts: gicv3, gicv2, 16k, sve
#![cfg(target_arch = "aarch64")]

use std::path::Path;

use rotifer_tests::{
    ExitCode, Vm, copy_snapshot, damage_packs, pack_sizes, place, web_app, web_app_snapshot,
};

/// Suspends the machine, kills its process, and restores it.
fn suspend_and_restore(vm: Vm, vcpus: u64, snapshot: &Path, kind: &str) -> Vm {
    vm.suspend(snapshot, kind);
    vm.signal(libc::SIGKILL);
    drop(vm);
    web_app().vcpus(vcpus).restore(snapshot)
}

/// A process of the guest that is in the middle of everything that a suspend could break: it counts,
/// writes a file, talks to itself over TCP, sleeps, and reads random numbers, and says each second
/// what it has done.
const BUSY: &str = r#"
import os, socket, threading, time
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer, _ = server.accept()
threading.Thread(target=lambda: [peer.sendall(data) for data in iter(lambda: peer.recv(64), b"")]).start()
woken = []
threading.Thread(target=lambda: (time.sleep(5), woken.append(time.monotonic()))).start()
log = open("/tmp/busy.log", "a+")
seen, count, last = set(), 0, 0.0
while True:
    count += 1
    client.sendall(b"%063d\n" % count)
    data = b""
    while len(data) < 64:
        data += client.recv(64 - len(data))
    assert int(data) == count, data
    now = time.monotonic()
    assert now >= last, (now, last)
    number = os.urandom(16)
    assert number not in seen
    seen.add(number)
    log.write("%d\n" % count)
    log.flush()
    log.seek(0)
    assert sum(1 for _ in log) == count
    if now - last >= 0.2 or count == 1:
        with open("/tmp/busy.new", "w") as status:
            status.write("%d %d\n" % (count, len(woken)))
        os.rename("/tmp/busy.new", "/tmp/busy")
        last = now
    time.sleep(0.05)
"#;

#[test]
fn a_guest_in_the_middle_of_everything_goes_on_with_1_2_and_4_vcpus() {
    for vcpus in [1, 2, 4] {
        let (_directory, snapshot) = place();
        let mut vm = web_app().vcpus(vcpus).start();
        vm.await_web_app();
        let script = BUSY.as_bytes();
        let length = script.len() as u64;
        vm.agent_client().put_file(Path::new("/tmp/busy.py"), "", script, length).unwrap();
        vm.shell("python3 /tmp/busy.py > /tmp/busy.err 2>&1 & true");
        vm.shell("while [ ! -e /tmp/busy ]; do sleep 0.1; done");
        let count = |vm: &Vm| -> u64 {
            let status = vm.shell("cat /tmp/busy.err >&2; cut -d ' ' -f 1 /tmp/busy");
            status.trim().parse().unwrap()
        };
        let before = count(&vm);
        assert_eq!((vm.visit(), vm.visit()), (1, 2));
        let vm = suspend_and_restore(vm, vcpus, &snapshot, "Full");
        // It goes on counting, and its timer rings.
        vm.shell(&format!(
            "while read count woken < /tmp/busy; [ $count -lt {} ] || [ $woken = 0 ]; do \
             pgrep -f [b]usy.py > /dev/null || exit 1; sleep 0.1; done",
            before + 20
        ));
        assert_eq!(vm.shell("cat /tmp/busy.err"), "", "with {vcpus} vCPUs");
        assert_eq!(vm.visit(), 3, "the app counts on");
        assert_eq!(vm.shell("nproc").trim(), vcpus.to_string());
    }
}

#[test]
fn a_second_suspend_writes_only_what_has_changed() {
    let first = web_app_snapshot();
    let (directory, second) = place();
    let vm = web_app().restore(first);
    vm.shell("head -c 4194304 /dev/urandom > /tmp/changed");
    let sum = vm.shell("sha256sum < /tmp/changed");
    let vm = suspend_and_restore(vm, 1, &second, "Diff");
    assert_eq!(vm.shell("sha256sum < /tmp/changed"), sum);
    assert_eq!(vm.visit(), 2);
    let [small] = pack_sizes(directory.path())[..] else { panic!("one pack") };
    let [large] = pack_sizes(first.parent().unwrap())[..] else { panic!("one pack") };
    assert!(small > 4 << 20 && small < large / 2, "{small} and {large} bytes");
    drop(vm);
    // The first one is as it was, also for one that has all of it before it runs: nobody serves it.
    let vm = web_app().restore_eagerly(first);
    assert!(!vm.threads().iter().any(|name| name == "pager"), "{:?}", vm.threads());
    assert!(vm.agent_client().stat(Path::new("/tmp/changed")).is_err());
    vm.shell("echo eager > /tmp/changed");
    let third = directory.path().join("third.snap");
    let vm = suspend_and_restore(vm, 1, &third, "Diff");
    assert!(vm.threads().iter().any(|name| name == "pager"), "{:?}", vm.threads());
    assert_eq!(vm.shell("cat /tmp/changed"), "eager\n");
    let [smallest, _] = pack_sizes(directory.path())[..] else { panic!("two packs") };
    assert!(smallest < small, "{smallest} bytes");
}

#[test]
fn clones_of_one_snapshot_live_side_by_side_and_draw_different_numbers() {
    let clones = [(); 3].map(|()| web_app().restore(web_app_snapshot()));
    let mut numbers = Vec::new();
    for clone in &clones {
        assert_eq!(clone.visit(), 2);
        numbers.push(clone.shell("head -c 16 /dev/urandom | sha256sum"));
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), clones.len(), "clones drew the same random numbers");
}

#[test]
fn a_damaged_snapshot_ends_the_vmm_with_a_message_and_is_never_read_as_zeroes() {
    let (directory, snapshot) = place();
    copy_snapshot(web_app_snapshot().parent().unwrap(), directory.path());
    damage_packs(directory.path());
    let mut vm = web_app().start_restore(&snapshot);
    vm.wait_for_exit(ExitCode::VmmFailure);
    assert!(vm.messages.all().contains("digest"), "{}", vm.report());
}
