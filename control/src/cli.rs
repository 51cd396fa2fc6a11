//! The command line of `rotifer`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use lexopt::{Arg, Parser};

use crate::state::Directory;

/// Where a daemon listens unless it is told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8443";

/// The text of `--help`.
pub const HELP: &str = "\
rotifer: microVMs behind the AWS API

Usage: rotifer serve [--listen ADDRESS] [--state DIRECTORY] [--config FILE]
       rotifer env [--state DIRECTORY]

`serve` runs the daemon until a signal ends it. It listens on 127.0.0.1:8443 and keeps everything in
~/.local/state/rotifer, unless told otherwise. Port 0 is any that is free.

  --listen ADDRESS    an address other than loopback needs --listen-anywhere beside it
  --listen-anywhere   this host's network may reach the daemon; only the access key keeps it out
  --state DIRECTORY   what the daemon keeps; one daemon at a time
  --config FILE       settings in JSON: region, account, endpoint-domain, quotas, rates

`env` prints what the AWS CLI and the SDKs need, for a shell:  eval \"$(rotifer env)\"

  --version           print the version
  --help              print this

RUST_LOG says what is logged to standard error (info).
";

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run the daemon.
    Serve(Options),
    /// Print the variables.
    Env {
        /// The daemon's directory.
        state: PathBuf,
    },
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
}

/// How to run the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its directory.
    pub state: PathBuf,
    /// Its settings.
    pub config: Option<PathBuf>,
}

/// Why a command line is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Error {
    #[error("wrong usage; see --help")]
    Usage(#[source] lexopt::Error),
    #[error("what to do is `serve` or `env`; see --help")]
    Nothing,
    #[error("--listen {text:?} is not an address and a port, like {DEFAULT_LISTEN}")]
    Address { text: String },
    #[error(
        "--listen {address} is not loopback: others could reach the daemon; add --listen-anywhere if they shall"
    )]
    Exposed { address: SocketAddr },
    #[error("--{option} is given twice, or not for this command")]
    Misplaced { option: String },
    #[error("neither XDG_STATE_HOME nor HOME is set: use --state")]
    NoState,
}

#[derive(Default)]
struct Given {
    listen: Option<String>,
    anywhere: bool,
    state: Option<PathBuf>,
    config: Option<PathBuf>,
}

/// Reads the arguments, the program's name not among them.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Error> {
    let mut parser = Parser::from_args(arguments);
    let (mut word, mut given) = (None, Given::default());
    while let Some(argument) = parser.next().map_err(Error::Usage)? {
        match argument {
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            Arg::Long("version") | Arg::Short('V') => return Ok(Command::Version),
            Arg::Value(value) if word.is_none() => word = value.into_string().ok(),
            Arg::Long("listen") => {
                let value = parser.value().map_err(Error::Usage)?;
                once("listen", &mut given.listen, value.to_string_lossy().into_owned())?;
            }
            Arg::Long("listen-anywhere") => given.anywhere = true,
            Arg::Long("state") => {
                let value = parser.value().map_err(Error::Usage)?;
                once("state", &mut given.state, value.into())?;
            }
            Arg::Long("config") => {
                let value = parser.value().map_err(Error::Usage)?;
                once("config", &mut given.config, value.into())?;
            }
            other => return Err(Error::Usage(other.unexpected())),
        }
    }
    let state = given.state.take().or_else(Directory::default_path).ok_or(Error::NoState);
    match word.as_deref() {
        Some("serve") => {
            let (listen, config) = (given.address()?, given.config);
            Ok(Command::Serve(Options { listen, state: state?, config }))
        }
        Some("env") => match given {
            Given { listen: None, config: None, anywhere: false, .. } => {
                Ok(Command::Env { state: state? })
            }
            _ => Err(Error::Misplaced { option: "listen or --config".into() }),
        },
        _ => Err(Error::Nothing),
    }
}

impl Given {
    fn address(&self) -> Result<SocketAddr, Error> {
        let text = self.listen.as_deref().unwrap_or(DEFAULT_LISTEN);
        let address: SocketAddr = text.parse().map_err(|_| Error::Address { text: text.into() })?;
        if address.ip().is_loopback() || self.anywhere {
            return Ok(address);
        }
        Err(Error::Exposed { address })
    }
}

fn once<T>(option: &str, place: &mut Option<T>, value: T) -> Result<(), Error> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Error::Misplaced { option: option.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Command, Error> {
        parse(text.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_daemon_listens_on_loopback_unless_it_is_said_twice() {
        let listen = |text: &str| match parse_text(text) {
            Ok(Command::Serve(options)) => Ok(options.listen.to_string()),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(listen("serve --state /x").unwrap(), DEFAULT_LISTEN);
        assert_eq!(listen("serve --state /x --listen [::1]:0").unwrap(), "[::1]:0");
        assert!(listen("serve --state /x --listen 0.0.0.0:1").unwrap_err().contains("anywhere"));
        listen("serve --state /x --listen 0.0.0.0:1 --listen-anywhere").unwrap();
        assert!(listen("serve --state /x --listen localhost").unwrap_err().contains("localhost"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in
            ["", "run", "serve --bogus", "serve --state a --state b", "env --listen 127.0.0.1:1"]
        {
            assert!(parse_text(text).is_err(), "{text}");
        }
        assert_eq!(parse_text("env --state /x").unwrap(), Command::Env { state: "/x".into() });
    }
}
