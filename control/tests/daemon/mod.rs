//! A daemon on a directory of its own, and clients that know where it is.

#![expect(clippy::unwrap_used, reason = "a harness of tests")]
#![allow(dead_code, reason = "each test uses some of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How long any single event may take.
const DEADLINE: Duration = Duration::from_secs(300);

/// A running `rotifer serve`; killed when dropped.
pub struct Daemon {
    child: Child,
    directory: tempfile::TempDir,
    disk: Option<SmallDisk>,
    variables: BTreeMap<String, String>,
}

/// A disk in memory, seen by those only who are run there.
pub struct SmallDisk {
    /// Whose namespaces it is in.
    holder: Child,
}

impl SmallDisk {
    fn mount(directory: &Path, size: &str) -> Self {
        let script =
            format!("mount -t tmpfs -o size={size} tmpfs \"$0\" && echo ready && exec cat");
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).arg(directory);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "this user may not make user namespaces");
        Self { holder }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _is_gone = self.holder.kill();
        let _is_gone = self.holder.wait();
    }
}

impl Daemon {
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), None)
    }

    /// One with settings of its own. Its directory has these files, too.
    pub fn start_with(settings: &str, files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files.iter().chain(&[("settings.json", settings)]) {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        Self::start_in(directory, None)
    }

    /// One whose state is on a disk of its own, of a size that `mount` understands.
    pub fn start_on_a_disk_of(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let disk = SmallDisk::mount(&state, size);
        Self::start_in(directory, Some(disk))
    }

    fn start_in(directory: tempfile::TempDir, disk: Option<SmallDisk>) -> Self {
        let there = |command: Command| inside(disk.as_ref(), command);
        let mut command = Self::command(&directory.path().join("state"));
        let settings = directory.path().join("settings.json");
        if settings.exists() {
            command.arg("--config").arg(settings);
        }
        // Daemons of tests reach each other without it.
        let mut command = there(command);
        // Nobody on the way knows the daemons of a test.
        command.env("NO_PROXY", "127.0.0.1");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (said, heard) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _nobody_listens = said.send(line);
            }
        });
        let mut endpoint = String::new();
        loop {
            let line = heard.recv_timeout(DEADLINE).expect("the daemon says that it is ready");
            if let Some(said) = line.strip_prefix("endpoint ") {
                endpoint = said.trim().to_owned();
            }
            if line.starts_with("for a shell") {
                break;
            }
        }
        let mut env = Command::new(env!("CARGO_BIN_EXE_rotifer"));
        env.arg("env").arg("--state").arg(directory.path().join("state"));
        let shell = succeed(there(env));
        let exports =
            shell.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        let mut variables: BTreeMap<String, String> =
            exports.map(|(name, value)| (name.into(), value.trim_matches('\'').into())).collect();
        if disk.is_some() {
            // When that is full, the file that `rotifer env` reads is still that of the daemon before.
            variables.insert("AWS_ENDPOINT_URL".into(), endpoint);
        }
        Self { child, directory, disk, variables }
    }

    /// A daemon that is not started yet.
    pub fn command(state: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rotifer"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--state"]).arg(state);
        command
    }

    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// A file of the test.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command line of the AWS CLI.
    pub fn aws(&self, line: &str) -> Command {
        let mut command = self.client("aws");
        command.args(line.split_whitespace());
        command
    }

    /// A script of `tests/python`.
    pub fn python(&self, script: &str) -> Command {
        let mut command = self.client("python");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script));
        command
    }

    fn client(&self, program: &str) -> Command {
        let python = std::env::var_os("ROTIFER_PYTHON");
        let python = python.expect("ROTIFER_PYTHON is set by ./x test, which installs the clients");
        let command = Command::new(Path::new(&python).join("bin").join(program));
        let mut command = inside(self.disk.as_ref(), command);
        // Nothing of the user's own configuration.
        command.env_clear().env("HOME", self.directory.path()).env("AWS_PAGER", "");
        command.env("PATH", "/usr/bin:/bin").env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("PYTHONDONTWRITEBYTECODE", "1").envs(&self.variables);
        command
    }

    pub fn kill_and_start_again(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.start_again()
    }

    fn start_again(mut self) -> Self {
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        let disk = self.disk.take();
        Self::start_in(directory, disk)
    }

    /// Ends it as an operator does, which has to succeed.
    pub fn stop(mut self) {
        self.end();
    }

    /// The same, and starts it again after something else was done.
    pub fn stop_and_start_again(mut self, meanwhile: impl FnOnce(&Self)) -> Self {
        self.end();
        meanwhile(&self);
        self.start_again()
    }

    fn end(&mut self) {
        let kill = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(kill.success());
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "the daemon ended with {status}");
                return;
            }
            assert!(Instant::now() < end, "the daemon does not end");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _is_gone = self.child.kill();
        let _is_gone = self.child.wait();
    }
}

/// The same command, run where a disk is seen.
fn inside(disk: Option<&SmallDisk>, command: Command) -> Command {
    let Some(disk) = disk else { return command };
    let mut inside = Command::new("nsenter");
    inside.args(["--user", "--mount", "--preserve-credentials", "--target"]);
    inside.arg(disk.holder.id().to_string()).arg("--wd=/");
    inside.arg(command.get_program()).args(command.get_args());
    inside
}

/// Runs a command that has to succeed within the deadline; the result is its output.
pub fn succeed(command: Command) -> String {
    let shown = format!("{command:?}");
    let (status, output, error) = output(command);
    assert!(status.success(), "{shown}: {status}\n{output}{error}");
    output
}

/// Runs a command that has to end within the deadline.
pub fn output(mut command: Command) -> (ExitStatus, String, String) {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (stdout, stderr) = (read_all(stdout), read_all(stderr));
    let end = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= end {
            child.kill().unwrap();
        }
        thread::sleep(Duration::from_millis(20));
    };
    (status, stdout.join().unwrap(), stderr.join().unwrap())
}

fn read_all(mut stream: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
