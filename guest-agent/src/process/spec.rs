//! What to start: the shape shared by the app's description and by execs.

use crate::limits::CONFIG_FILE_MAX_BYTES;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where the app is described unless the command line says otherwise.
pub const APP_FILE: &str = "/etc/rotifer/app.json";

/// Which capabilities a process of the user root keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capabilities {
    /// The fourteen that Docker leaves to a container.
    #[default]
    Default,
    /// All of them.
    All,
}

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSpec {
    /// The program and its arguments; a program without a slash is looked for in `PATH`.
    pub command: Vec<String>,
    /// Variables added to `PATH` and `HOME`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; root if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The working directory; `/` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// What root may do.
    #[serde(default)]
    pub capabilities: Capabilities,
}

/// Why a process cannot be what is asked for.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The command is an empty list or its program an empty string.
    #[error("the command is empty")]
    EmptyCommand,
    /// A string that goes to the kernel contains a NUL.
    #[error("{field} contains a NUL byte")]
    Nul {
        /// Which part of the description.
        field: &'static str,
    },
    /// A variable has no name, or an equals sign in it.
    #[error("{name:?} is not a name for an environment variable")]
    VariableName {
        /// The name given.
        name: String,
    },
    /// The file cannot be read.
    #[error("cannot read the app's description {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the app's description {} is not valid", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

impl ProcessSpec {
    /// Reads the app's description; `None` if there is no such file.
    ///
    /// # Errors
    /// The file is there but cannot be read, is no valid JSON or describes no process.
    pub fn load(path: &Path) -> Result<Option<Self>, SpecError> {
        let read_error = |source| SpecError::Read { path: path.into(), source };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(read_error(error)),
        };
        let mut text = String::new();
        file.take(CONFIG_FILE_MAX_BYTES).read_to_string(&mut text).map_err(read_error)?;
        let spec: Self = serde_json::from_str(&text)
            .map_err(|source| SpecError::Parse { path: path.into(), source })?;
        spec.check()?;
        Ok(Some(spec))
    }

    /// Refuses what the kernel or `execve` could not take, by name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err(SpecError::EmptyCommand);
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            return Err(SpecError::Nul { field: "command" });
        }
        if let Some(name) =
            self.env.keys().find(|name| name.is_empty() || name.contains(['=', '\0']))
        {
            return Err(SpecError::VariableName { name: name.clone() });
        }
        if self.env.values().any(|value| value.contains('\0')) {
            return Err(SpecError::Nul { field: "env" });
        }
        if self.cwd.as_ref().is_some_and(|cwd| cwd.contains('\0')) {
            return Err(SpecError::Nul { field: "cwd" });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> ProcessSpec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_empty_command_is_refused() {
        assert!(matches!(parse(r#"{"command": []}"#).check(), Err(SpecError::EmptyCommand)));
        assert!(matches!(parse(r#"{"command": [""]}"#).check(), Err(SpecError::EmptyCommand)));
    }

    #[test]
    fn names_and_bytes_that_the_kernel_cannot_take_are_refused() {
        let named = parse(r#"{"command": ["x"], "env": {"A=B": "c"}}"#);
        assert!(matches!(named.check(), Err(SpecError::VariableName { .. })));
        let nul = parse("{\"command\": [\"x\\u0000\"]}");
        assert!(matches!(nul.check(), Err(SpecError::Nul { field: "command" })));
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(serde_json::from_str::<ProcessSpec>(r#"{"command": ["x"], "usr": "a"}"#).is_err());
    }

    #[test]
    fn a_missing_description_is_no_app_and_a_broken_one_names_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.json");
        assert!(ProcessSpec::load(&path).unwrap().is_none());
        std::fs::write(&path, "{").unwrap();
        let error = ProcessSpec::load(&path).unwrap_err();
        assert!(error.to_string().contains("app.json"), "{error}");
    }
}
