//! What shells complete, from the same table that the parser reads.

use std::fmt::Write;

use super::table::{COMMANDS, CommandRow, EVERYWHERE, OPTIONS, Offers, OptionRow};

/// A shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Their names.
pub const SHELLS: &[&str] = &["bash", "zsh", "fish"];

/// What prints the first column of a list, for shells.
const MICROVMS: &str = "rotifer ps 2>/dev/null | sed -n '2,$s/ .*//p'";
const IMAGES: &str = "rotifer images 2>/dev/null | sed -n '2,$s/ .*//p'";

impl Shell {
    /// The shell of a name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "bash" => Some(Self::Bash),
            "zsh" => Some(Self::Zsh),
            "fish" => Some(Self::Fish),
            _ => None,
        }
    }

    /// What it has to read.
    pub fn script(self) -> String {
        match self {
            Self::Bash => bash(),
            Self::Zsh => zsh(),
            Self::Fish => fish(),
        }
    }
}

fn options(command: &CommandRow) -> impl Iterator<Item = &'static OptionRow> {
    let names = command.options.iter().chain(&EVERYWHERE).copied();
    names.filter_map(super::table::option)
}

fn commands() -> String {
    COMMANDS.iter().map(|row| row.word).collect::<Vec<_>>().join(" ")
}

fn bash() -> String {
    let mut cases = String::new();
    for command in COMMANDS {
        let options: Vec<_> = options(command).map(|row| format!("--{}", row.name)).collect();
        let operands = match command.offers {
            Offers::Nothing => String::new(),
            Offers::Files => "; COMPREPLY+=($(compgen -f -- \"$word\"))".into(),
            Offers::Microvms => operands_bash(&format!("$({MICROVMS})")),
            Offers::Images => operands_bash(&format!("$({IMAGES})")),
            Offers::Words(words) => operands_bash(&words.join(" ")),
        };
        let (word, options) = (command.word, options.join(" "));
        // Writing to a String cannot fail.
        let _ok = writeln!(
            cases,
            "    {word}) COMPREPLY=($(compgen -W \"{options}\" -- \"$word\")){operands} ;;"
        );
    }
    let with_value = |value: &str| {
        let rows = OPTIONS.iter().filter(|row| row.value == Some(value));
        rows.map(|row| format!("--{}", row.name)).collect::<Vec<_>>().join("|")
    };
    format!(
        "\
_rotifer() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
  COMPREPLY=()
  case $before in
    {directories}) COMPREPLY=($(compgen -d -- \"$word\")); return ;;
    {files}) COMPREPLY=($(compgen -f -- \"$word\")); return ;;
  esac
  if [ \"$COMP_CWORD\" = 1 ]; then
    COMPREPLY=($(compgen -W \"{commands}\" -- \"$word\"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}  esac
}}
complete -o filenames -F _rotifer rotifer
",
        directories = with_value("DIRECTORY"),
        files = with_value("FILE"),
        commands = commands(),
    )
}

fn operands_bash(words: &str) -> String {
    format!("; COMPREPLY+=($(compgen -W \"{words}\" -- \"$word\"))")
}

fn zsh() -> String {
    let (mut described, mut cases) = (String::new(), String::new());
    for command in COMMANDS {
        let _ok =
            writeln!(described, "    {}", quoted(&format!("{}:{}", command.word, command.about)));
        let mut specs: Vec<String> = options(command)
            .map(|row| {
                let value = row.value.map(|value| format!(":{value}:{}", action_zsh(value)));
                let about = row.about.replace(':', "\\:");
                quoted(&format!("--{}[{about}]{}", row.name, value.unwrap_or_default()))
            })
            .collect();
        match command.offers {
            Offers::Nothing => {}
            Offers::Files => specs.push(quoted("*:file:_files")),
            Offers::Microvms => specs.push(format!("\"*:microVM:($({MICROVMS}))\"")),
            Offers::Images => specs.push(format!("\"*:image:($({IMAGES}))\"")),
            Offers::Words(words) => specs.push(quoted(&format!("1:word:({})", words.join(" ")))),
        }
        let _ok = writeln!(cases, "    {}) _arguments {} ;;", command.word, specs.join(" "));
    }
    format!(
        "\
#compdef rotifer
_rotifer() {{
  local -a commands=(
{described}  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words
  (( CURRENT-- ))
  case $command in
{cases}  esac
}}
compdef _rotifer rotifer
"
    )
}

fn action_zsh(value: &str) -> &'static str {
    match value {
        "DIRECTORY" => "_files -/",
        "FILE" => "_files",
        _ => " ",
    }
}

fn fish() -> String {
    let mut text = "complete -c rotifer -f\n".to_owned();
    for command in COMMANDS {
        let word = command.word;
        let about = quoted(command.about);
        let _ok =
            writeln!(text, "complete -c rotifer -n __fish_use_subcommand -a {word} -d {about}");
        let seen = format!("complete -c rotifer -n '__fish_seen_subcommand_from {word}'");
        let offers = match command.offers {
            Offers::Nothing => None,
            Offers::Files => Some("-F".to_owned()),
            Offers::Microvms => Some(format!("-a \"({})\"", MICROVMS.replace('$', "\\$"))),
            Offers::Images => Some(format!("-a \"({})\"", IMAGES.replace('$', "\\$"))),
            Offers::Words(words) => Some(format!("-a {}", quoted(&words.join(" ")))),
        };
        if let Some(offers) = offers {
            let _ok = writeln!(text, "{seen} {offers}");
        }
        for row in options(command) {
            let short = row.short.map(|short| format!(" -s {short}")).unwrap_or_default();
            let value = match row.value {
                Some("DIRECTORY") => " -r -a '(__fish_complete_directories)'",
                Some("FILE") => " -r -F",
                Some(_) => " -x",
                None => "",
            };
            let about = quoted(row.about);
            let _ok = writeln!(text, "{seen} -l {}{short}{value} -d {about}", row.name);
        }
    }
    text
}

/// A text in single quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
