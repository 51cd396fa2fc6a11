//! What acts inside the build machine: files and commands of a root that is somebody else's.
//!
//! A root's links may lead anywhere, so whoever touches its files changes its own root first. What can
//! go wrong here harms a machine that is thrown away.

mod forward;
pub mod glob;
pub mod limits;
mod pack;
pub mod protocol;
mod run;
mod unpack;

use crate::protocol::{
    CopyBetween, EXIT_DISK_FULL, EXIT_FAILED, EXIT_REFUSED, MakeDirectory, Request,
};
use rotifer_agent::api::error::chain;
use rotifer_agent::process::users::{Identity, UserError};
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

/// Why the worker did not do it.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The system refused.
    #[error("cannot {attempt}")]
    Io {
        /// What was tried.
        attempt: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It cannot be done with these files.
    #[error("{0}")]
    Refused(String),
    /// There is no such user in the root.
    #[error(transparent)]
    User(#[from] UserError),
}

impl WorkerError {
    fn exit_code(&self) -> i32 {
        match self {
            WorkerError::Io { source, .. } => match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => EXIT_DISK_FULL,
                _ => EXIT_FAILED,
            },
            WorkerError::Refused(_) | WorkerError::User(_) => EXIT_REFUSED,
        }
    }
}

/// Gives an error of the system the words of what was tried.
fn failed<E: Into<io::Error>>(attempt: impl Into<String>) -> impl FnOnce(E) -> WorkerError {
    let attempt = attempt.into();
    move |source| WorkerError::Io { attempt, source: source.into() }
}

/// Does what standard input asks for; the exit status.
#[must_use]
pub fn main() -> i32 {
    match serve(&mut io::stdin().lock()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}", chain(&error));
            error.exit_code()
        }
    }
}

fn serve(input: &mut impl Read) -> Result<(), WorkerError> {
    let request = Request::decode(input).map_err(failed("read the request"))?;
    match request {
        Request::Unpack(request) => {
            enter(&request.root)?;
            unpack::unpack(input, Path::new("/"), &request, true)
        }
        Request::Pack(request) => {
            enter(&request.root)?;
            pack::pack(Path::new("/"), &request.sources, io::stdout().lock())
        }
        Request::CopyBetween(request) => copy_between(request),
        Request::MakeDirectory(request) => make_directory(&request),
        Request::Run(request) => run::run(&request),
        Request::Forward(request) => forward::forward(request.port),
    }
}

/// Makes a directory the root of this process.
fn enter(root: &str) -> Result<(), WorkerError> {
    nix::unistd::chroot(root).map_err(failed(format!("change the root to {root}")))?;
    nix::unistd::chdir("/").map_err(failed("enter the root"))
}

/// Another worker packs in the one root, this one unpacks in the other.
fn copy_between(request: CopyBetween) -> Result<(), WorkerError> {
    let mut packer = Command::new("/proc/self/exe")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed("start a second worker"))?;
    let output = packer.stdout.take();
    if let Some(mut input) = packer.stdin.take() {
        Request::Pack(request.from).write(&mut input).map_err(failed("ask the second worker"))?;
    }
    enter(&request.root)?;
    let unpack = crate::protocol::Unpack {
        root: request.root,
        target: request.target,
        is_users: true,
        ..Default::default()
    };
    let result = match output {
        Some(output) => unpack::unpack(&mut BufReader::new(output), Path::new("/"), &unpack, true),
        None => Ok(()),
    };
    let status = packer.wait().map_err(failed("wait for the second worker"))?;
    match status.code() {
        // What the packer could not do it has said itself, and the end of its tar is no news.
        Some(0) => result,
        Some(EXIT_REFUSED) => Err(WorkerError::Refused("nothing was copied".into())),
        _ => {
            result.and(Err(WorkerError::Refused(format!("the second worker ended with {status}"))))
        }
    }
}

fn make_directory(request: &MakeDirectory) -> Result<(), WorkerError> {
    enter(&request.root)?;
    let owner = request.owner.as_deref().map(owner_of).transpose()?;
    unpack::make_directories(Path::new(&request.path), owner)
}

/// Numbers of an owner, by the root's own files. As in `--chown`, a user alone is its group, too.
fn owner_of(text: &str) -> Result<(u32, u32), WorkerError> {
    let identity = Identity::resolve(Some(text))?;
    let gid = if text.contains(':') { identity.gid } else { identity.uid };
    Ok((identity.uid, gid))
}
