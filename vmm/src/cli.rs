//! The command line of `rotifer-vmm`.
//!
//! The options are Firecracker's, as far as there is something behind them; its others are
//! refused with the reason.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::{Arg, Parser};

use crate::config::{LogLevel, Logger};
use crate::fork::{self, Fork};
use crate::pager::{DEFAULT_KEEP_MIB, Pager};
use crate::tools::{Task, Tool};

/// Where the API listens when neither `--api-sock` nor a configuration file is given.
pub const DEFAULT_API_SOCKET: &str = "/run/rotifer.socket";
/// What the machine is called when it is given no name: Firecracker's word.
pub const DEFAULT_ID: &str = "anonymous-instance";
/// The longest name of a machine.
pub const ID_BYTES_MAX: usize = 64;

/// The text of `--help`.
pub const HELP: &str = "\
rotifer-vmm: runs one microVM

Usage: rotifer-vmm --config-file FILE [--api-sock PATH | --no-api] [options]
       rotifer-vmm --restore SNAPSHOT [--config-file FILE] [--api-sock PATH | --no-api] [options]
       rotifer-vmm [--api-sock PATH] [options]
       rotifer-vmm snapshot inspect|verify SNAPSHOT [--json]
       rotifer-vmm snapshot diff EARLIER LATER [--json]
       rotifer-vmm snapshot prune DIRECTORY... [--json]
       rotifer-vmm pager --socket PATH [--keep-mib MIB]
       rotifer-vmm fork --api-sock PATH [--list | --end ID] [--json]

  --config-file FILE  start the machine that this JSON file describes
  --restore SNAPSHOT  take up again the machine of this snapshot; with --config-file, that file
                      says what the host provides, otherwise it is what it was at the suspend
  --host-file FILE    with --restore: the snapshot's host file, if it is not beside it; a fork has one
  --pager-sock PATH   with --restore: share the memory of the snapshot with its other machines on
                      this host, through the pager that listens there
  --base SNAPSHOT     with --pager-sock: not the memory of the snapshot itself, but that of another one
                      that it is based on; what is the machine's own is loaded beside
  --record-working-set
                      with --restore: remember what memory is touched, for PUT /snapshot/working-set
  --load-eagerly      with --restore: load all memory before the machine runs; not with the two above
  --api-sock PATH     serve the API on this Unix socket (/run/rotifer.socket when there is
                      neither this nor --config-file nor --restore)
  --no-api            serve no API; needs --config-file or --restore
  --id ID             the machine's name, as GET / shows it (anonymous-instance)
  --log-path PATH     write the log to this file or FIFO (standard error)
  --level LEVEL       Error, Warning, Info, Debug, Trace or Off (Info)
  --show-level        write the level into each line (it is, unless the logger says otherwise)
  --show-log-origin   write file and line into each line
  --module MODULE     log only what this module and those inside it say
  --version           print the version
  --help              print this

`snapshot` shows what is in a snapshot, reads and verifies all of it, or shows in what the later of
two differs; its exit status is 1 if one is damaged, or two differ. `prune` removes the packs in some
directories that no snapshot in any of them needs and nobody uses.

`pager` keeps the memory that machines of one snapshot share, and serves their page faults, until a
signal ends it. Of images that no machine uses it keeps 1024 MiB, or what --keep-mib says.

`fork` has the VMM whose API listens there hold a snapshot of its running machine in memory, and
prints how a child of it is started; or lists the forks that are held; or has one let go.

Exit status: 0 the guest shut down, or a signal ended the machine; 1 the VMM failed; 2 wrong
usage or configuration; 3 the guest reset; 4 the guest panicked.
";

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run a machine.
    Run(Options),
    /// Answer a question about snapshots.
    Tool(Tool),
    /// Ask a VMM for a fork of its machine.
    Fork(Fork),
    /// Serve the memory of this host's machines.
    Pager(Pager),
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
}

/// How to run a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Start what this file describes.
    pub config_file: Option<PathBuf>,
    /// Take up again the machine of this snapshot.
    pub restore: Option<PathBuf>,
    /// The snapshot's host file, if it is not beside it.
    pub host_file: Option<PathBuf>,
    /// The host's pager; only with a snapshot.
    pub pager_socket: Option<PathBuf>,
    /// The snapshot whose memory the pager keeps, if it is not the machine's own.
    pub base: Option<PathBuf>,
    /// Remember what memory is touched; only with a snapshot.
    pub record_working_set: bool,
    /// Load all memory before the machine runs; only with a snapshot.
    pub load_eagerly: bool,
    /// Serve the API here; absent only when there is a configuration file or a snapshot.
    pub api_socket: Option<PathBuf>,
    /// The machine's name.
    pub id: String,
    /// Settings of the log, to be applied before anything else and before those of the file.
    pub logger: Logger,
}

/// Why a command line is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Error {
    #[error("wrong usage; see --help")]
    Usage(#[source] lexopt::Error),
    #[error("--{option} is not supported: {reason}")]
    Unsupported { option: String, reason: &'static str },
    #[error(
        "--no-api needs --config-file or --restore: there would be no way to describe the machine"
    )]
    NothingToDo,
    #[error("--no-api and --api-sock contradict each other")]
    ApiOrNot,
    #[error("--id {id:?}: a name has 1 to {ID_BYTES_MAX} ASCII letters, digits and dashes")]
    Id { id: String },
    #[error("--{option} needs --restore: it is about a snapshot")]
    NoSnapshot { option: &'static str },
    #[error("`pager` needs --socket, and knows besides it --keep-mib and a number")]
    Pager,
    #[error(
        "after `snapshot` come `inspect` or `verify` and a snapshot, `diff` and two, or `prune` and \
         directories"
    )]
    Tool,
    #[error(
        "`fork` needs --api-sock, and knows besides it --list or --end and a fork's name, and --json"
    )]
    Fork,
    #[error("--{option} is given twice")]
    Twice { option: &'static str },
}

/// Reads the arguments, the program's name not among them.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Error> {
    let mut parser = Parser::from_args(arguments);
    let mut given = Given::default();
    while let Some(argument) = parser.next().map_err(Error::Usage)? {
        match argument {
            Arg::Value(word) if word == "snapshot" && given.is_empty() => {
                return tool(parser).map(Command::Tool);
            }
            Arg::Value(word) if word == "fork" && given.is_empty() => {
                return fork(parser).map(Command::Fork);
            }
            Arg::Value(word) if word == "pager" && given.is_empty() => {
                return pager(parser).map(Command::Pager);
            }
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            Arg::Long("version") | Arg::Short('V') => return Ok(Command::Version),
            Arg::Long("config-file") => path(&mut parser, "config-file", &mut given.config_file)?,
            Arg::Long("restore") => path(&mut parser, "restore", &mut given.restore)?,
            Arg::Long("host-file") => path(&mut parser, "host-file", &mut given.host_file)?,
            Arg::Long("pager-sock") => path(&mut parser, "pager-sock", &mut given.pager_socket)?,
            Arg::Long("base") => path(&mut parser, "base", &mut given.base)?,
            Arg::Long("api-sock") => path(&mut parser, "api-sock", &mut given.api_socket)?,
            Arg::Long("log-path") => path(&mut parser, "log-path", &mut given.logger.log_path)?,
            Arg::Long("id") => once("id", &mut given.id, text(&mut parser)?)?,
            Arg::Long("module") => once("module", &mut given.logger.module, text(&mut parser)?)?,
            // Firecracker's name; the other is what people try.
            Arg::Long("level" | "log-level") => {
                let word = text(&mut parser)?;
                let level = word.parse::<LogLevel>().map_err(|reason| {
                    Error::Usage(lexopt::Error::ParsingFailed { value: word, error: reason.into() })
                })?;
                once("level", &mut given.logger.level, level)?;
            }
            Arg::Long("record-working-set") => given.record_working_set = true,
            Arg::Long("load-eagerly") => given.load_eagerly = true,
            Arg::Long("no-api") => given.no_api = true,
            Arg::Long("show-level") => given.logger.show_level = Some(true),
            Arg::Long("show-log-origin") => given.logger.show_log_origin = Some(true),
            Arg::Long(option) => {
                return Err(match why_unsupported(option) {
                    Some(reason) => Error::Unsupported { option: option.into(), reason },
                    None => Error::Usage(Arg::Long(option).unexpected()),
                });
            }
            other => return Err(Error::Usage(other.unexpected())),
        }
    }
    given.options().map(Command::Run)
}

/// The options so far.
#[derive(Default, PartialEq)]
struct Given {
    config_file: Option<PathBuf>,
    restore: Option<PathBuf>,
    host_file: Option<PathBuf>,
    pager_socket: Option<PathBuf>,
    base: Option<PathBuf>,
    record_working_set: bool,
    load_eagerly: bool,
    api_socket: Option<PathBuf>,
    no_api: bool,
    id: Option<String>,
    logger: Logger,
}

impl Given {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn options(self) -> Result<Options, Error> {
        let has_machine = self.config_file.is_some() || self.restore.is_some();
        let api_socket = match (self.api_socket, self.no_api) {
            (Some(_), true) => return Err(Error::ApiOrNot),
            (None, true) if !has_machine => return Err(Error::NothingToDo),
            (None, false) if !has_machine => Some(DEFAULT_API_SOCKET.into()),
            (path, _) => path,
        };
        let id = self.id.unwrap_or_else(|| DEFAULT_ID.into());
        let fits = (1..=ID_BYTES_MAX).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !fits {
            return Err(Error::Id { id });
        }
        let of_snapshot = [
            ("host-file", self.host_file.is_some()),
            ("pager-sock", self.pager_socket.is_some()),
            ("base", self.base.is_some()),
            ("record-working-set", self.record_working_set),
            ("load-eagerly", self.load_eagerly),
        ];
        for (option, is_given) in of_snapshot {
            if is_given && self.restore.is_none() {
                return Err(Error::NoSnapshot { option });
            }
        }
        let Self { config_file, restore, host_file, pager_socket, base, .. } = self;
        Ok(Options {
            config_file,
            restore,
            host_file,
            pager_socket,
            base,
            record_working_set: self.record_working_set,
            load_eagerly: self.load_eagerly,
            api_socket,
            id,
            logger: self.logger,
        })
    }
}

/// `pager ...`.
fn pager(mut parser: Parser) -> Result<Pager, Error> {
    let (mut socket, mut keep_mib) = (None, None);
    while let Some(argument) = parser.next().map_err(Error::Usage)? {
        match argument {
            Arg::Long("socket") => path(&mut parser, "socket", &mut socket)?,
            Arg::Long("keep-mib") => {
                let number = text(&mut parser)?.parse().map_err(|_| Error::Pager)?;
                once("keep-mib", &mut keep_mib, number)?;
            }
            other => return Err(Error::Usage(other.unexpected())),
        }
    }
    let socket = socket.ok_or(Error::Pager)?;
    Ok(Pager { socket, keep_mib: keep_mib.unwrap_or(DEFAULT_KEEP_MIB) })
}

/// `fork ...`.
fn fork(mut parser: Parser) -> Result<Fork, Error> {
    let (mut api_socket, mut task, mut json) = (None, fork::Task::Make, false);
    while let Some(argument) = parser.next().map_err(Error::Usage)? {
        match argument {
            Arg::Long("api-sock") => path(&mut parser, "api-sock", &mut api_socket)?,
            Arg::Long("list") if task == fork::Task::Make => task = fork::Task::List,
            Arg::Long("end") if task == fork::Task::Make => {
                let id = text(&mut parser)?;
                // It becomes part of a path.
                if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                    return Err(Error::Fork);
                }
                task = fork::Task::End(id);
            }
            Arg::Long("json") => json = true,
            _ => return Err(Error::Fork),
        }
    }
    Ok(Fork { api_socket: api_socket.ok_or(Error::Fork)?, task, json })
}

/// `snapshot ...`.
fn tool(mut parser: Parser) -> Result<Tool, Error> {
    let (mut words, mut json) = (Vec::new(), false);
    while let Some(argument) = parser.next().map_err(Error::Usage)? {
        match argument {
            Arg::Long("json") => json = true,
            Arg::Value(word) => words.push(word),
            other => return Err(Error::Usage(other.unexpected())),
        }
    }
    let task = match (words.first().and_then(|word| word.to_str()), words.get(1..)) {
        (Some("inspect"), Some([path])) => Task::Inspect(path.into()),
        (Some("verify"), Some([path])) => Task::Verify(path.into()),
        (Some("prune"), Some(directories @ [_, ..])) => {
            Task::Prune(directories.iter().map(Into::into).collect())
        }
        (Some("diff"), Some([before, after])) => Task::Diff(before.into(), after.into()),
        _ => return Err(Error::Tool),
    };
    Ok(Tool { task, json })
}

fn path(
    parser: &mut Parser,
    option: &'static str,
    place: &mut Option<PathBuf>,
) -> Result<(), Error> {
    let value = parser.value().map_err(Error::Usage)?;
    once(option, place, value.into())
}

fn text(parser: &mut Parser) -> Result<String, Error> {
    let value = parser.value().map_err(Error::Usage)?;
    value.into_string().map_err(|value| Error::Usage(lexopt::Error::NonUnicodeValue(value)))
}

fn once<T>(option: &'static str, place: &mut Option<T>, value: T) -> Result<(), Error> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Error::Twice { option }),
    }
}

/// Why an option that Firecracker has is none of ours.
fn why_unsupported(option: &str) -> Option<&'static str> {
    Some(match option {
        "seccomp-filter" | "no-seccomp" => "there are no seccomp filters yet",
        "metrics-path" => "metrics are not collected yet",
        "boot-timer" => "the device that a guest would report to does not exist",
        "metadata" | "mmds-size-limit" => "there is no metadata service",
        "describe-snapshot" | "snapshot-version" => {
            "`rotifer-vmm snapshot inspect` shows what is in a snapshot"
        }
        "enable-pci" => "devices are on virtio-mmio; there is no PCI bus",
        "http-api-max-payload-size" => "the bound of the API's bodies is fixed at 51200 bytes",
        "start-time-us" | "start-time-cpu-us" | "parent-cpu-time-us" => {
            "there is no jailer yet that would pass it"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
