//! The text of a Dockerfile, on its way to `parse-dockerfile` and back.

use crate::limits::INSTRUCTIONS_MAX;
use parse_dockerfile::{Command, Dockerfile, Flag, Instruction};

/// In place of the empty list, which the parser does not take.
const EMPTY: &str = "rotifer: no entrypoint";
/// Frontends that read the same language.
const FRONTENDS: &[&str] = &["docker/dockerfile", "docker.io/docker/dockerfile"];

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Dockerfile line {line}: {reason}")]
pub struct DockerfileError {
    /// Counted from 1.
    pub line: usize,
    /// For people.
    pub reason: String,
}

impl DockerfileError {
    /// An error of a line.
    pub fn new(line: usize, reason: impl Into<String>) -> Self {
        Self { line, reason: reason.into() }
    }
}

/// A text that parses.
#[derive(Debug)]
pub struct Source {
    text: String,
    /// The character that joins lines and keeps variables.
    pub escape: char,
}

impl Source {
    /// Checks that a text parses.
    ///
    /// # Errors
    /// Where it does not.
    pub fn new(text: &str) -> Result<Self, DockerfileError> {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        loop {
            let mut text = lines.join("\n");
            text.push('\n');
            let escape = parse_dockerfile::parse(&text).map(|parsed| check(&parsed));
            let error = match escape {
                Ok(escape) => return Ok(Self { escape: escape?, text }),
                Err(error) => error,
            };
            // Each turn rewrites one line, which is not rewritten again.
            let line = lines.get_mut(error.line().saturating_sub(1));
            match line.filter(|line| is_empty_entrypoint(line)) {
                Some(line) => *line = format!("ENTRYPOINT [\"{EMPTY}\"]"),
                None => return Err(DockerfileError::new(error.line().max(1), reason_of(&error))),
            }
        }
    }

    /// The instructions.
    ///
    /// # Errors
    /// None that [`Source::new`] had not.
    pub fn parse(&self) -> Result<Dockerfile<'_>, DockerfileError> {
        parse_dockerfile::parse(&self.text)
            .map_err(|error| DockerfileError::new(error.line().max(1), reason_of(&error)))
    }

    /// The line of a place in the text.
    #[must_use]
    pub fn line(&self, position: usize) -> usize {
        let before = self.text.as_bytes().get(..position).unwrap_or_default();
        before.iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    /// A shell-form command without its line continuations and the comments between them.
    #[must_use]
    pub fn join_lines(&self, raw: &str) -> String {
        let mut joined = String::new();
        for (index, line) in raw.lines().enumerate() {
            let is_comment = line.trim_start().starts_with('#') || line.trim().is_empty();
            if index > 0 && is_comment {
                continue;
            }
            let kept = line.trim_end();
            joined.push_str(kept.strip_suffix(self.escape).unwrap_or(line));
        }
        joined.trim().to_owned()
    }

    /// The first line of an instruction, for progress.
    #[must_use]
    pub fn title(&self, start: usize) -> String {
        let rest = self.text.get(start..).unwrap_or_default();
        rest.lines().next().unwrap_or_default().trim_end().to_owned()
    }
}

/// What the parser says, without the line that we say ourselves.
fn reason_of(error: &parse_dockerfile::Error) -> String {
    let text = error.to_string();
    match text.split_once(" at line ") {
        Some((reason, _)) => reason.to_owned(),
        None => text,
    }
}

fn is_empty_entrypoint(line: &str) -> bool {
    let words: String = line.split_whitespace().collect();
    words.eq_ignore_ascii_case("ENTRYPOINT[]")
}

/// Refuses what is not for us; the escape character.
fn check(parsed: &Dockerfile) -> Result<char, DockerfileError> {
    check_frontend(parsed)?;
    if parsed.instructions.len() > INSTRUCTIONS_MAX {
        let reason = format!("there are more than {INSTRUCTIONS_MAX} instructions");
        return Err(DockerfileError::new(1, reason));
    }
    let escape = parsed.parser_directives.escape.as_ref();
    Ok(escape.map_or('\\', |directive| directive.value.value))
}

fn check_frontend(parsed: &Dockerfile) -> Result<(), DockerfileError> {
    let Some(syntax) = &parsed.parser_directives.syntax else { return Ok(()) };
    let name = syntax.value.value;
    let known = FRONTENDS.iter().any(|known| {
        name.strip_prefix(known).is_some_and(|rest| {
            rest.is_empty() || rest.starts_with(":1") || rest.starts_with(":latest")
        })
    });
    match known {
        true => Ok(()),
        false => Err(DockerfileError::new(
            1,
            format!("the frontend {name:?} is not supported; docker/dockerfile:1 is built in"),
        )),
    }
}

/// Where an instruction begins.
#[must_use]
pub fn start_of(instruction: &Instruction) -> usize {
    let keyword = match instruction {
        Instruction::Add(it) => &it.add,
        Instruction::Arg(it) => &it.arg,
        Instruction::Cmd(it) => &it.cmd,
        Instruction::Copy(it) => &it.copy,
        Instruction::Entrypoint(it) => &it.entrypoint,
        Instruction::Env(it) => &it.env,
        Instruction::Expose(it) => &it.expose,
        Instruction::From(it) => &it.from,
        Instruction::Healthcheck(it) => &it.healthcheck,
        Instruction::Label(it) => &it.label,
        Instruction::Maintainer(it) => &it.maintainer,
        Instruction::Onbuild(it) => &it.onbuild,
        Instruction::Run(it) => &it.run,
        Instruction::Shell(it) => &it.shell,
        Instruction::Stopsignal(it) => &it.stopsignal,
        Instruction::User(it) => &it.user,
        Instruction::Volume(it) => &it.volume,
        Instruction::Workdir(it) => &it.workdir,
        _ => return 0,
    };
    keyword.span.start
}

/// The words of an exec-form command; none for the shell form.
#[must_use]
pub fn exec_words(command: &Command) -> Option<Vec<String>> {
    match command {
        Command::Exec(words) => {
            let words: Vec<String> =
                words.value.iter().map(|word| word.value.to_string()).collect();
            Some(if words == [EMPTY] { Vec::new() } else { words })
        }
        _ => None,
    }
}

/// The value of an option.
#[must_use]
pub fn flag<'a>(flags: &'a [Flag<'a>], name: &str) -> Option<&'a str> {
    flags
        .iter()
        .find(|flag| flag.name.value == name)
        .map(|flag| flag.value.as_ref().map_or("", |value| value.value.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_entrypoint_is_an_empty_list() {
        let source = Source::new("FROM a\nENTRYPOINT []\nCMD []\nentrypoint  [ ]\n").unwrap();
        let parsed = source.parse().unwrap();
        let words: Vec<_> = parsed
            .instructions
            .iter()
            .filter_map(|instruction| match instruction {
                Instruction::Entrypoint(it) => exec_words(&it.arguments),
                Instruction::Cmd(it) => exec_words(&it.arguments),
                _ => None,
            })
            .collect();
        assert_eq!(words, [Vec::<String>::new(), vec![], vec![]]);
    }

    #[test]
    fn what_does_not_parse_is_named_by_its_line() {
        let error = Source::new("FROM a\n\nRUM x\n").unwrap_err();
        assert_eq!(error.line, 3);
        assert!(error.reason.contains("RUM"), "{error}");
        assert_eq!(Source::new("").unwrap_err().line, 1);
        assert_eq!(Source::new("RUN x\n").unwrap_err().line, 1);
    }

    #[test]
    fn continued_lines_are_joined_without_their_comments() {
        let source = Source::new("FROM a\n").unwrap();
        assert_eq!(source.join_lines("a && \\\n# no\n\n  b \\  \n c"), "a &&   b  c");
    }

    #[test]
    fn other_frontends_are_refused() {
        assert!(Source::new("# syntax=docker/dockerfile:1.7-labs\nFROM a\n").is_ok());
        let error = Source::new("# syntax=example.org/other\nFROM a\n").unwrap_err();
        assert!(error.reason.contains("example.org/other"), "{error}");
    }
}
