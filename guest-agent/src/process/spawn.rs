//! Starts a process as described.

use super::credentials::{DEFAULT_CAPABILITIES, Transition};
use super::pipe::Pipe;
use super::spec::{Capabilities, ProcessSpec, SpecError};
use super::users::{Identity, UserError};
use nix::pty::{PtyMaster, grantpt, posix_openpt, unlockpt};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where programs are looked for unless the environment says otherwise; Docker's default.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a process gets as standard input, output and error.
#[derive(Debug)]
pub enum StdioPlan {
    /// A pipe for each; without `stdin`, standard input is empty.
    Pipes {
        /// Whether there is a pipe for input.
        stdin: bool,
    },
    /// A new terminal of this size for all three, which controls the process.
    Terminal(WindowSize),
    /// This open terminal for all three, which controls the process.
    Console(File),
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// A process that was started, and the agent's ends of its pipes.
#[derive(Debug)]
pub struct Spawned {
    /// Its id, which is also that of its process group and session.
    pub pid: i32,
    /// Bytes go in here.
    pub stdin: Option<Pipe>,
    /// Bytes come out here: standard output.
    pub stdout: Option<Pipe>,
    /// Bytes come out here: standard error.
    pub stderr: Option<Pipe>,
    /// The terminal, for all three and for its size.
    pub terminal: Option<Pipe>,
}

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The description itself is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The user does not exist.
    #[error(transparent)]
    User(#[from] UserError),
    /// The working directory is not there.
    #[error("the working directory {} cannot be entered", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No terminal could be made.
    #[error("cannot make a terminal")]
    Terminal(#[source] io::Error),
    /// The kernel refused the program.
    #[error("cannot start {program:?}")]
    Start {
        /// The first word of the command.
        program: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A pipe to the process, which runs, cannot be used.
    #[error("cannot use a pipe of {program:?}")]
    Pipe {
        /// The first word of the command.
        program: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// How this agent starts processes.
#[derive(Debug, Clone, Default)]
pub struct Spawner {
    /// Whether users and capabilities are set: by PID 1, not by an agent run for a test.
    pub manages_credentials: bool,
    /// The control groups, if they could be made.
    pub cgroups: Option<CgroupFiles>,
}

/// `cgroup.procs` of the groups that processes join.
#[derive(Debug, Clone)]
pub struct CgroupFiles {
    /// The app's.
    pub app: std::sync::Arc<File>,
    /// That of commands started over the API.
    pub exec: std::sync::Arc<File>,
}

/// Which group a process joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The app's.
    App,
    /// That of commands started over the API.
    Exec,
}

impl Spawner {
    /// Starts `spec` in a session of its own.
    ///
    /// # Errors
    /// What is wrong with the description, or what the kernel refused.
    pub fn spawn(
        &self,
        spec: &ProcessSpec,
        group: Group,
        stdio: StdioPlan,
    ) -> Result<Spawned, SpawnError> {
        spec.check()?;
        let identity = Identity::resolve(spec.user.as_deref()).or_else(|error| {
            // An agent that cannot switch users does not need to know them.
            if self.manages_credentials { Err(error) } else { Identity::resolve(None) }
        })?;
        let directory = Path::new(spec.cwd.as_deref().unwrap_or("/"));
        check_directory(directory)?;

        let (program, arguments) = spec.command.split_first().ok_or(SpecError::EmptyCommand)?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(directory).env_clear();
        command.env("PATH", DEFAULT_PATH).env("HOME", &identity.home).envs(&spec.env);
        let (is_terminal, master) = attach(&mut command, stdio, spec)?;
        let transition = Transition {
            identity: self.manages_credentials.then_some(identity),
            capabilities: match spec.capabilities {
                Capabilities::Default => DEFAULT_CAPABILITIES,
                Capabilities::All => u64::MAX,
            },
            cgroup_procs: self.cgroups.as_ref().map(|cgroups| match group {
                Group::App => cgroups.app.as_raw_fd(),
                Group::Exec => cgroups.exec.as_raw_fd(),
            }),
            terminal: is_terminal,
        };
        // SAFETY: `apply` makes system calls only, as its module requires of itself; the cgroup's
        // descriptor lives as long as `self`, which outlives the fork inside `spawn`.
        unsafe { command.pre_exec(move || transition.apply()) };
        let started = command.spawn();
        let mut child =
            started.map_err(|source| SpawnError::Start { program: program.clone(), source })?;
        // The `Command` holds the child's end of the terminal: while it lives, the terminal would
        // not end with its last process.
        drop(command);

        adopt(&mut child, master).map_err(|source| {
            // The child was started above and nobody has reaped it. That it fails means that it
            // has ended by itself.
            let _ = child.kill();
            SpawnError::Pipe { program: program.clone(), source }
        })
    }
}

/// Makes the agent's ends of the pipes ready for its event loop.
fn adopt(child: &mut Child, master: Option<OwnedFd>) -> io::Result<Spawned> {
    let pipe = |descriptor: Option<OwnedFd>| descriptor.map(Pipe::new).transpose();
    Ok(Spawned {
        // The kernel's process ids are positive and below 2^22.
        pid: i32::try_from(child.id()).unwrap_or(i32::MAX),
        stdin: pipe(child.stdin.take().map(Into::into))?,
        stdout: pipe(child.stdout.take().map(Into::into))?,
        stderr: pipe(child.stderr.take().map(Into::into))?,
        terminal: pipe(master)?,
    })
}

/// Connects the three standard streams; tells whether they are a terminal, and the agent's end of a
/// new one.
fn attach(
    command: &mut Command,
    stdio: StdioPlan,
    spec: &ProcessSpec,
) -> Result<(bool, Option<OwnedFd>), SpawnError> {
    let (terminal, master) = match stdio {
        StdioPlan::Pipes { stdin } => {
            command.stdin(if stdin { Stdio::piped() } else { Stdio::null() });
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            return Ok((false, None));
        }
        StdioPlan::Terminal(size) => {
            let (master, terminal) = open_terminal(size).map_err(SpawnError::Terminal)?;
            (terminal, Some(master))
        }
        StdioPlan::Console(console) => (console, None),
    };
    if !spec.env.contains_key("TERM") {
        command.env("TERM", if master.is_some() { "xterm" } else { "vt100" });
    }
    command.stdin(terminal.try_clone().map_err(SpawnError::Terminal)?);
    command.stdout(terminal.try_clone().map_err(SpawnError::Terminal)?);
    command.stderr(terminal);
    Ok((true, master))
}

fn open_terminal(size: WindowSize) -> io::Result<(OwnedFd, File)> {
    use nix::fcntl::OFlag;
    let master: PtyMaster = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = nix::pty::ptsname_r(&master)?;
    let terminal = open_without_control(Path::new(&name))?;
    let master: OwnedFd = master.into();
    set_window_size(&master, size)?;
    Ok((master, terminal))
}

/// Opens a terminal without becoming controlled by it.
///
/// # Errors
/// What the kernel says.
pub fn open_without_control(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path)
}

/// Gives a terminal a new size; its processes get SIGWINCH.
///
/// # Errors
/// What the kernel says.
pub fn set_window_size(terminal: &impl std::os::fd::AsFd, size: WindowSize) -> io::Result<()> {
    let size =
        libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    let descriptor = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCSWINSZ reads one winsize; the pointer is to a live one.
    match unsafe { libc::ioctl(descriptor, libc::TIOCSWINSZ, &raw const size) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn check_directory(path: &Path) -> Result<(), SpawnError> {
    let error = |source| SpawnError::Directory { path: path.into(), source };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(error(io::Error::from_raw_os_error(libc::ENOTDIR))),
        Err(source) => Err(error(source)),
    }
}
