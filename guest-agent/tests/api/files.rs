//! Files up, down, listed and deleted.

use crate::support::{DEADLINE, TestAgent, fifo, refusal};
use rotifer_agent::client::AgentClient;
use rotifer_agent::limits::LIST_PAGE_MAX_COUNT;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

fn put(agent: &TestAgent, path: &Path, options: &str, content: &[u8]) {
    agent.client.put_file(path, options, content, content.len() as u64).unwrap();
}

fn get(agent: &TestAgent, path: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    agent.client.get_file(path, &mut content).unwrap();
    content
}

#[test]
fn a_file_comes_back_as_it_was_sent_with_its_mode() {
    let agent = TestAgent::start();
    let path = agent.path("a/b/c d%&=.bin");
    let content: Vec<u8> = (0..=255).cycle().take(700_001).collect();
    put(&agent, &path, "mode=750&mkdir=true", &content);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o750);
    assert!(get(&agent, &path) == content);
    assert_eq!(agent.client.stat(&path).unwrap()["mode"], "0750");
    put(&agent, &path, "sync=true", b"");
    assert!(get(&agent, &path).is_empty());
}

#[test]
fn an_upload_that_breaks_off_leaves_the_old_file_and_nothing_else() {
    let agent = TestAgent::start();
    let directory = agent.path("files");
    let path = directory.join("file");
    put(&agent, &path, "mkdir=true", b"old");
    let mut socket = UnixStream::connect(agent.socket()).unwrap();
    let target = format!("/v1/files?path={}", path.display());
    let head = format!("PUT {target} HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n");
    socket.write_all(head.as_bytes()).unwrap();
    socket.write_all(&[b'n'; 500_000]).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    // The agent closes when it has cleaned up.
    let _ = socket.read_to_end(&mut Vec::new());
    assert_eq!(get(&agent, &path), b"old");
    let names: Vec<_> = std::fs::read_dir(&directory).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn a_range_is_a_part_of_the_file() {
    let agent = TestAgent::start();
    let path = agent.path("digits");
    put(&agent, &path, "", b"0123456789");
    let target = format!("/v1/files?path={}", path.display());
    let range = |range: &str| agent.client.request("GET", &target, &[("range", range)], b"");
    let part = range("bytes=3-5").unwrap();
    assert_eq!(part.status, 206);
    assert_eq!(part.header("content-range"), Some("bytes 3-5/10"));
    assert_eq!(part.text().unwrap(), "345");
    assert_eq!(range("bytes=-2").unwrap().text().unwrap(), "89");
    assert_eq!(refusal(range("bytes=10-")), (416, "bad_range".into()));
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let agent = TestAgent::start();
    let pipe = agent.path("pipe");
    fifo(&pipe);
    let read = |path: &Path| refusal(agent.client.get_file(path, std::io::sink()));
    assert_eq!(read(&pipe), (409, "not_a_file".into()));
    assert_eq!(read(Path::new("/dev/zero")), (409, "not_a_file".into()));
    assert_eq!(read(Path::new("/usr")), (409, "is_a_directory".into()));
    assert_eq!(read(&agent.path("absent")), (404, "not_found".into()));
    let write = |path: &Path| refusal(agent.client.put_file(path, "", &b"x"[..], 1));
    assert_eq!(write(agent.directory.path()), (409, "is_a_directory".into()));
    assert_eq!(write(&agent.path("no/such/directory")), (404, "not_found".into()));
    assert_eq!(write(Path::new("/")), (400, "bad_path".into()));
    let mode = agent.client.put_file(&agent.path("f"), "mode=99999", &b"x"[..], 1);
    assert_eq!(refusal(mode), (400, "bad_request".into()));
}

#[test]
fn files_of_the_kernel_that_claim_to_be_empty_are_read_to_their_end() {
    let agent = TestAgent::start();
    let content = get(&agent, Path::new("/proc/self/status"));
    assert!(content.starts_with(b"Name:"));
}

#[test]
fn a_directory_is_listed_page_by_page_whatever_its_names() {
    let agent = TestAgent::start();
    let directory = agent.path("many");
    std::fs::create_dir(&directory).unwrap();
    for number in 0..25 {
        std::fs::write(directory.join(format!("file {number:02}")), "x").unwrap();
    }
    std::fs::write(directory.join(OsStr::from_bytes(b"odd\xff&name")), "odd").unwrap();
    std::os::unix::fs::symlink("file 00", directory.join("link")).unwrap();
    let mut names = Vec::new();
    let mut options = "limit=10".to_owned();
    loop {
        let page = agent.client.list(&directory, &options).unwrap();
        for entry in page["entries"].as_array().unwrap() {
            names.push(entry["name"].as_str().unwrap().to_owned());
            if entry["name"] == "link" {
                assert_eq!((&entry["kind"], &entry["target"]), (&"link".into(), &"file 00".into()));
            }
            if let Some(encoded) = entry["encoded_name"].as_str() {
                let target = format!("/v1/files?path={}/{encoded}", directory.display());
                let odd = agent.client.request("GET", &target, &[], b"").unwrap();
                assert_eq!(odd.text().unwrap(), "odd");
            }
        }
        match page["next"].as_str() {
            Some(next) => options = format!("limit=10&after={next}"),
            None => break,
        }
    }
    assert_eq!(names.len(), 27);
    assert!(names.is_sorted());
    let limit = format!("limit={}", LIST_PAGE_MAX_COUNT + 1);
    assert_eq!(refusal(agent.client.list(&directory, &limit)), (400, "bad_request".into()));
}

#[test]
fn a_full_directory_is_deleted_only_when_asked_for() {
    let agent = TestAgent::start();
    let directory = agent.path("full");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("file"), "x").unwrap();
    let target = format!("/v1/files?path={}", directory.display());
    let plain = agent.client.request("DELETE", &target, &[], b"");
    assert_eq!(refusal(plain), (409, "not_empty".into()));
    agent.client.delete_file(&directory).unwrap();
    assert!(!directory.exists());
    assert_eq!(refusal(agent.client.delete_file(&directory)), (404, "not_found".into()));
    let root = agent.client.request("DELETE", "/v1/files?path=/&recursive=true", &[], b"");
    assert_eq!(refusal(root), (403, "forbidden".into()));
}

/// Asked for while the test runs: a wrapper around the compiler may be a shell script, and shells
/// drop variables with a hyphen in their name.
fn program() -> PathBuf {
    let beside_the_test = || {
        let test = std::env::current_exe().unwrap();
        test.ancestors().nth(2).unwrap().join("rotifer-agent")
    };
    std::env::var_os("CARGO_BIN_EXE_rotifer-agent").map_or_else(beside_the_test, PathBuf::from)
}

/// The real program, so that its memory is its own.
struct Program {
    child: Child,
    client: AgentClient,
}

impl Program {
    fn start(directory: &Path) -> Self {
        let socket = directory.join("program.sock");
        let child = Command::new(program()).arg("--listen").arg(&socket).spawn().unwrap();
        let watch =
            nix::sys::inotify::Inotify::init(nix::sys::inotify::InitFlags::empty()).unwrap();
        watch.add_watch(directory, nix::sys::inotify::AddWatchFlags::IN_CREATE).unwrap();
        if !socket.exists() {
            watch.read_events().unwrap();
        }
        let client = AgentClient::over_unix(socket).with_timeout(DEADLINE);
        Self { child, client }
    }

    fn peak_memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_hundred_mebibytes_pass_both_ways_in_bounded_memory() {
    const SIZE_BYTES: u64 = 100 * 1024 * 1024;
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path());
    let path = directory.path().join("large");
    let source = std::io::repeat(b'r').take(SIZE_BYTES);
    program.client.put_file(&path, "", source, SIZE_BYTES).unwrap();
    assert_eq!(program.client.get_file(&path, std::io::sink()).unwrap(), SIZE_BYTES);
    let peak_kib = program.peak_memory_kib();
    assert!(peak_kib < 16 * 1024, "{peak_kib} KiB");
    println!("peak memory of the agent: {peak_kib} KiB");
}

#[test]
fn the_program_refuses_wrong_arguments_and_busy_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| Command::new(program()).args(arguments).output().unwrap();
    assert_eq!(run(&["--nonsense"]).status.code(), Some(2));
    assert!(String::from_utf8_lossy(&run(&["--version"]).stdout).starts_with("rotifer-agent "));
    let busy = directory.path().join("busy");
    std::fs::write(&busy, "").unwrap();
    let refused = run(&["--listen", busy.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("busy"));
}
