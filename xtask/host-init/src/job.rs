//! One command: how it is started, spoken to, and ended.

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use host_init::message::{Job, Message, Size};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    fs::{Mode, OFlags},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::{
    job_loop::{Streams, pump},
    port::{GRACE, Port},
};

/// Each job has a control group of its own, by which all its processes can be found and killed.
const CGROUPS: &str = "/sys/fs/cgroup";
const PATH: &str = "/bin:/sbin:/usr/bin:/usr/sbin";
static NEXT_JOB: AtomicU64 = AtomicU64::new(1);

/// A command that did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to run.
    #[error("no command was given")]
    Empty,
    /// Its directory is not on this host.
    #[error(
        "{directory} does not exist on the emulated host; only the checkout and the cache are shared with it"
    )]
    NoDirectory {
        /// As asked for.
        directory: String,
    },
    /// The program.
    #[error("cannot run {program} on the emulated host: {source}")]
    Spawn {
        /// As asked for.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A group, a pipe, a terminal.
    #[error("cannot prepare the command on the emulated host: {0}")]
    Prepare(#[from] io::Error),
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Prepare(errno.into())
    }
}

/// What the port's thread leaves for the job's thread, which `wake` wakes.
pub struct Inbox {
    pub messages: Mutex<Vec<Message>>,
    pub wake: OwnedFd,
}

/// A running command. Dropping it ends the command and all it started.
pub struct Running {
    inbox: Arc<Inbox>,
    group: Group,
    pid: Pid,
    exited: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts the command and the thread that carries its streams.
    pub fn start(job: Job, port: Arc<Port>, session: u32) -> Result<Self, Error> {
        if !fs::exists(&job.directory).unwrap_or(false) {
            return Err(Error::NoDirectory { directory: job.directory });
        }
        let group = Group::create(job.kill_leftovers)?;
        let (child, streams) = spawn(&job, &group)?;
        let pid = Pid::from_child(&child);
        let exited = pidfd_open(pid, PidfdFlags::empty())?;
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let inbox = Arc::new(Inbox { messages: Mutex::default(), wake });
        let (theirs, ended) = (Arc::clone(&inbox), exited.try_clone()?);
        let thread = thread::spawn(move || pump(child, ended, streams, &theirs, &port, session));
        Ok(Self { inbox, group, pid, exited, thread: Some(thread) })
    }

    /// Passes a message of the client on to the command.
    pub fn tell(&self, message: Message) {
        match message {
            Message::Signal(number) => {
                if let Some(signal) = Signal::from_named_raw(number) {
                    let _it_may_have_ended = kill_process_group(self.pid, signal);
                }
            }
            message => {
                let mut messages =
                    self.inbox.messages.lock().unwrap_or_else(PoisonError::into_inner);
                messages.push(message);
                let _ = rustix::io::write(&self.inbox.wake, &1u64.to_ne_bytes());
            }
        }
    }

    /// Whether the command has ended, of which its thread may still be telling the client.
    fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.exited, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(1))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _it_may_have_ended = kill_process_group(self.pid, Signal::TERM);
            self.group.wait_until_empty();
            self.group.kill();
        } else if self.group.kill_leftovers {
            self.group.kill();
        }
        if let Some(thread) = self.thread.take() {
            let _unless_it_panicked = thread.join();
        }
        self.group.remove();
    }
}

fn spawn(job: &Job, group: &Group) -> Result<(Child, Streams), Error> {
    let (program, arguments) = job.argv.split_first().ok_or(Error::Empty)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs([("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8"), ("ROTIFER_HOST", "1")])
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&job.directory);
    let terminal = job.terminal.map(open_terminal).transpose()?;
    match &terminal {
        Some((_, theirs)) => {
            command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?);
            command.stderr(theirs.try_clone()?);
        }
        None => {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
    }
    let procs = group.procs()?;
    let has_terminal = terminal.is_some();
    // SAFETY: between fork and exec only these system calls run; nothing is allocated or locked.
    unsafe {
        command.pre_exec(move || {
            rustix::io::write(&procs, b"0")?;
            rustix::process::setsid()?;
            if has_terminal {
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            Ok(())
        });
    }
    let mut child =
        command.spawn().map_err(|source| Error::Spawn { program: program.clone(), source })?;
    let streams = match terminal {
        Some((ours, _)) => Streams::terminal(ours)?,
        None => Streams::pipes(&mut child)?,
    };
    Ok((child, streams))
}

fn open_terminal(size: Size) -> Result<(OwnedFd, OwnedFd), Error> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    resize(&ours, size)?;
    let name = ptsname(&ours, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name.as_c_str(), flags, Mode::empty())?;
    Ok((ours, theirs))
}

/// Tells a terminal its size.
pub fn resize(terminal: &OwnedFd, size: Size) -> rustix::io::Result<()> {
    let (ws_row, ws_col) = (size.rows, size.columns);
    tcsetwinsize(terminal, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 })
}

/// The processes of one job.
struct Group {
    path: String,
    kill_leftovers: bool,
}

impl Group {
    fn create(kill_leftovers: bool) -> io::Result<Self> {
        let path = format!("{CGROUPS}/job-{}", NEXT_JOB.fetch_add(1, Ordering::Relaxed));
        fs::create_dir(&path)?;
        Ok(Self { path, kill_leftovers })
    }

    fn procs(&self) -> io::Result<File> {
        File::options().write(true).open(format!("{}/cgroup.procs", self.path))
    }

    fn kill(&self) {
        let _it_may_be_gone = fs::write(format!("{}/cgroup.kill", self.path), "1");
    }

    /// At most [`GRACE`]. The kernel announces the last exit through `cgroup.events`.
    fn wait_until_empty(&self) {
        let Ok(events) = File::open(format!("{}/cgroup.events", self.path)) else { return };
        let populated = || {
            let mut text = [0; 128];
            let count = rustix::io::pread(&events, &mut text, 0).unwrap_or(0);
            String::from_utf8_lossy(&text[..count]).contains("populated 1")
        };
        let grace = Timespec { tv_sec: GRACE.as_secs().cast_signed(), tv_nsec: 0 };
        let mut fds = [PollFd::new(&events, PollFlags::PRI)];
        while populated() {
            match poll(&mut fds, Some(&grace)) {
                Ok(1..) | Err(rustix::io::Errno::INTR) => {}
                _ => return,
            }
        }
    }

    /// Leftovers that were spared keep their group.
    fn remove(&self) {
        if self.kill_leftovers {
            self.wait_until_empty();
        }
        let _spared = fs::remove_dir(&self.path);
    }
}
