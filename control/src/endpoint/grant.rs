//! What a token grants: one microVM, some of its ports or its shell, for a time.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// The port that the service gives to shells.
pub const SHELL_PORT: u16 = 8022;
/// Ranges that one token names at most: a token has to fit in a header.
pub const RANGES_MAX: usize = 64;

/// What is in a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The microVM's id.
    #[serde(rename = "sub")]
    pub microvm: String,
    /// For what.
    #[serde(rename = "for")]
    pub scope: Scope,
    /// It is good until then.
    #[serde(rename = "exp_ms")]
    pub expires: Timestamp,
}

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Ports of the app: the first and the last of each range.
    Ports(Vec<(u16, u16)>),
    /// The shell.
    Shell,
}

impl Grant {
    /// Whether a port of the app is among what is granted.
    pub fn allows(&self, port: u16) -> bool {
        match &self.scope {
            Scope::Ports(ranges) => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
            }
            Scope::Shell => port == SHELL_PORT,
        }
    }
}
