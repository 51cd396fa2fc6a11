//! The command line of `rotifer`.

pub mod completions;
pub mod table;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::PathBuf;

use lexopt::{Arg, Parser};

use crate::bases;
use crate::clock::Timestamp;
use crate::commands::{Request, What, usage};
use crate::doctor;
use crate::state::Directory;
use completions::Shell;
use table::{CommandRow, EVERYWHERE, OptionRow};

/// Where a daemon listens unless it is told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8443";

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
    /// Say what this host lacks.
    Doctor(doctor::Wish),
    /// List or change base images.
    Base(bases::Wish),
    /// Print what a shell completes.
    Completions(Shell),
    /// Print [`table::help`].
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
    /// Whether it logs JSON.
    pub log_json: bool,
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
    #[error("{operand:?} is not UTF-8")]
    Text { operand: OsString },
    #[error("{option}: given twice, or not for this command; see --help")]
    Misplaced { option: String },
    #[error(
        "`rotifer base` needs the daemon's settings, which name the builds' store: --config FILE"
    )]
    NoConfig,
    #[error("neither XDG_STATE_HOME nor HOME is set: use --state")]
    NoState,
}

/// What is on a command line.
#[derive(Default)]
struct Given {
    /// Options by their long names; a switch has an empty value.
    options: BTreeMap<&'static str, OsString>,
    operands: Vec<OsString>,
}

/// Reads the arguments, the program's name not among them.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Error> {
    let mut parser = Parser::from_args(arguments);
    let (mut word, mut given) = (None, Given::default());
    while let Some(argument) = parser.next().map_err(Error::Usage)? {
        let is = |row: &&OptionRow| match argument {
            Arg::Long(name) => row.name == name,
            Arg::Short(letter) => row.short == Some(letter),
            Arg::Value(_) => false,
        };
        let Some(row) = table::OPTIONS.iter().find(is) else {
            match argument {
                Arg::Value(value) if word.is_none() => word = Some(value),
                Arg::Value(value) => given.operands.push(value),
                other => return Err(Error::Usage(other.unexpected())),
            }
            continue;
        };
        match row.name {
            "help" => return Ok(Command::Help),
            "version" => return Ok(Command::Version),
            _ => {}
        }
        let value = row.value.map(|_| parser.value().map_err(Error::Usage)).transpose()?;
        let before = given.options.insert(row.name, value.unwrap_or_default());
        if before.is_some() && row.value.is_some() {
            return Err(Error::Misplaced { option: format!("--{}", row.name) });
        }
    }
    let row = word.as_deref().and_then(OsStr::to_str).and_then(table::command);
    let row = row.ok_or(Error::Nothing)?;
    given.check(row)?;
    given.command(row.word)
}

impl Given {
    /// Refuses options and operands that mean nothing to a command.
    fn check(&self, row: &CommandRow) -> Result<(), Error> {
        let is_known = |name: &&str| row.options.contains(name) || EVERYWHERE.contains(name);
        if let Some(name) = self.options.keys().find(|name| !is_known(name)) {
            return Err(Error::Misplaced { option: format!("--{name}") });
        }
        match self.operands.first() {
            Some(operand) if row.operands.is_empty() => {
                Err(Error::Misplaced { option: operand.to_string_lossy().into_owned() })
            }
            _ => Ok(()),
        }
    }

    fn command(mut self, word: &'static str) -> Result<Command, Error> {
        let (config, json) = (self.path("config"), self.has("json"));
        match word {
            // They need no daemon's directory.
            "completions" => {
                let shell = match &self.texts()?[..] {
                    [name] => Shell::named(name),
                    _ => None,
                };
                let needs = || Error::Operand { word: word.into(), what: "bash, zsh or fish" };
                return Ok(Command::Completions(shell.ok_or_else(needs)?));
            }
            "base" => {
                let config = config.ok_or(Error::NoConfig)?;
                let what = base(self.texts()?)?;
                return Ok(Command::Base(bases::Wish { config, json, what }));
            }
            _ => {}
        }
        let state = self.path("state").or_else(Directory::default_path).ok_or(Error::NoState)?;
        Ok(match word {
            "serve" => {
                let (listen, log_json) = (self.address()?, self.has("log-json"));
                Command::Serve(Options { listen, state, config, log_json })
            }
            "env" => Command::Env { state },
            "doctor" => Command::Doctor(doctor::Wish { state, config, json }),
            _ => Command::Ask(Request { state, json, what: self.what(word)? }),
        })
    }

    /// The operands, each of them text.
    fn texts(&mut self) -> Result<Vec<String>, Error> {
        std::mem::take(&mut self.operands).into_iter().map(text).collect()
    }

    fn what(mut self, word: &str) -> Result<What, Error> {
        let needs = |what| Error::Operand { word: word.into(), what };
        if word == "build" {
            return self.build();
        }
        let (follow, tty) = (self.has("follow"), self.has("tty"));
        let operands = self.texts()?;
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
            "run" => What::Run { image: one(operands, "the name of one image")? },
            "shell" => What::Shell { id: one(operands, "the id of one microVM")? },
            "exec" => {
                let mut operands = operands.into_iter();
                let id = operands.next().ok_or_else(|| needs("the id of a microVM"))?;
                let command: Vec<String> = operands.collect();
                if command.is_empty() {
                    return Err(needs("a command, behind --"));
                }
                What::Exec { id, command, tty }
            }
            "suspend" => What::Suspend { ids: ids(operands)? },
            "resume" => What::Resume { ids: ids(operands)? },
            "rm" => What::Remove { ids: ids(operands)? },
            "logs" => {
                let of = one(operands, "the name of one image or the id of one microVM")?;
                What::Logs { of, follow }
            }
            "usage" => {
                let needs = || {
                    needs("one microVM or --images at most, and a time behind --since, like 24h")
                };
                let said = self.options.remove("since").map(text).transpose()?;
                let since =
                    said.map(|text| usage::since(&text, Timestamp::now()).ok_or_else(needs));
                let images = self.has("images");
                let of = match (operands.as_slice(), images, since.transpose()?) {
                    ([], false, since) => usage::Of::Microvms { since },
                    ([], true, since) => usage::Of::Versions { since },
                    // A timeline has no beginning but the first.
                    ([id], false, None) => usage::Of::Microvm { id: id.clone() },
                    _ => return Err(needs()),
                };
                What::Usage { of }
            }
            _ => return Err(Error::Nothing),
        })
    }

    fn build(mut self) -> Result<What, Error> {
        let needs = |what| Error::Operand { word: "build".into(), what };
        let name = self.options.remove("name").ok_or_else(|| needs("--name NAME"))?;
        let memory = self.options.remove("memory").map(text).transpose()?;
        let memory_mib = memory.map(|text| text.parse()).transpose();
        let memory_mib = memory_mib.map_err(|_| needs("a number of MiB behind --memory"))?;
        let mut operands = std::mem::take(&mut self.operands).into_iter();
        let directory = operands.next().map_or_else(|| ".".into(), PathBuf::from);
        match operands.next() {
            None => Ok(What::Build { directory, name: text(name)?, memory_mib }),
            Some(_) => Err(needs("one directory")),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.options.contains_key(name)
    }

    fn path(&mut self, name: &str) -> Option<PathBuf> {
        self.options.remove(name).map(PathBuf::from)
    }

    fn address(&self) -> Result<SocketAddr, Error> {
        let text = self.options.get("listen").map(|text| text.to_string_lossy());
        let text = text.as_deref().unwrap_or(DEFAULT_LISTEN);
        let address: SocketAddr = text.parse().map_err(|_| Error::Address { text: text.into() })?;
        if address.ip().is_loopback() || self.has("listen-anywhere") {
            return Ok(address);
        }
        Err(Error::Exposed { address })
    }
}

fn text(value: OsString) -> Result<String, Error> {
    value.into_string().map_err(|operand| Error::Text { operand })
}

/// What to do with base images.
fn base(operands: Vec<String>) -> Result<bases::What, Error> {
    let what = match &operands.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["add", name] => bases::What::Add { name: (*name).into(), from: None },
        ["add", name, from] => bases::What::Add { name: (*name).into(), from: Some(from.into()) },
        ["list"] => bases::What::List,
        ["rm", name] => bases::What::Remove { name: (*name).into() },
        _ => {
            let what = "add NAME, add NAME PATH, add NAME docker://IMAGE, list or rm NAME";
            return Err(Error::Operand { word: "base".into(), what });
        }
    };
    Ok(what)
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
            "exec x",
            "exec x -- ",
            "exec x ls -l",
            "shell x y",
            "build",
            "build --name x a b",
            "build --name x --memory much",
            "base list",
            "base add --config c",
            "base rm x y --config c",
            "completions",
            "completions tcsh",
            "completions bash zsh",
            "doctor x",
            "usage x y",
            "usage --since yesterday",
            "usage x --since 1h",
            "usage x --images",
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
        let command = vec!["ls".to_owned(), "-l".into(), "--state".into()];
        let exec = What::Exec { id: "x".into(), command, tty: true };
        assert_eq!(what("exec --state /x -t x -- ls -l --state"), (false, exec));
        let follow = What::Logs { of: "mine".into(), follow: true };
        assert_eq!(what("logs -f mine --state /x"), (false, follow));
        assert_eq!(parse_text("env --state /x").unwrap(), Command::Env { state: "/x".into() });
    }
}
