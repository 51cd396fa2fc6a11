//! The command line of `rotifer`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use lexopt::{Arg, Parser};

use crate::commands::{Request, What};
use crate::state::Directory;

/// Where a daemon listens unless it is told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8443";

/// The text of `--help`.
pub const HELP: &str = "\
rotifer: microVMs behind the AWS API

Usage: rotifer serve [--listen ADDRESS] [--state DIRECTORY] [--config FILE]
       rotifer env [--state DIRECTORY]
       rotifer ps | images [--json]
       rotifer run IMAGE [--json]
       rotifer suspend | resume | rm MICROVM...
       rotifer logs [-f] IMAGE | MICROVM [--json]

`serve` runs the daemon until a signal ends it. It listens on 127.0.0.1:8443 and keeps everything in
~/.local/state/rotifer, unless told otherwise. Port 0 is any that is free.

  --listen ADDRESS    an address other than loopback needs --listen-anywhere beside it
  --listen-anywhere   this host's network may reach the daemon; only the access key keeps it out
  --state DIRECTORY   what the daemon keeps; one daemon at a time
  --config FILE       settings in JSON: docs/api-compatibility.md has them all

`env` prints what the AWS CLI and the SDKs need, for a shell:  eval \"$(rotifer env)\"

The others ask the daemon that keeps its state in the directory. `run` starts a microVM from an image, by name
or ARN, and prints its id and its endpoint; `rm` terminates; `logs -f` goes on. They exit with 1 if the
daemon refuses, with 2 if the command line makes no sense.

  --json              print a JSON document for each line
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
    /// Ask the daemon.
    Ask(Request),
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
    #[error("what to do is missing, or unknown; see --help")]
    Nothing,
    #[error("`rotifer {word}` needs {what}; see --help")]
    Operand { word: String, what: &'static str },
    #[error("--listen {text:?} is not an address and a port, like {DEFAULT_LISTEN}")]
    Address { text: String },
    #[error(
        "--listen {address} is not loopback: others could reach the daemon; add --listen-anywhere if they shall"
    )]
    Exposed { address: SocketAddr },
    #[error("{option}: given twice, or not for this command; see --help")]
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
    json: bool,
    follow: bool,
    operands: Vec<String>,
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
            Arg::Value(value) => given.operands.push(value.to_string_lossy().into_owned()),
            Arg::Long("json") => given.json = true,
            Arg::Long("follow") | Arg::Short('f') => given.follow = true,
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
    let state = given.state.take().or_else(Directory::default_path).ok_or(Error::NoState)?;
    let word = word.ok_or(Error::Nothing)?;
    match word.as_str() {
        "serve" => {
            given.allows_only(&["listen", "config"])?;
            let (listen, config) = (given.address()?, given.config);
            Ok(Command::Serve(Options { listen, state, config }))
        }
        "env" => given.allows_only(&[]).map(|()| Command::Env { state }),
        _ => {
            let json = given.json;
            Ok(Command::Ask(Request { state, json, what: given.what(&word)? }))
        }
    }
}

impl Given {
    fn what(self, word: &str) -> Result<What, Error> {
        let allowed: &[&str] = match word {
            "ps" | "images" => &["json"],
            "run" => &["json", "operands"],
            "suspend" | "resume" | "rm" => &["operands"],
            "logs" => &["json", "follow", "operands"],
            _ => return Err(Error::Nothing),
        };
        self.allows_only(allowed)?;
        let needs = |what| Error::Operand { word: word.into(), what };
        let follow = self.follow;
        let one = |operands: Vec<String>, what| {
            <[String; 1]>::try_from(operands).map(|[operand]| operand).map_err(|_| needs(what))
        };
        let ids = |operands: Vec<String>| {
            if operands.is_empty() {
                Err(needs("the id of a microVM, or more"))
            } else {
                Ok(operands)
            }
        };
        Ok(match word {
            "ps" => What::Ps,
            "images" => What::Images,
            "run" => What::Run { image: one(self.operands, "the name of one image")? },
            "suspend" => What::Suspend { ids: ids(self.operands)? },
            "resume" => What::Resume { ids: ids(self.operands)? },
            "rm" => What::Remove { ids: ids(self.operands)? },
            _ => {
                let of = one(self.operands, "the name of one image or the id of one microVM")?;
                What::Logs { of, follow }
            }
        })
    }

    /// Refuses options that mean nothing to a command.
    fn allows_only(&self, allowed: &[&str]) -> Result<(), Error> {
        let given = [
            ("listen", self.listen.is_some() || self.anywhere),
            ("config", self.config.is_some()),
            ("json", self.json),
            ("follow", self.follow),
            ("operands", !self.operands.is_empty()),
        ];
        match given.iter().find(|(name, is_given)| *is_given && !allowed.contains(name)) {
            Some((name, _)) => Err(Error::Misplaced { option: (*name).into() }),
            None => Ok(()),
        }
    }

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
        for text in [
            "",
            "run",
            "rm",
            "run a b",
            "ps --follow",
            "suspend",
            "logs",
            "serve x",
            "bogus",
            "serve --bogus",
            "serve --state a --state b",
            "env --listen 127.0.0.1:1",
        ] {
            assert!(parse_text(text).is_err(), "{text}");
        }
        let what = |text: &str| match parse_text(text).unwrap() {
            Command::Ask(Request { json, what, .. }) => (json, what),
            other => panic!("{other:?}"),
        };
        assert_eq!(what("ps --state /x --json"), (true, What::Ps));
        let ids = vec!["a".to_owned(), "b".into()];
        assert_eq!(what("rm a b --state /x"), (false, What::Remove { ids }));
        let follow = What::Logs { of: "mine".into(), follow: true };
        assert_eq!(what("logs -f mine --state /x"), (false, follow));
        assert_eq!(parse_text("env --state /x").unwrap(), Command::Env { state: "/x".into() });
    }
}
