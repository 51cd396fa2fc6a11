//! The directory that everything of a daemon is in, and what is made at its first start.
//!
//! ```text
//! lock                held by the one daemon that serves the directory
//! credentials.json    the access key; 0600
//! ca.pem, ca.key      the authority that signs the endpoint's certificate; the key is 0600
//! endpoint            where the daemon listens
//! seal.key            what tokens are sealed with; 0600
//! rotifer.db          metadata; its log and index beside it
//! rotifer.reserve     room for changes that give more of it back
//! objects/            contents of the buckets
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::seal::Seal;

/// Each holds 5 bits: 260 together.
const SEAL_LETTERS: usize = 52;

/// A daemon's directory.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

/// The access key that all requests are signed with.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`
    pub secret_access_key: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum StateError {
    #[error("cannot {attempt} {path:?}")]
    File { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("another daemon serves {path:?}: stop it, or give this one a --state of its own")]
    Locked { path: PathBuf },
    #[error("{path:?} is not what it should be; move it away and a new one is made")]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("the host gives no random numbers: {reason}")]
    Random { reason: String },
}

impl Directory {
    /// `~/.local/state/rotifer`, or where `XDG_STATE_HOME` says.
    pub fn default_path() -> Option<PathBuf> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let state = set("XDG_STATE_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".local/state")))?;
        Some(state.join("rotifer"))
    }

    /// The directory, made if need be. Only its owner can look into one that is made here.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed =
            |attempt| move |source| StateError::File { attempt, path: path.into(), source };
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
        builder.create(path).map_err(failed("create"))?;
        let path = path.canonicalize().map_err(failed("use"))?;
        Ok(Self { path })
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps other daemons out, as long as the result lives.
    pub fn lock(&self) -> Result<File, StateError> {
        let path = self.file("lock");
        let open = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(|source| self.failed("open", "lock", source))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(StateError::Locked { path: self.path.clone() })
            }
            Err(error) => Err(self.failed("lock", "lock", error.into())),
        }
    }

    /// The access key; a new one at the first start.
    pub fn credentials(&self) -> Result<Credentials, StateError> {
        if let Some(text) = self.read("credentials.json")? {
            let path = self.file("credentials.json");
            return serde_json::from_str(&text)
                .map_err(|source| StateError::Damaged { path, source });
        }
        let credentials = Credentials {
            access_key_id: format!("RTFR{}", random_text(16)?.to_uppercase()),
            secret_access_key: random_text(40)?,
        };
        let text = serde_json::json!(credentials).to_string();
        self.write("credentials.json", text.as_bytes())?;
        Ok(credentials)
    }

    /// What tokens are sealed with; new at the first start.
    pub fn seal(&self) -> Result<Seal, StateError> {
        let text = match self.read("seal.key")? {
            Some(text) => text,
            None => {
                let text = random_text(SEAL_LETTERS)?;
                self.write("seal.key", text.as_bytes())?;
                text
            }
        };
        if text.len() < SEAL_LETTERS {
            let source = serde::de::Error::custom("it is too short");
            return Err(StateError::Damaged { path: self.file("seal.key"), source });
        }
        Ok(Seal::new(text.as_bytes()))
    }

    /// A small file's text, if there is one.
    pub fn read(&self, name: &str) -> Result<Option<String>, StateError> {
        match fs::read_to_string(self.file(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed("read", name, source)),
        }
    }

    /// Replaces a small file: whole, durably, readable by its owner only.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let new = self.file(&format!("{name}.new"));
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file =
                options.create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, self.file(name))?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| self.failed("write", name, source))
    }

    fn failed(&self, attempt: &'static str, name: &str, source: io::Error) -> StateError {
        StateError::File { attempt, path: self.file(name), source }
    }
}

/// Lower-case letters and digits; each holds 5 bits.
fn random_text(length: usize) -> Result<String, StateError> {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes)
        .map_err(|error| StateError::Random { reason: error.to_string() })?;
    let letter = |byte: &u8| char::from(ALPHABET[usize::from(byte % 32)]);
    Ok(bytes.iter().map(letter).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_access_key_is_made_once_and_is_the_owners() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(&temporary.path().join("a/b")).unwrap();
        let first = directory.credentials().unwrap();
        let again = directory.credentials().unwrap();
        assert_eq!(first.secret_access_key, again.secret_access_key);
        assert_eq!(first.secret_access_key.len(), 40);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory.file("credentials.json")), 0o600);
        assert_eq!(mode(directory.path()), 0o700);
    }

    #[test]
    fn a_directory_has_one_daemon() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        let lock = directory.lock().unwrap();
        assert!(matches!(directory.lock(), Err(StateError::Locked { .. })));
        drop(lock);
        directory.lock().unwrap();
    }
}
