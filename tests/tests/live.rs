//! Snapshots and forks of machines that go on.
//!
//! hosts: gicv3, 16k
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use rotifer_tests::{Artifacts, ExitCode, Pager, Vm, VmBuilder, memory_kib, pack_sizes, place};
use serde_json::{Value, json};

fn builder() -> VmBuilder {
    VmBuilder::new().memory_mib(512).vcpus(2).debian()
}

/// A Debian guest whose web app listens.
fn start() -> Vm {
    let mut vm = builder().start();
    vm.await_web_app();
    vm
}

/// Writes every page of 8 MiB with the number of the round, and ends when one has another number than
/// that of the round before: memory that is not of one moment is found, and a clock that goes back.
const ROUNDS: &str = r#"
import mmap, os, time
pages = mmap.mmap(-1, 8 << 20)
count, last = 0, 0.0
while True:
    count += 1
    before, after = (count - 1).to_bytes(8, "little"), count.to_bytes(8, "little")
    for at in range(0, len(pages), 4096):
        assert pages[at:at + 8] == before, (at, count, pages[at:at + 8])
        pages[at:at + 8] = after
    now = time.monotonic()
    assert now >= last, (now, last)
    last = now
    with open("/tmp/rounds.new", "w") as status:
        status.write("%d\n" % count)
    os.rename("/tmp/rounds.new", "/tmp/rounds")
"#;

fn start_rounds(vm: &Vm) {
    let script = ROUNDS.as_bytes();
    let length = script.len() as u64;
    vm.agent_client().put_file(Path::new("/tmp/rounds.py"), "", script, length).unwrap();
    vm.shell("python3 /tmp/rounds.py > /tmp/rounds.err 2>&1 & true");
    vm.shell("while [ ! -e /tmp/rounds ]; do sleep 0.1; done");
}

/// Waits until five more rounds have gone well; which one it was at the beginning.
fn more_rounds(vm: &Vm) -> u64 {
    let begin = vm.shell(
        "read begin < /tmp/rounds; echo $begin; \
         while read now < /tmp/rounds; [ $now -lt $((begin + 5)) ]; do \
         pgrep -f [r]ounds.py > /dev/null || { cat /tmp/rounds.err >&2; exit 1; }; sleep 0.1; done",
    );
    begin.trim().parse().unwrap()
}

/// Leaves the host's CPUs to others. (The shell's own command line must not match.)
fn stop_rounds(vm: &Vm) {
    vm.shell("pkill -f [r]ounds.py");
}

/// A visit of the web app that is begun, and has not been answered.
struct Visit(Box<dyn ReadWrite>);

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

impl Visit {
    fn begin(vm: &Vm) -> Self {
        let mut tunnel = vm.agent_client().tunnel("localhost:8080").unwrap();
        tunnel.write_all(b"GET / HTTP/1.0\r\n").unwrap();
        Self(Box::new(tunnel))
    }

    /// Over the same connection; which visit it was.
    fn end(mut self) -> u64 {
        self.0.write_all(b"Host: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        self.0.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str::<Value>(body).unwrap()["visits"].as_u64().unwrap()
    }
}

fn is_running(vm: &Vm) -> bool {
    let (_, text) = vm.api("GET", "/", None);
    serde_json::from_str::<Value>(&text).unwrap()["state"] == "Running"
}

/// Lets a process have this much more address space than it has, or all it wants.
fn limit_memory(vm: &Vm, more: Option<u64>) {
    let pid = vm.pid() as libc::pid_t;
    let limit = more.map_or(libc::RLIM_INFINITY, |more| {
        let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
        let pages: u64 = text.split(' ').next().unwrap().parse().unwrap();
        // SAFETY: asks for a number.
        pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64 + more
    });
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is read, and nothing is written.
    let result =
        unsafe { libc::prlimit(pid, libc::RLIMIT_AS, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// How many files of forks a process has open.
fn fork_files(process: u32) -> usize {
    let links = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let links = links.filter_map(|link| fs::read_link(link.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().contains("rotifer-fork")).count()
}

#[test]
fn a_live_snapshot_is_of_one_moment_and_the_machine_goes_on() {
    let (directory, first) = place();
    let second = directory.path().join("second.snap");
    let vm = start();
    start_rounds(&vm);
    let visit = Visit::begin(&vm);
    vm.live_snapshot(&first, "Full");
    assert!(is_running(&vm));
    assert_eq!(visit.end(), 1, "over a connection that was open before");
    let rounds = more_rounds(&vm);

    vm.shell("head -c 4194304 /dev/urandom > /tmp/changed");
    let sum = vm.shell("sha256sum < /tmp/changed");
    vm.live_snapshot(&second, "Diff");
    let [small, large] = pack_sizes(directory.path())[..] else { panic!("two packs") };
    assert!(small > 12 << 20 && small < large / 2, "{small} and {large} bytes");

    // Without memory for a copy there is no snapshot, and nothing else is missing.
    limit_memory(&vm, Some(16 << 20));
    let none = directory.path().join("none.snap");
    let body = json!({"snapshot_path": none, "mem_file_path": directory.path(), "live": true});
    for (path, body) in [("/snapshot/create", Some(&body)), ("/fork", None)] {
        let (status, text) = vm.api("PUT", path, body);
        assert!(status == 400 && text.contains("make room for a copy of"), "{text}");
    }
    limit_memory(&vm, None);
    assert!(!none.exists() && is_running(&vm));
    assert!(more_rounds(&vm) > rounds);
    assert_eq!(vm.visit(), 2);
    drop(vm);

    for (snapshot, visits, has_file) in [(&first, 1, false), (&second, 2, true)] {
        let vm = builder().restore(snapshot);
        more_rounds(&vm);
        assert_eq!(vm.visit(), visits);
        assert_eq!(vm.agent_client().stat(Path::new("/tmp/changed")).is_ok(), has_file);
        if has_file {
            assert_eq!(vm.shell("sha256sum < /tmp/changed"), sum);
            // A restored machine has not loaded everything: the rest comes from the packs.
            let third = directory.path().join("third.snap");
            vm.live_snapshot(&third, "Full");
            drop(vm);
            fs::remove_file(&first).unwrap();
            let vm = builder().restore(&third);
            more_rounds(&vm);
            assert_eq!(vm.shell("sha256sum < /tmp/changed"), sum);
        }
    }
}

#[test]
fn children_of_a_fork_go_on_from_its_moment_whatever_becomes_of_the_parent() {
    let (directory, snapshot) = place();
    let first = start();
    assert_eq!(first.visit(), 1);
    first.suspend(&snapshot, "Full");
    drop(first);
    let pager = Pager::start();
    let parent = builder().restore_shared(&snapshot, &pager);
    start_rounds(&parent);
    assert_eq!(parent.visit(), 2);
    let visit = Visit::begin(&parent);
    let fork = parent.fork();
    assert_eq!(visit.end(), 3, "over a connection that was open before");
    let held = fork["held_bytes"].as_u64().unwrap();
    let image = pack_sizes(directory.path())[0];
    assert!(held > 8 << 20 && held < image, "{held} bytes are held, of an image of {image}");
    assert_eq!(fork_files(parent.pid()), 3);

    let children: Vec<_> = (0..3).map(|_| builder().restore_fork(&fork, Some(&pager))).collect();
    let mut numbers = vec![parent.shell("head -c 16 /dev/urandom | sha256sum")];
    stop_rounds(&parent);
    for (child, visits) in children.iter().zip(1..) {
        more_rounds(child);
        stop_rounds(child);
        let last = (0..visits).fold(0, |_, _| child.visit());
        assert_eq!(last, 2 + visits, "each goes on from the fork, and on its own");
        numbers.push(child.shell("head -c 16 /dev/urandom | sha256sum"));
        let own_kib = memory_kib(child.pid(), "Anonymous");
        assert!(own_kib < image >> 10, "{own_kib} KiB are the child's own, of {image} bytes");
    }
    assert_eq!(parent.visit(), 4);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 4, "parent and children drew the same random numbers");

    // One that shares nothing, and one of a child that is forked as a person does it.
    let alone = builder().restore_fork(&fork, None);
    let socket = children[2].api_path();
    let asked = |words: &[&str]| {
        let mut command = Command::new(Artifacts::find().vmm);
        let output = command.args(["fork", "--api-sock"]).arg(&socket).args(words).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let grandfork: Value = serde_json::from_str(&asked(&["--json"])).unwrap();
    let grandchild = builder().restore_fork(&grandfork, Some(&pager));
    assert_eq!(grandchild.visit(), 6);
    asked(&["--end", "1"]);
    assert_eq!(asked(&["--list"]).trim(), "no fork is held");

    let (status, text) = parent.api("DELETE", "/fork/1", None);
    assert_eq!((status, fork_files(parent.pid())), (204, 0), "{text}");
    drop((parent, pager));
    let mut late = builder().start_restore_fork(&fork, None);
    late.wait_for_exit(ExitCode::Usage);
    assert!(late.messages.all().contains("read the host file /proc/"), "{}", late.report());
    // It has the fork open, and loads of it what it has not touched yet.
    more_rounds(&alone);
    assert_eq!(alone.visit(), 3);
    let kept = directory.path().join("kept.snap");
    alone.suspend(&kept, "Diff");
    drop((alone, children, grandchild));
    let vm = builder().restore(&kept);
    more_rounds(&vm);
    assert_eq!(vm.visit(), 4, "what it wrote needs no memory of its parent");
}
