//! Why a configuration is refused.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rotifer_devices::virtio::net::TapError;

/// Why a configuration, or a section of it, is refused.
///
/// `path` is where in the JSON document, written as `drives[0].path_on_host`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file itself cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The configuration file was read, and something in it is wrong.
    #[error("the configuration file {} is refused", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<Error>,
    },
    /// The document has more bytes than any sensible configuration.
    #[error("the configuration is larger than {limit_bytes} bytes; is it the right file?")]
    TooLarge {
        /// The bound it exceeds.
        limit_bytes: u64,
    },
    /// The text is not JSON.
    #[error("line {line}, column {column}: not valid JSON: {reason}")]
    Syntax {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What the JSON reader expected.
        reason: String,
    },
    /// A key that neither Firecracker nor we know.
    #[error("{path}: unknown key (line {line}, column {column}); {remedy}")]
    UnknownKey {
        /// Where, including the key.
        path: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// The likely key, or the list of those known.
        remedy: String,
    },
    /// A key that has to be there is not.
    #[error("{path}: missing; this key is required")]
    Missing {
        /// Where it belongs.
        path: String,
    },
    /// A value of the wrong type, or a word that is not one of the choices.
    #[error("{path}: {reason} (line {line}, column {column})")]
    Shape {
        /// Where.
        path: String,
        /// What was found and what was expected.
        reason: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// A value that is well formed but cannot be.
    #[error("{path}: {value}: {reason}; {remedy}")]
    Invalid {
        /// Where.
        path: String,
        /// What was asked for.
        value: String,
        /// Why it cannot be.
        reason: String,
        /// What to write instead.
        remedy: String,
    },
    /// Firecracker knows it; this VMM does not do it, yet or at all.
    #[error("{path}: not supported: {reason}; {remedy}")]
    Unsupported {
        /// Where.
        path: String,
        /// Why not.
        reason: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A tap the configuration names cannot be used.
    #[error("{path}: the tap cannot be used")]
    Tap {
        /// Where in the document.
        path: String,
        /// Why.
        source: TapError,
    },
    /// A file the configuration names cannot be used.
    #[error("{path}: cannot {attempt} {}", file.display())]
    File {
        /// Where in the document.
        path: String,
        /// The file it names.
        file: PathBuf,
        /// What was attempted, such as `open for reading`.
        attempt: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn invalid(
        path: impl Into<String>,
        value: impl fmt::Display,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let value = shown(&value.to_string());
        Error::Invalid { path: path.into(), value, reason: reason.into(), remedy: remedy.into() }
    }
}

/// A value as messages show it: on one line, and not longer than a line.
fn shown(value: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 160;
    let mut text: String =
        value.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    if value.chars().nth(SHOWN_CHARS_MAX).is_some() {
        text.push_str("...");
    }
    if text.is_empty() { "(empty)".into() } else { text }
}
