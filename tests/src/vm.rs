//! A microVM under test: its configuration, its process, its sockets.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use rotifer_agent::client::AgentClient;
use rotifer_agent::exec::ExecRequest;
use rotifer_agent::process::Exit;
use rotifer_agent::process::spec::Capabilities;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Artifacts, Console, DEADLINE, Pager};

/// The port on which the agent serves, and on which it tells the host that it does.
const AGENT_PORT: u32 = 1024;

/// The VMM's exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ExitCode {
    PowerOff = 0,
    VmmFailure = 1,
    Usage = 2,
    Reset = 3,
    GuestPanic = 4,
}

/// A disk of the machine.
#[derive(Debug, Clone)]
pub struct Drive {
    /// Its name.
    pub id: &'static str,
    /// The raw file.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether each machine has an overlay of its own, in its directory.
    pub overlaid: bool,
}

/// Describes a machine.
#[derive(Debug, Clone)]
pub struct VmBuilder {
    artifacts: Artifacts,
    kernel: PathBuf,
    initramfs: Option<PathBuf>,
    vcpu_count: u64,
    mem_size_mib: u64,
    boot_args: String,
    drives: Vec<Drive>,
    interfaces: Vec<Value>,
}

impl Default for VmBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl VmBuilder {
    /// One vCPU, 128 MiB, our kernel, the agent in its initramfs, no disk.
    pub fn new() -> Self {
        let artifacts = Artifacts::find();
        Self {
            kernel: artifacts.kernel.clone(),
            initramfs: Some(artifacts.initramfs.clone()),
            artifacts,
            vcpu_count: 1,
            mem_size_mib: 128,
            boot_args: "quiet console=ttyS0 panic=-1".into(),
            drives: Vec::new(),
            interfaces: Vec::new(),
        }
    }

    /// A bare-metal guest in place of Linux.
    pub fn bare_metal(image: &Path, boot_args: &str) -> Self {
        Self { kernel: image.into(), initramfs: None, boot_args: boot_args.into(), ..Self::new() }
    }

    /// How many vCPUs.
    pub fn vcpus(mut self, count: u64) -> Self {
        self.vcpu_count = count;
        self
    }

    /// How much memory, in MiB.
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.mem_size_mib = mib;
        self
    }

    /// Nothing to start from: the kernel finds no root and panics.
    pub fn without_initramfs(mut self) -> Self {
        self.initramfs = None;
        self
    }

    /// More words for the kernel's command line.
    pub fn boot_args(mut self, words: &str) -> Self {
        self.boot_args = format!("{} {words}", self.boot_args);
        self
    }

    /// One more disk: /dev/vda, /dev/vdb, ...
    pub fn drive(mut self, id: &'static str, path: &Path, read_only: bool) -> Self {
        self.drives.push(Drive { id, path: path.into(), read_only, overlaid: false });
        self
    }

    /// One more disk that machines share and that each can write: what it writes goes to a file
    /// beside its sockets.
    pub fn overlaid_drive(mut self, id: &'static str, path: &Path) -> Self {
        self.drives.push(Drive { id, path: path.into(), read_only: false, overlaid: true });
        self
    }

    /// One more network interface: eth0, eth1, ...
    pub fn interface(mut self, tap: &str, mac: &str) -> Self {
        let id = format!("eth{}", self.interfaces.len());
        self.interfaces.push(json!({ "iface_id": id, "host_dev_name": tap, "guest_mac": mac }));
        self
    }

    /// The Debian disk, read-only, as the root.
    pub fn debian(self) -> Self {
        let path = self.artifacts.debian.clone();
        self.drive("root", &path, true).boot_args("rotifer.root=/dev/vda ro")
    }

    /// The configuration file's content, with its sockets and overlays in `directory`.
    pub fn config(&self, directory: &Path) -> Value {
        let drives: Vec<Value> = self
            .drives
            .iter()
            .map(|drive| {
                json!({
                    "drive_id": drive.id,
                    "path_on_host": drive.path,
                    "is_root_device": false,
                    "is_read_only": drive.read_only,
                    "overlay_path": drive.overlaid.then(|| overlay_path(directory, drive.id)),
                    "cache_type": "Writeback",
                })
            })
            .collect();
        json!({
            "boot-source": {
                "kernel_image_path": self.kernel,
                "initrd_path": self.initramfs,
                "boot_args": self.boot_args,
            },
            "drives": drives,
            "machine-config": { "vcpu_count": self.vcpu_count, "mem_size_mib": self.mem_size_mib },
            "vsock": { "guest_cid": 3, "uds_path": directory.join("v.sock") },
            "entropy": {},
            "network-interfaces": self.interfaces,
        })
    }

    /// Starts the VMM with a configuration file.
    ///
    /// # Panics
    /// If the host refuses.
    pub fn start(&self) -> Vm {
        self.launch(&[])
    }

    /// Has a new VMM take up the machine of a snapshot, with what this describes as its host.
    ///
    /// # Panics
    /// If the host refuses.
    pub fn start_restore(&self, snapshot: &Path) -> Vm {
        self.launch(&[OsStr::new("--restore"), snapshot.as_os_str()])
    }

    /// As [`Self::restore`], and what memory is touched is remembered.
    ///
    /// # Panics
    /// If the host refuses, or the VMM ends.
    pub fn restore_recording(&self, snapshot: &Path) -> Vm {
        let restore = [OsStr::new("--restore"), snapshot.as_os_str()];
        let vm = self.launch(&[&restore[..], &["--record-working-set".as_ref()]].concat());
        vm.messages.wait_for("the machine is restored");
        vm
    }

    /// As [`Self::restore`], and all memory is loaded before the guest runs.
    ///
    /// # Panics
    /// If the host refuses, or the VMM ends.
    pub fn restore_eagerly(&self, snapshot: &Path) -> Vm {
        let restore = [OsStr::new("--restore"), snapshot.as_os_str()];
        let vm = self.launch(&[&restore[..], &["--load-eagerly".as_ref()]].concat());
        vm.messages.wait_for("the machine is restored");
        vm
    }

    /// As [`Self::start_restore`], with memory that is shared through the host's pager.
    ///
    /// # Panics
    /// If the host refuses.
    pub fn start_restore_shared(&self, snapshot: &Path, pager: &Pager) -> Vm {
        let socket = pager.socket();
        let restore = [OsStr::new("--restore"), snapshot.as_os_str()];
        let share = [OsStr::new("--pager-sock"), socket.as_os_str()];
        self.launch(&[restore, share].concat())
    }

    /// As [`Self::restore`], with memory that is shared through the host's pager.
    ///
    /// # Panics
    /// If the host refuses, or the VMM ends.
    pub fn restore_shared(&self, snapshot: &Path, pager: &Pager) -> Vm {
        let vm = self.start_restore_shared(snapshot, pager);
        vm.messages.wait_for("the machine is restored");
        vm
    }

    /// As [`Self::restore`], with memory of which some is that of another snapshot, which the pager shares.
    ///
    /// # Panics
    /// If the host refuses, or the VMM ends.
    pub fn restore_upon(&self, snapshot: &Path, base: &Path, pager: &Pager) -> Vm {
        let socket = pager.socket();
        let restore = [OsStr::new("--restore"), snapshot.as_os_str()];
        let share = [OsStr::new("--pager-sock"), socket.as_os_str()];
        let base = [OsStr::new("--base"), base.as_os_str()];
        let vm = self.launch(&[restore, share, base].concat());
        vm.messages.wait_for("the machine is restored");
        vm
    }

    /// As [`Self::start_restore`], and waits until the machine is restored.
    ///
    /// # Panics
    /// If the host refuses, or the VMM ends.
    pub fn restore(&self, snapshot: &Path) -> Vm {
        let vm = self.start_restore(snapshot);
        vm.messages.wait_for("the machine is restored");
        vm
    }

    /// Has a new VMM take up the machine of a fork, as `PUT /fork` has described it; its memory comes
    /// through the pager, if there is one.
    ///
    /// # Panics
    /// If the host refuses.
    pub fn start_restore_fork(&self, fork: &Value, pager: Option<&Pager>) -> Vm {
        let socket = pager.map(Pager::socket);
        let path = |key: &str| OsStr::new(fork[key].as_str().expect("a fork has paths"));
        let mut arguments = vec![OsStr::new("--restore"), path("snapshot_path")];
        arguments.extend([OsStr::new("--host-file"), path("host_file_path")]);
        if let Some(socket) = &socket {
            arguments.extend([OsStr::new("--pager-sock"), socket.as_os_str()]);
        }
        self.launch(&arguments)
    }

    /// As [`Self::start_restore_fork`], and waits until the machine is restored.
    ///
    /// # Panics
    /// If the host refuses, or the VMM ends.
    pub fn restore_fork(&self, fork: &Value, pager: Option<&Pager>) -> Vm {
        let vm = self.start_restore_fork(fork, pager);
        vm.messages.wait_for("the machine is restored");
        vm
    }

    fn launch(&self, arguments: &[&OsStr]) -> Vm {
        let directory = TempDir::new().expect("make a temporary directory");
        let config = self.config(directory.path());
        Vm::start(&self.artifacts, directory, &config, arguments)
    }
}

/// A running VMM. Dropping it kills it.
pub struct Vm {
    child: Child,
    /// Readable when the process has ended.
    pid_fd: OwnedFd,
    stdin: Option<ChildStdin>,
    /// The guest's console.
    pub console: Console,
    /// The VMM's own messages.
    pub messages: Console,
    ready: UnixListener,
    directory: TempDir,
}

impl Vm {
    /// Starts a VMM whose sockets are in `directory`.
    ///
    /// # Panics
    /// If the host refuses.
    pub fn start(
        artifacts: &Artifacts,
        directory: TempDir,
        config: &Value,
        arguments: &[&OsStr],
    ) -> Self {
        let config_file = directory.path().join("vm.json");
        fs::write(&config_file, config.to_string()).expect("write the configuration");
        let config = [OsStr::new("--config-file"), config_file.as_os_str()];
        Self::spawn(artifacts, directory, &[&config[..], arguments].concat())
    }

    /// Starts a VMM without a machine, and has it load a snapshot as this body says.
    ///
    /// # Panics
    /// If the host or the VMM refuses.
    pub fn load(artifacts: &Artifacts, directory: TempDir, body: &Value) -> Self {
        let vm = Self::spawn(artifacts, directory, &[]);
        vm.messages.wait_for("the API listens");
        let (status, text) = vm.api("PUT", "/snapshot/load", Some(body));
        assert_eq!(status, 204, "{text}\n{}", vm.report());
        vm
    }

    fn spawn(artifacts: &Artifacts, directory: TempDir, arguments: &[&OsStr]) -> Self {
        let path = directory.path();
        let listener = UnixListener::bind(path.join(format!("v.sock_{AGENT_PORT}")));
        let mut child = Command::new(&artifacts.vmm)
            .arg("--api-sock")
            .arg(path.join("api.sock"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", artifacts.vmm.display()));
        Self {
            pid_fd: pid_fd(child.id()),
            stdin: child.stdin.take(),
            console: Console::collect(child.stdout.take().expect("stdout is piped")),
            messages: Console::collect(child.stderr.take().expect("stderr is piped")),
            child,
            ready: listener.expect("listen for the agent"),
            directory,
        }
    }

    /// Waits until the agent says that it serves, and returns a client of it.
    ///
    /// # Panics
    /// If the VMM ends or the deadline passes first.
    pub fn agent(&mut self) -> AgentClient {
        self.wait_until_ready();
        self.agent_client()
    }

    /// A further client of an agent that serves.
    pub fn agent_client(&self) -> AgentClient {
        AgentClient::over_vsock(self.vsock_path(), AGENT_PORT).with_timeout(DEADLINE)
    }

    /// Waits until the web app on the Debian disk listens.
    ///
    /// # Panics
    /// If its log ends before.
    pub fn await_web_app(&mut self) {
        let log = self.agent().logs(0, true).expect("follow the app's log");
        let mut lines = BufReader::new(log).lines().map(|line| line.expect("read the app's log"));
        assert!(lines.any(|line| line.contains("Listening at")), "{}", self.report());
    }

    /// Visits the web app; which visit it was.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn visit(&self) -> u64 {
        let mut tunnel = self.agent_client().tunnel("localhost:8080").expect("reach the web app");
        tunnel.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("ask the web app");
        let mut answer = String::new();
        tunnel.read_to_string(&mut answer).expect("read the web app's answer");
        let visits = answer
            .split_once("\r\n\r\n")
            .and_then(|(_, body)| serde_json::from_str::<Value>(body).ok()?["visits"].as_u64());
        visits.unwrap_or_else(|| panic!("{answer}\n{}", self.report()))
    }

    /// Runs a shell command in the guest, as a root that may do everything, and returns what it
    /// prints.
    ///
    /// # Panics
    /// If it fails or the agent does not answer.
    pub fn shell(&self, script: &str) -> String {
        let command = ["/bin/sh", "-c", script].map(String::from).to_vec();
        let capabilities = Some(Capabilities::All);
        let user = Some("root".into());
        let request = ExecRequest { command, user, capabilities, ..ExecRequest::default() };
        let done = self.agent_client().exec(&request);
        let done = done.unwrap_or_else(|error| panic!("{script}: {error}\n{}", self.report()));
        assert_eq!(
            done.report.exit,
            Exit::Code(0),
            "{script}\n{}{}\n{}",
            done.stdout,
            done.stderr,
            self.report()
        );
        done.stdout
    }

    /// Waits until the agent says that it serves.
    ///
    /// # Panics
    /// If the VMM ends or the deadline passes first.
    pub fn wait_until_ready(&mut self) {
        let (listener, process) = (self.ready.as_raw_fd(), self.pid_fd.as_raw_fd());
        match first_readable([listener, process]) {
            Some(0) => drop(self.ready.accept().expect("accept the agent's connection")),
            Some(_) => panic!("the VMM ended before the agent was ready\n{}", self.report()),
            None => panic!("the agent was not ready in time\n{}", self.report()),
        }
    }

    /// Waits for the VMM to end.
    ///
    /// # Panics
    /// If the deadline passes, or a signal ended it.
    pub fn wait(&mut self) -> i32 {
        if first_readable([self.pid_fd.as_raw_fd()]).is_none() {
            panic!("the VMM did not end in time\n{}", self.report());
        }
        let status = self.child.wait().expect("wait for a child");
        status.code().unwrap_or_else(|| panic!("the VMM died of {status}\n{}", self.report()))
    }

    /// Waits for the VMM to end with `expected`.
    ///
    /// # Panics
    /// If it ends otherwise or not at all.
    pub fn wait_for_exit(&mut self, expected: ExitCode) {
        let code = self.wait();
        assert_eq!(code, expected as i32, "the VMM's exit status\n{}", self.report());
    }

    /// Types on the console.
    ///
    /// # Panics
    /// If the VMM has closed its input.
    pub fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("the console is still open");
        writeln!(stdin, "{line}").expect("type on the console");
    }

    /// The names of the VMM's threads.
    ///
    /// # Panics
    /// If it has ended.
    pub fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("list threads");
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
        let names = tasks.map(|task| task.and_then(name).expect("read a thread's name"));
        names.map(|name| name.trim().to_owned()).collect()
    }

    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the VMM.
    ///
    /// # Panics
    /// If there is no such process any more.
    pub fn signal(&self, signal: i32) {
        // SAFETY: sends a signal to our own child, which has not been waited for.
        let result = unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        assert_eq!(result, 0, "signal the VMM: {}", io::Error::last_os_error());
    }

    /// CPU time that the VMM's threads have used, user and system together: first those that run
    /// the guest, then all others.
    ///
    /// # Panics
    /// If it has ended.
    pub fn cpu_times(&self) -> (Duration, Duration) {
        let (mut vcpus, mut others) = (Duration::ZERO, Duration::ZERO);
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        for task in tasks.expect("list the VMM's threads") {
            let path = task.expect("list the VMM's threads").path();
            let read =
                |name| fs::read_to_string(path.join(name)).expect("read a thread's CPU time");
            let time = if read("comm").starts_with("vcpu") { &mut vcpus } else { &mut others };
            // The first field: nanoseconds on a CPU.
            let stat = read("schedstat");
            let nanoseconds = stat.split(' ').next().and_then(|field| field.parse().ok());
            *time += Duration::from_nanos(nanoseconds.expect("a number of nanoseconds"));
        }
        (vcpus, others)
    }

    /// The overlay of a drive that has one.
    pub fn overlay_path(&self, id: &str) -> PathBuf {
        overlay_path(self.directory.path(), id)
    }

    /// The vsock device's Unix socket.
    pub fn vsock_path(&self) -> PathBuf {
        self.directory.path().join("v.sock")
    }

    /// The API's socket.
    pub fn api_path(&self) -> PathBuf {
        self.directory.path().join("api.sock")
    }

    /// Sends one request to the API socket; returns status and body.
    ///
    /// # Panics
    /// If the VMM does not answer.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, String) {
        api_request(&self.api_path(), method, path, body)
    }

    /// As [`Self::api`]; none if the VMM hangs up without an answer.
    ///
    /// # Panics
    /// If nobody listens.
    pub fn try_api(&self, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, String)> {
        let mut stream = send_request(&self.api_path(), method, path, body);
        try_read_response(&mut stream)
    }

    /// Waits until a signal has ended the VMM.
    ///
    /// # Panics
    /// If it ends otherwise, or the deadline passes.
    pub fn await_death(&mut self) {
        let is_over = first_readable([self.pid_fd.as_raw_fd()]).is_some();
        assert!(is_over, "the VMM did not end in time\n{}", self.report());
        let status = self.child.wait().expect("wait for a child");
        assert_eq!(status.code(), None, "the VMM ended by itself: {status}\n{}", self.report());
    }

    /// Pauses the machine and writes a snapshot of it to `snapshot`, its memory into that file's
    /// directory. The machine stays paused.
    ///
    /// # Panics
    /// If the VMM refuses.
    pub fn suspend(&self, snapshot: &Path, kind: &str) {
        let create = json!({
            "snapshot_path": snapshot,
            "mem_file_path": snapshot.parent(),
            "snapshot_type": kind,
        });
        for (method, path, body) in
            [("PATCH", "/vm", json!({ "state": "Paused" })), ("PUT", "/snapshot/create", create)]
        {
            let (status, text) = self.api(method, path, Some(&body));
            assert_eq!(status, 204, "{method} {path}: {text}\n{}", self.report());
        }
    }

    /// Writes a snapshot of the running machine as [`Self::suspend`] does.
    ///
    /// # Panics
    /// If the VMM refuses.
    pub fn live_snapshot(&self, snapshot: &Path, kind: &str) {
        let create = json!({
            "snapshot_path": snapshot,
            "mem_file_path": snapshot.parent(),
            "snapshot_type": kind,
            "live": true,
        });
        let (status, text) = self.api("PUT", "/snapshot/create", Some(&create));
        assert_eq!(status, 204, "{text}\n{}", self.report());
    }

    /// Has the VMM hold a fork of the machine; what it says of it.
    ///
    /// # Panics
    /// If the VMM refuses.
    pub fn fork(&self) -> Value {
        let (status, text) = self.api("PUT", "/fork", None);
        assert_eq!(status, 200, "{text}\n{}", self.report());
        serde_json::from_str(&text).expect("a fork is described in JSON")
    }

    /// What a failed assertion shows.
    pub fn report(&self) -> String {
        format!("--- console\n{}\n--- VMM\n{}", self.console.tail(), self.messages.tail())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Either it has ended already, or the test is over.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn overlay_path(directory: &Path, id: &str) -> PathBuf {
    directory.join(format!("{id}.overlay"))
}

fn pid_fd(pid: u32) -> OwnedFd {
    // SAFETY: asks the kernel for a new descriptor, which becomes ours alone.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0);
        assert!(fd >= 0, "open a pidfd: {}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd as RawFd)
    }
}

/// Waits until one of `fds` is readable; the first such, or none if the deadline passes.
fn first_readable<const N: usize>(fds: [RawFd; N]) -> Option<usize> {
    let mut polled = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: `polled` is an array of N entries that lives across the call.
    let count = unsafe { libc::poll(polled.as_mut_ptr(), N as u64, DEADLINE.as_millis() as i32) };
    assert!(count >= 0, "poll: {}", io::Error::last_os_error());
    polled.iter().position(|fd| fd.revents != 0)
}

/// One HTTP request over a Unix socket; returns status and body.
///
/// # Panics
/// If nobody answers.
pub fn api_request(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> (u16, String) {
    let mut stream = send_request(socket, method, path, body);
    try_read_response(&mut stream).expect("the VMM hung up in the middle of an answer")
}

fn send_request(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("connect to the API socket");
    stream.set_read_timeout(Some(DEADLINE)).expect("set a deadline");
    let body = body.map_or(String::new(), Value::to_string);
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("send a request");
    stream
}

/// Status and body; none if the other side hangs up before.
fn try_read_response(stream: &mut UnixStream) -> Option<(u16, String)> {
    let mut response = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&response);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
            let length = head
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .and_then(|(_, value)| value.trim().parse().ok())
                .unwrap_or(0_usize);
            if body.len() >= length {
                return Some((status.expect("a status line"), body.to_owned()));
            }
        }
        let count = match stream.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
            count => count.expect("read the answer"),
        };
        if count == 0 {
            return None;
        }
        response.extend_from_slice(&buffer[..count]);
    }
}

/// A line of a process's memory: `Pss`, `Anonymous`, ...; in KiB.
///
/// # Panics
/// If it has ended, or there is no such line.
pub fn memory_kib(process: u32, name: &str) -> u64 {
    let path = format!("/proc/{process}/smaps_rollup");
    let text = fs::read_to_string(path).expect("read what a process has of memory");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// A sparse file of `bytes` zeroes.
///
/// # Panics
/// If the host refuses.
pub fn empty_disk(path: &Path, bytes: u64) {
    let file = File::create(path).expect("create a disk");
    file.set_len(bytes).expect("size a disk");
}
