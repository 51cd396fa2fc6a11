//! What the builder asks of its worker inside the build machine: a length, a request in JSON, and for
//! `Unpack` a tar behind it, all on standard input. The exit status says how it went.

use crate::limits::REQUEST_MAX_BYTES;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

/// The worker could not do it; its last line of standard error says why.
pub const EXIT_FAILED: i32 = 124;
/// The disk is full.
pub const EXIT_DISK_FULL: i32 = 123;
/// What was asked for cannot be done: the Dockerfile's mistake, not the builder's.
pub const EXIT_REFUSED: i32 = 122;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Puts the entries of a tar into a root.
    Unpack(Unpack),
    /// Puts files of one root into another.
    CopyBetween(CopyBetween),
    /// Writes files of a root to standard output, as a tar.
    Pack(Pack),
    /// Makes a directory, if there is none.
    MakeDirectory(MakeDirectory),
    /// Runs a command inside a root.
    Run(Run),
    /// Passes TCP connections to a port of the machine on to a vsock port of the host.
    Forward(Forward),
}

/// See [`Request::Unpack`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unpack {
    /// The root's directory in the machine.
    pub root: String,
    /// Where it goes inside the root.
    pub target: Target,
    /// How the tar is packed.
    pub compression: Compression,
    /// Whether names that begin with `.wh.` remove what lower layers have.
    pub is_layer: bool,
    /// Whether the tar comes from a user's archive, which has to say where it goes wrong.
    pub is_users: bool,
}

/// Where and how files arrive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// A path inside the root.
    pub path: String,
    /// Whether it is a directory, also if there is none yet. Otherwise the only file gets this name,
    /// unless there is a directory.
    pub is_directory: bool,
    /// `user`, `uid`, `user:group`, `uid:gid` of the root's own files; what the tar says if absent.
    pub owner: Option<String>,
    /// Permissions; what the tar says if absent.
    pub mode: Option<u32>,
}

/// How a tar is packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// With gzip.
    Gzip,
}

/// See [`Request::CopyBetween`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyBetween {
    /// What is copied.
    pub from: Pack,
    /// The root that gets it.
    pub root: String,
    /// Where.
    pub target: Target,
}

/// See [`Request::Pack`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// The root's directory in the machine.
    pub root: String,
    /// Paths and patterns inside the root.
    pub sources: Vec<String>,
}

/// See [`Request::MakeDirectory`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MakeDirectory {
    /// The root's directory in the machine.
    pub root: String,
    /// The directory inside the root.
    pub path: String,
    /// As in [`Target`]; root if absent.
    pub owner: Option<String>,
}

/// See [`Request::Run`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The root's directory in the machine.
    pub root: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// A program of the Dockerfile's own: the command's last argument is its path.
    pub script: Option<String>,
    /// All variables.
    pub env: BTreeMap<String, String>,
    /// Who; root if empty.
    pub user: String,
    /// Where; `/` if empty.
    pub directory: String,
    /// Whether it can reach the forward proxy.
    pub network: bool,
    /// What is mounted for the command.
    pub mounts: Vec<Mount>,
    /// Certificates that the command can find in [`CA_FILE`]; none of it stays.
    pub ca_bundle: Option<String>,
}

/// Where the worker writes how a command ended, in the build machine.
pub const STATUS_FILE: &str = "/run/build/status";
/// Where the certificates of [`Run::ca_bundle`] are for as long as a command runs.
pub const CA_FILE: &str = "/dev/rotifer-ca.pem";
/// Where a script is for as long as it runs.
pub const SCRIPT_FILE: &str = "/dev/rotifer-script";

/// A mount of a `RUN` instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// A directory inside the root.
    pub target: String,
    /// What is there.
    pub kind: MountKind,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// Memory, of at most so many bytes if that is said.
    Tmpfs {
        /// The limit.
        size_bytes: Option<u64>,
    },
    /// A directory that other builds find again.
    Cache {
        /// A name that is one component of a path.
        directory: String,
        /// Its permissions when it is made.
        mode: u32,
        /// Its owner when it is made.
        uid: u32,
        /// Its group when it is made.
        gid: u32,
    },
}

/// Where caches are in the build machine.
pub const CACHES: &str = "/run/build/caches";

/// See [`Request::Forward`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// The port of the loopback interface, and of the host.
    pub port: u16,
}

/// What the forwarder says when it can be used.
pub const FORWARD_READY: &str = "the forwarder listens";

impl Request {
    /// The bytes that begin the worker's standard input.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Strings, numbers and maps with string keys, which cannot fail.
        let json = serde_json::to_vec(self).unwrap_or_default();
        let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
        [&length.to_be_bytes()[..], &json].concat()
    }

    /// Reads a request, and nothing of what is behind it.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(input: &mut impl Read) -> io::Result<Self> {
        let mut length = [0; 4];
        input.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        if length > REQUEST_MAX_BYTES {
            return Err(io::Error::other(format!("a request of {length} bytes")));
        }
        let mut json = vec![0; length as usize];
        input.read_exact(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }

    /// Writes a request.
    ///
    /// # Errors
    /// `output` does not take it.
    pub fn write(&self, output: &mut impl Write) -> io::Result<()> {
        output.write_all(&self.encode())
    }
}
