//! `rotifer shell` and `rotifer exec`, as people run them, with the real agent behind them.

#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use world::{DEADLINE, Vm, World, within};

fn rotifer(world: &World, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rotifer"));
    // Before the words: what is behind -- is not ours.
    command.arg("--state").arg(world.file("state")).args(words);
    command.kill_on_drop(true);
    command
}

/// The exit status, and what is printed where.
async fn output(mut command: Command) -> (i32, String, String) {
    let output = within(command.stdin(Stdio::null()).output()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_passes_on_input_both_outputs_and_the_exit_status() {
    let world = World::new().await;
    world.start_agent();
    let vm = world.vm_with_shell().await;
    // More than is on its way at any time, in both directions.
    let said: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let script = "cat; echo $0 wrong >&2; exit 7";
    let mut command = rotifer(&world, &["exec", &vm.id, "--", "sh", "-c", script, "--help"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let (sent, heard) = within(async {
        tokio::join!(
            async { stdin.write_all(&said).await.map(|()| drop(stdin)) },
            child.wait_with_output()
        )
    })
    .await;
    sent.unwrap();
    let heard = heard.unwrap();
    assert!(heard.stdout == said, "{} bytes came back", heard.stdout.len());
    assert_eq!(String::from_utf8_lossy(&heard.stderr), "--help wrong\n");
    assert_eq!(heard.status.code(), Some(7));
    let (status, ..) =
        output(rotifer(&world, &["exec", &vm.id, "--", "sh", "-c", "kill -9 $$"])).await;
    assert_eq!(status, 128 + 9);
    let (status, said, _) = output(rotifer(&world, &["exec", "-t", &vm.id, "--", "tty"])).await;
    assert!(status == 0 && said.starts_with("/dev/pts/"), "{status} {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_says_why_nothing_is_run() {
    let world = World::new().await;
    world.start_agent();
    let closed = world.vm(json!({})).await;
    let open = world.vm_with_shell().await;
    for (words, reason) in [
        (["exec", &closed.id, "--", "true"], "SHELL_INGRESS"),
        (["exec", &open.id, "--", "/is/not/there"], "/is/not/there"),
        (["exec", "microvm-x", "--", "true"], "microvm-x"),
    ] {
        let (status, said, error) = output(rotifer(&world, &words)).await;
        assert!(status == 255 && said.is_empty() && error.contains(reason), "{status} {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_the_microvm_and_with_its_client() {
    let world = World::new().await;
    world.start_agent();
    let vm = world.vm_with_shell().await;
    let (mut first, process) = sleeper(&world, &vm).await;
    first.start_kill().unwrap();
    process.ended().await;
    let (second, process) = sleeper(&world, &vm).await;
    world.suspend(&vm).await;
    let heard = within(second.wait_with_output()).await.unwrap();
    let error = String::from_utf8_lossy(&heard.stderr);
    assert!(heard.status.code() == Some(255) && error.contains("suspended"), "{error}");
    process.ended().await;
}

/// A client whose command has begun and does not end, and that command's process.
async fn sleeper(world: &World, vm: &Vm) -> (Child, Process) {
    let script = "echo $$; exec sleep 100000";
    let mut command = rotifer(world, &["exec", &vm.id, "--", "sh", "-c", script]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let pid = within(lines.next_line()).await.unwrap().unwrap();
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    let flags = rustix::process::PidfdFlags::empty();
    (child, Process(rustix::process::pidfd_open(pid, flags).unwrap()))
}

struct Process(OwnedFd);

impl Process {
    async fn ended(self) {
        let wait = tokio::task::spawn_blocking(move || {
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap()
        });
        within(wait).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_is_as_large_as_the_terminal_and_leaves_it_as_it_was() {
    let world = World::new().await;
    world.start_agent();
    let vm = world.vm_with_shell().await;
    let mut terminal = Terminal::open(43, 132);
    let before = terminal.modes();
    let mut shell = terminal.run(&world, &vm);
    terminal.type_in("while ! stty size | grep -x '50 [9]9'; do stty size; sleep 0.1; done\n");
    terminal.shows("43 132");
    assert!(!terminal.modes().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO));
    terminal.resize(50, 99);
    terminal.shows("50 99");
    terminal.type_in("exit 5\n");
    assert_eq!(within(shell.wait()).await.unwrap().code(), Some(5));
    assert_eq!(told(&terminal.modes()), told(&before));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_that_is_ended_leaves_the_terminal_as_it_was() {
    let world = World::new().await;
    world.start_agent();
    let vm = world.vm_with_shell().await;
    let mut terminal = Terminal::open(24, 80);
    let before = terminal.modes();
    let mut shell = terminal.run(&world, &vm);
    terminal.type_in("echo $((6*7))\n");
    terminal.shows("42");
    assert_ne!(told(&terminal.modes()), told(&before));
    let pid = rustix::process::Pid::from_raw(shell.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(within(shell.wait()).await.unwrap().code(), Some(255));
    assert_eq!(told(&terminal.modes()), told(&before));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_that_takes_nothing_any_more_can_be_left() {
    let world = World::new().await;
    world.start_agent();
    let vm = world.vm_with_shell().await;
    let mut terminal = Terminal::open(24, 80);
    let before = terminal.modes();
    let mut shell = terminal.run(&world, &vm);
    terminal.type_in("trap '' INT; echo $((6*7)); exec sleep 100000\n");
    terminal.shows("42");
    terminal.type_in("\x03\r~.");
    assert_eq!(within(shell.wait()).await.unwrap().code(), Some(255));
    assert_eq!(told(&terminal.modes()), told(&before));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_without_a_terminal_reads_commands() {
    let world = World::new().await;
    world.start_agent();
    let vm = world.vm_with_shell().await;
    let mut shell = rotifer(&world, &["shell", &vm.id]);
    let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"pwd\nexit 3\n").await.unwrap();
    drop(stdin);
    let mut said = String::new();
    within(child.stdout.take().unwrap().read_to_string(&mut said)).await.unwrap();
    assert_eq!((within(child.wait()).await.unwrap().code(), said.as_str()), (Some(3), "/\n"));
}

fn told(modes: &Termios) -> String {
    format!("{modes:?}")
}

/// A terminal, and somebody before it.
struct Terminal {
    keyboard: File,
    line: OwnedFd,
    screen: Receiver<Vec<u8>>,
    shown: String,
}

impl Terminal {
    fn open(rows: u16, columns: u16) -> Self {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        let line = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let keyboard = File::from(keyboard);
        let (show, screen) = mpsc::channel();
        let mut shown = keyboard.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = shown.read(&mut buffer) {
                if show.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let terminal = Self { keyboard, line, screen, shown: String::new() };
        terminal.resize(rows, columns);
        terminal
    }

    /// `rotifer shell` in a session of its own, whose terminal this is.
    fn run(&self, world: &World, vm: &Vm) -> Child {
        let shell = rotifer(world, &["shell", &vm.id]);
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(shell.as_std().get_program()).args(shell.as_std().get_args());
        let line = || Stdio::from(self.line.try_clone().unwrap());
        command.stdin(line()).stdout(line()).stderr(line()).kill_on_drop(true).spawn().unwrap()
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(self.keyboard.as_fd(), size).unwrap();
    }

    fn modes(&self) -> Termios {
        tcgetattr(&self.line).unwrap()
    }

    fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until a text was shown since it was last waited for one.
    fn shows(&mut self, text: &str) {
        let end = Instant::now() + DEADLINE;
        while !self.shown.contains(text) {
            let patience = end.saturating_duration_since(Instant::now());
            let more = self.screen.recv_timeout(patience);
            let more = more.unwrap_or_else(|_| panic!("{text:?} is not in {:?}", self.shown));
            self.shown.push_str(&String::from_utf8_lossy(&more));
        }
        self.shown.clear();
    }
}
