//! The commands and options: what the parser takes, the help lists and shells complete.

use super::completions::SHELLS;

/// A command.
#[derive(Debug)]
pub struct CommandRow {
    /// Its name.
    pub word: &'static str,
    /// What stands behind it, for the help; empty if nothing may.
    pub operands: &'static str,
    /// What a shell offers in that place.
    pub offers: Offers,
    /// Its options, besides those of all.
    pub options: &'static [&'static str],
    /// What it does.
    pub about: &'static str,
}

/// An option.
#[derive(Debug)]
pub struct OptionRow {
    /// Without `--`.
    pub name: &'static str,
    /// Without `-`.
    pub short: Option<char>,
    /// What its value is called; a switch has none.
    pub value: Option<&'static str>,
    /// What it does.
    pub about: &'static str,
}

/// What operands may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offers {
    /// Nothing that is known.
    Nothing,
    /// Files and directories.
    Files,
    /// Ids of microVMs.
    Microvms,
    /// Names of images.
    Images,
    /// One of these.
    Words(&'static [&'static str]),
}

/// Options of every command.
pub const EVERYWHERE: [&str; 2] = ["state", "help"];

/// All commands.
pub const COMMANDS: &[CommandRow] = &[
    CommandRow {
        word: "serve",
        operands: "",
        offers: Offers::Nothing,
        options: &["listen", "listen-anywhere", "config", "log-json"],
        about: "run the daemon until a signal ends it",
    },
    CommandRow {
        word: "env",
        operands: "",
        offers: Offers::Nothing,
        options: &[],
        about: "print what the AWS CLI and the SDKs need: eval \"$(rotifer env)\"",
    },
    CommandRow {
        word: "ps",
        operands: "",
        offers: Offers::Nothing,
        options: &["json"],
        about: "list microVMs",
    },
    CommandRow {
        word: "images",
        operands: "",
        offers: Offers::Nothing,
        options: &["json"],
        about: "list images",
    },
    CommandRow {
        word: "run",
        operands: "IMAGE",
        offers: Offers::Images,
        options: &["json"],
        about: "start a microVM of an image, by name or ARN; print its id and endpoint",
    },
    CommandRow {
        word: "shell",
        operands: "MICROVM",
        offers: Offers::Microvms,
        options: &[],
        about: "a terminal of root in a microVM",
    },
    CommandRow {
        word: "exec",
        operands: "[-t] MICROVM -- COMMAND...",
        offers: Offers::Microvms,
        options: &["tty"],
        about: "run a command in a microVM as its app is run",
    },
    CommandRow {
        word: "suspend",
        operands: "MICROVM...",
        offers: Offers::Microvms,
        options: &[],
        about: "suspend microVMs",
    },
    CommandRow {
        word: "resume",
        operands: "MICROVM...",
        offers: Offers::Microvms,
        options: &[],
        about: "resume microVMs",
    },
    CommandRow {
        word: "rm",
        operands: "MICROVM...",
        offers: Offers::Microvms,
        options: &[],
        about: "terminate microVMs",
    },
    CommandRow {
        word: "logs",
        operands: "IMAGE|MICROVM",
        offers: Offers::Microvms,
        options: &["follow", "json"],
        about: "show what builds and apps say",
    },
    CommandRow {
        word: "build",
        operands: "--name NAME [DIRECTORY]",
        offers: Offers::Files,
        options: &["name", "memory", "json"],
        about: "make an image, or its next version, of a directory with a Dockerfile",
    },
    CommandRow {
        word: "usage",
        operands: "[MICROVM]",
        offers: Offers::Microvms,
        options: &["since", "images", "json"],
        about: "what microVMs have used, or when one came to each of its phases",
    },
    CommandRow {
        word: "base",
        operands: "add NAME [FROM] | list | rm NAME",
        offers: Offers::Words(&["add", "list", "rm"]),
        options: &["config", "json"],
        about: "base images: of Debian packages, docker://IMAGE, a layout, a save",
    },
    CommandRow {
        word: "doctor",
        operands: "",
        offers: Offers::Nothing,
        options: &["config", "json"],
        about: "say what this host lacks to run microVMs, and the remedy",
    },
    CommandRow {
        word: "completions",
        operands: "bash|zsh|fish",
        offers: Offers::Words(SHELLS),
        options: &[],
        about: "for a shell to complete all this: source <(rotifer completions bash)",
    },
];

/// All options.
pub const OPTIONS: &[OptionRow] = &[
    OptionRow {
        name: "state",
        short: None,
        value: Some("DIRECTORY"),
        about: "what the daemon keeps (~/.local/state/rotifer); one daemon at a time",
    },
    OptionRow {
        name: "listen",
        short: None,
        value: Some("ADDRESS"),
        about: "where (127.0.0.1:8443); port 0 is any that is free",
    },
    OptionRow {
        name: "listen-anywhere",
        short: None,
        value: None,
        about: "needed beside an address that is not loopback: only the access key keeps the network out",
    },
    OptionRow {
        name: "log-json",
        short: None,
        value: None,
        about: "log a JSON document for each line, for whoever collects logs",
    },
    OptionRow {
        name: "config",
        short: None,
        value: Some("FILE"),
        about: "settings in JSON: docs/api-compatibility.md has them all",
    },
    OptionRow { name: "name", short: None, value: Some("NAME"), about: "what the image is called" },
    OptionRow {
        name: "memory",
        short: None,
        value: Some("MIB"),
        about: "what each of its microVMs has (2048), at most 8192",
    },
    OptionRow {
        name: "since",
        short: None,
        value: Some("TIME"),
        about: "only what was used since: like 2026-01-31T00:00:00Z, 24h or 7d",
    },
    OptionRow {
        name: "images",
        short: None,
        value: None,
        about: "what versions of images take on the disk, in place of microVMs",
    },
    OptionRow { name: "tty", short: Some('t'), value: None, about: "give the command a terminal" },
    OptionRow { name: "follow", short: Some('f'), value: None, about: "go on as more is said" },
    OptionRow {
        name: "json",
        short: None,
        value: None,
        about: "print a JSON document for each line",
    },
    OptionRow { name: "version", short: Some('V'), value: None, about: "print the version" },
    OptionRow { name: "help", short: Some('h'), value: None, about: "print this" },
];

/// What does not fit into a line of the table.
const NOTES: &str = "\
Most commands ask the daemon that keeps its state in the directory. They exit with 1 if it refuses, with 2 if
the command line makes no sense.

`shell` and `exec` exit as what they run does: its status, 128 and the signal's number if one ended it, 255 if it
could not be run. What `exec` runs has the app's user, directory and environment, and ends with the connection.

`build` uploads the directory, without .git and what .dockerignore hides, to the bucket rotifer-builds, and shows
the build until it ends; Ctrl-C leaves it going. It exits with 1 if the build fails, and `doctor` if microVMs
cannot run. `base` and `doctor` need no daemon; base images are in the store that `host.builds` names.

RUST_LOG says what is logged to standard error (info).
";

/// The row of a command.
pub fn command(word: &str) -> Option<&'static CommandRow> {
    COMMANDS.iter().find(|row| row.word == word)
}

/// The row of an option, by its name.
pub fn option(name: &str) -> Option<&'static OptionRow> {
    OPTIONS.iter().find(|row| row.name == name)
}

/// The text of `--help`.
pub fn help() -> String {
    let mut text =
        "rotifer: microVMs behind the AWS API\n\nUsage: rotifer COMMAND [OPTION...]\n\n".to_owned();
    let mut table = |rows: Vec<(String, String)>| {
        let width = rows.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
        for (left, right) in rows {
            text += &format!("  {left:width$}  {right}\n");
        }
        text.push('\n');
    };
    table(
        COMMANDS
            .iter()
            .map(|row| (format!("{} {}", row.word, row.operands), row.about.to_owned()))
            .collect(),
    );
    let options = OPTIONS.iter().map(|row| {
        let value = row.value.map(|value| format!(" {value}")).unwrap_or_default();
        let short = row.short.map(|short| format!("-{short}, ")).unwrap_or_default();
        let has = |command: &&CommandRow| command.options.contains(&row.name);
        let of: Vec<_> = COMMANDS.iter().filter(has).map(|command| command.word).collect();
        let of = if of.is_empty() { String::new() } else { format!(" [{}]", of.join(", ")) };
        (format!("{short}--{}{value}", row.name), format!("{}{of}", row.about))
    });
    table(options.collect());
    text + NOTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_a_command_is_one_and_every_option_is_of_a_command() {
        let of_commands = || COMMANDS.iter().flat_map(|row| row.options).chain(&EVERYWHERE);
        for name in of_commands() {
            assert!(option(name).is_some(), "{name}");
        }
        for row in OPTIONS.iter().filter(|row| row.name != "version") {
            assert!(of_commands().any(|name| *name == row.name), "{}", row.name);
        }
    }

    #[test]
    fn the_help_fits_on_a_screen_of_usual_width() {
        for line in help().lines() {
            assert!(line.chars().count() <= 120, "{line}");
        }
    }
}
