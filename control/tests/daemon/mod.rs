//! A daemon on a directory of its own, and clients that know where it is.

#![expect(clippy::unwrap_used, reason = "a harness of tests")]

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
    variables: BTreeMap<String, String>,
}

impl Daemon {
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(directory: tempfile::TempDir) -> Self {
        let mut command = Self::command(&directory.path().join("state"));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (said, heard) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _nobody_listens = said.send(line);
            }
        });
        loop {
            let line = heard.recv_timeout(DEADLINE).expect("the daemon says that it is ready");
            if line.starts_with("for a shell") {
                break;
            }
        }
        let mut env = Command::new(env!("CARGO_BIN_EXE_rotifer"));
        env.arg("env").arg("--state").arg(directory.path().join("state"));
        let shell = succeed(env);
        let exports =
            shell.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        let variables =
            exports.map(|(name, value)| (name.into(), value.trim_matches('\'').into())).collect();
        Self { child, directory, variables }
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
        let mut command = Command::new(Path::new(&python).join("bin").join(program));
        // Nothing of the user's own configuration.
        command.env_clear().env("HOME", self.directory.path()).env("AWS_PAGER", "");
        command.env("PATH", "/usr/bin:/bin").env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("PYTHONDONTWRITEBYTECODE", "1").envs(&self.variables);
        command
    }

    pub fn kill_and_start_again(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        Self::start_in(directory)
    }

    /// Another, that knows nothing yet.
    pub fn restart_empty(self) -> Self {
        self.stop();
        Self::start()
    }

    /// Ends it as an operator does, which has to succeed.
    pub fn stop(mut self) {
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
