//! The command line of `rotifer-build`.

use lexopt::prelude::*;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Where the settings are unless `--settings` says otherwise.
pub const SETTINGS_VARIABLE: &str = "ROTIFER_BUILD_SETTINGS";
/// What the root disk is called unless `--disk` says otherwise.
const DEFAULT_DISK: &str = "image.ext4";

/// The text of `--help`.
pub const HELP: &str = "\
rotifer-build: root disks from zips with a Dockerfile, without a Docker engine

Usage: rotifer-build build [--settings FILE] [options] DIRECTORY|ZIP
       rotifer-build base add [--settings FILE | --store DIRECTORY] [--from PATH|docker://IMAGE | --packages A,B] NAME
       rotifer-build base list [--settings FILE | --store DIRECTORY]
       rotifer-build network

`build` makes the image of a directory or a zip with a Dockerfile at its root; its configuration goes
beside the disk, with .json behind the name. It needs an ARM64 host with KVM.

  --disk FILE             the root disk (image.ext4)
  --build-arg NAME=VALUE  for an ARG; as often as needed
  --no-cache              do all steps, whatever earlier builds have done

`base add` takes a base image in: made from Debian's packages with this machine's apt sources (debian:12),
with more of them (--packages), or from an OCI layout, a docker save or a registry (--from). `base list` lists them.

`network` prints what this machine's configuration says about mirrors and certificates, for the key
network_file of the settings.

  --settings FILE         what the host gives to builds (docs/image-builds.md); $ROTIFER_BUILD_SETTINGS
  --json                  an object a line in place of text
  --help                  print this

Exit status: 0 it is done; 1 the archive, the Dockerfile or a command of it failed; 2 wrong usage; 3 the
host failed.
";

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Build an image.
    Build {
        /// A directory or a zip.
        source: PathBuf,
        /// The root disk.
        disk: PathBuf,
        /// Build arguments.
        args: BTreeMap<String, String>,
        /// Whether all steps are done.
        no_cache: bool,
    },
    /// Take a base image in.
    BaseAdd {
        /// Its name.
        name: String,
        /// An image in a file, a directory or a registry.
        from: Option<PathBuf>,
        /// Debian's packages beyond the usual ones.
        packages: Vec<String>,
    },
    /// List the base images.
    BaseList,
    /// Print the machine's network settings.
    Network,
    /// Print [`HELP`].
    Help,
}

/// A command and what all of them have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// What to do.
    pub command: Command,
    /// The settings' file.
    pub settings: Option<PathBuf>,
    /// The store, where no settings say which.
    pub store: Option<PathBuf>,
    /// Whether programs read the output.
    pub json: bool,
}

/// Options before it is known whether the command has them.
#[derive(Default)]
struct Given {
    words: Vec<OsString>,
    settings: Option<PathBuf>,
    store: Option<PathBuf>,
    json: bool,
    disk: Option<PathBuf>,
    args: BTreeMap<String, String>,
    no_cache: bool,
    from: Option<PathBuf>,
    packages: Vec<String>,
}

/// Reads the command line, without the program's name.
///
/// # Errors
/// What is wrong with it.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, lexopt::Error> {
    let mut given = Given::default();
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => {
                let (settings, store) = (None, None);
                return Ok(Invocation { command: Command::Help, settings, store, json: false });
            }
            Long("settings") => given.settings = Some(parser.value()?.into()),
            Long("store") => given.store = Some(parser.value()?.into()),
            Long("json") => given.json = true,
            Long("disk") => given.disk = Some(parser.value()?.into()),
            Long("build-arg") => {
                let text = parser.value()?.string()?;
                let (name, value) = text
                    .split_once('=')
                    .ok_or_else(|| format!("--build-arg {text:?} is not NAME=VALUE"))?;
                given.args.insert(name.into(), value.into());
            }
            Long("no-cache") => given.no_cache = true,
            Long("from") => given.from = Some(parser.value()?.into()),
            Long("packages") => {
                let list = parser.value()?.string()?;
                given.packages.extend(list.split(',').map(str::to_owned));
            }
            Value(word) => given.words.push(word),
            other => return Err(other.unexpected()),
        }
    }
    let words: Vec<&str> = given.words.iter().map(|word| word.to_str().unwrap_or("")).collect();
    let command = match (&words[..], &given.words[..]) {
        (["build", _], [_, source]) => Command::Build {
            source: source.into(),
            disk: given.disk.take().unwrap_or_else(|| DEFAULT_DISK.into()),
            args: std::mem::take(&mut given.args),
            no_cache: std::mem::take(&mut given.no_cache),
        },
        (["build", ..], _) => return Err("build wants one directory or zip".into()),
        (["base", "add", name], _) => Command::BaseAdd {
            name: (*name).to_owned(),
            from: given.from.take(),
            packages: std::mem::take(&mut given.packages),
        },
        (["base", "add", ..], _) => return Err("base add wants one name, like debian:12".into()),
        (["base", "list"], _) => Command::BaseList,
        (["network"], _) => Command::Network,
        _ => return Err("what to do is build, base add, base list or network".into()),
    };
    given.finish(command)
}

impl Given {
    /// What the command did not take is too much.
    fn finish(self, command: Command) -> Result<Invocation, lexopt::Error> {
        let left = [
            ("--disk", self.disk.is_some()),
            ("--build-arg", !self.args.is_empty()),
            ("--no-cache", self.no_cache),
            ("--from", self.from.is_some()),
            ("--packages", !self.packages.is_empty()),
        ];
        if let Some((name, _)) = left.iter().find(|(_, is_given)| *is_given) {
            return Err(format!("{name} is not an option of this command").into());
        }
        if let Command::BaseAdd { from: Some(_), packages, .. } = &command
            && !packages.is_empty()
        {
            return Err("--from and --packages exclude each other".into());
        }
        if matches!(command, Command::Build { .. }) && self.store.is_some() {
            return Err("--store is not an option of this command: the settings say it".into());
        }
        Ok(Invocation { command, settings: self.settings, store: self.store, json: self.json })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Invocation, String> {
        parse(line.split_whitespace().map(Into::into)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_build_has_its_options() {
        let invocation = parsed("build --json --build-arg A=b=c --settings s.json app").unwrap();
        assert_eq!((invocation.json, invocation.settings), (true, Some("s.json".into())));
        let args = [("A".to_owned(), "b=c".to_owned())].into();
        let (source, disk) = ("app".into(), DEFAULT_DISK.into());
        assert_eq!(invocation.command, Command::Build { source, disk, args, no_cache: false });
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (line, reason) in [
            ("", "what to do"),
            ("build", "one directory or zip"),
            ("build a b", "one directory or zip"),
            ("build --from x a", "--from"),
            ("build --store x a", "--store"),
            ("build --build-arg A a", "NAME=VALUE"),
            ("base add", "one name"),
            ("base add --no-cache x", "--no-cache"),
            ("base add --from a --packages b x", "exclude"),
            ("base list --disk x", "--disk"),
            ("network --what", "--what"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(reason), "{line:?}: {error}");
        }
    }
}
