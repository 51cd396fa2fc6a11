//! Variables and quotes in the words of a Dockerfile, as BuildKit's documentation describes them.
//!
//! `$name`, `${name}`, `${name:-word}`, `${name-word}`, `:+`, `+`, `:?`, `?`, `#`, `##`, `%`, `%%`, `/`, `//`. Single
//! quotes keep everything; double quotes keep all but variables; the escape character keeps the next.

use crate::limits::{
    EXPAND_DEPTH_MAX, EXPANDED_MAX_BYTES, PATTERN_MAX_BYTES, PATTERN_VALUE_MAX_BYTES,
};
use std::iter::Peekable;
use std::str::Chars;

/// What a name stands for; none if it is not set.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands a word and takes its quotes away.
///
/// # Errors
/// What is wrong with it, for people.
pub fn expand(text: &str, escape: char, lookup: Lookup) -> Result<String, String> {
    let mut expander = Expander { escape, lookup, quotes: Quotes::Remove };
    expander.word(&mut text.chars().peekable(), None, 0)
}

/// Expands the variables of a text and keeps its quotes: a here-document.
///
/// # Errors
/// As [`expand`].
pub fn expand_text(text: &str, escape: char, lookup: Lookup) -> Result<String, String> {
    let mut expander = Expander { escape, lookup, quotes: Quotes::Keep };
    expander.word(&mut text.chars().peekable(), None, 0)
}

/// Splits at spaces that are not quoted; quotes and escapes stay in the words.
#[must_use]
pub fn split_words(text: &str, escape: char) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == escape && quote != Some('\'') {
            word.push(character);
            word.extend(characters.next());
            continue;
        }
        match quote {
            Some(open) if character == open => quote = None,
            None if matches!(character, '"' | '\'') => quote = Some(character),
            None if character.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            _ => {}
        }
        word.push(character);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    Remove,
    Keep,
}

struct Expander<'a> {
    escape: char,
    lookup: Lookup<'a>,
    quotes: Quotes,
}

type Input<'a> = Peekable<Chars<'a>>;

impl Expander<'_> {
    /// Reads up to `end`, which is taken, or to the end of the text.
    fn word(
        &mut self,
        input: &mut Input,
        end: Option<char>,
        depth: usize,
    ) -> Result<String, String> {
        if depth > EXPAND_DEPTH_MAX {
            return Err(format!("variables are nested more than {EXPAND_DEPTH_MAX} deep"));
        }
        let mut output = String::new();
        while let Some(character) = input.next() {
            match character {
                _ if Some(character) == end => return Ok(output),
                '\'' if self.quotes == Quotes::Remove => self.single_quoted(input, &mut output)?,
                '"' if self.quotes == Quotes::Remove => {
                    self.double_quoted(input, &mut output, depth)?;
                }
                '$' => output.push_str(&self.variable(input, depth)?),
                _ if character == self.escape => match input.next() {
                    // In a text only what would be expanded is escaped.
                    Some(next) if self.quotes == Quotes::Keep && next != '$' => {
                        output.extend([character, next]);
                    }
                    Some(next) => output.push(next),
                    None => output.push(character),
                },
                _ => output.push(character),
            }
            if output.len() > EXPANDED_MAX_BYTES {
                return Err(format!("it grows beyond {EXPANDED_MAX_BYTES} bytes"));
            }
        }
        match end {
            None => Ok(output),
            Some(end) => Err(format!("a variable has no closing {end:?}")),
        }
    }

    fn single_quoted(&self, input: &mut Input, output: &mut String) -> Result<(), String> {
        for character in input {
            if character == '\'' {
                return Ok(());
            }
            output.push(character);
        }
        Err("a single quote is not closed".into())
    }

    fn double_quoted(
        &mut self,
        input: &mut Input,
        output: &mut String,
        depth: usize,
    ) -> Result<(), String> {
        while let Some(character) = input.next() {
            match character {
                '"' => return Ok(()),
                '$' => output.push_str(&self.variable(input, depth)?),
                _ if character == self.escape => match input.next() {
                    Some(next) if next == '"' || next == '$' || next == self.escape => {
                        output.push(next);
                    }
                    Some(next) => output.extend([character, next]),
                    None => output.push(character),
                },
                _ => output.push(character),
            }
        }
        Err("a double quote is not closed".into())
    }

    /// What follows a dollar sign.
    fn variable(&mut self, input: &mut Input, depth: usize) -> Result<String, String> {
        if input.next_if_eq(&'{').is_some() {
            return self.braced(input, depth);
        }
        let name = name(input);
        // A dollar sign before anything else is itself.
        if name.is_empty() { Ok("$".into()) } else { Ok((self.lookup)(&name).unwrap_or_default()) }
    }

    fn braced(&mut self, input: &mut Input, depth: usize) -> Result<String, String> {
        let name = name(input);
        if name.is_empty() {
            return Err("a variable in braces has no name".into());
        }
        let value = (self.lookup)(&name);
        let mut operator = input.next().ok_or("a variable has no closing '}'")?;
        let mut set = value.clone();
        if operator == ':' {
            operator = input.next().ok_or("a variable has no closing '}'")?;
            if !matches!(operator, '-' | '+' | '?') {
                return Err(format!("${{{name}:{operator}...}} is not supported"));
            }
            // With a colon, what is empty counts as not set.
            set = set.filter(|value| !value.is_empty());
        }
        match operator {
            '}' => Ok(value.unwrap_or_default()),
            '-' => {
                let word = self.word(input, Some('}'), depth + 1)?;
                Ok(set.unwrap_or(word))
            }
            '+' => {
                let word = self.word(input, Some('}'), depth + 1)?;
                Ok(set.map(|_| word).unwrap_or_default())
            }
            '?' => {
                let word = self.word(input, Some('}'), depth + 1)?;
                set.ok_or_else(|| match word.is_empty() {
                    true => format!("{name} is not set"),
                    false => format!("{name}: {word}"),
                })
            }
            '#' | '%' => {
                let is_longest = input.next_if_eq(&operator).is_some();
                let pattern = self.word(input, Some('}'), depth + 1)?;
                let value = value.unwrap_or_default();
                check_pattern(&name, &value, &pattern)?;
                Ok(trim(&value, &pattern, operator == '#', is_longest))
            }
            '/' => {
                let is_all = input.next_if_eq(&'/').is_some();
                let pattern = self.word(input, Some('/'), depth + 1)?;
                let with = self.word(input, Some('}'), depth + 1)?;
                let value = value.unwrap_or_default();
                check_pattern(&name, &value, &pattern)?;
                Ok(replace(&value, &pattern, &with, is_all))
            }
            other => Err(format!("${{{name}{other}...}} is not supported")),
        }
    }
}

fn name(input: &mut Input) -> String {
    let mut name = String::new();
    while let Some(character) = input.next_if(|next| {
        next.is_ascii_alphabetic() || *next == '_' || (!name.is_empty() && next.is_ascii_digit())
    }) {
        name.push(character);
    }
    // Positional parameters are one digit, and there are none.
    if name.is_empty() {
        name.extend(input.next_if(char::is_ascii_digit));
    }
    name
}

/// Finding a pattern takes a power of the lengths.
fn check_pattern(name: &str, value: &str, pattern: &str) -> Result<(), String> {
    if value.len() > PATTERN_VALUE_MAX_BYTES || pattern.len() > PATTERN_MAX_BYTES {
        return Err(format!(
            "patterns are found in values of at most {PATTERN_VALUE_MAX_BYTES} bytes, and have at \
             most {PATTERN_MAX_BYTES}; that of {name} is longer"
        ));
    }
    Ok(())
}

/// Whether a pattern of `*` and `?` matches all of a text. Linear in memory, at worst quadratic in time.
fn matches(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(want) if *want == '?' || Some(want) == text.get(t) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(|&character| character == '*'))
}

fn trim(value: &str, pattern: &str, at_start: bool, is_longest: bool) -> String {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = value.chars().collect();
    let fits = |count: &usize| match at_start {
        true => matches(&pattern, text.get(..*count).unwrap_or_default()),
        false => matches(&pattern, text.get(text.len() - *count..).unwrap_or_default()),
    };
    let counts = 0..=text.len();
    let found = if is_longest { counts.rev().find(fits) } else { counts.into_iter().find(fits) };
    let count = found.unwrap_or(0);
    match at_start {
        true => text.iter().skip(count).collect(),
        false => text.iter().take(text.len() - count).collect(),
    }
}

fn replace(value: &str, pattern: &str, with: &str, is_all: bool) -> String {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = value.chars().collect();
    let mut output = String::new();
    let mut at = 0;
    while at < text.len() {
        let longest = (at + 1..=text.len())
            .rev()
            .find(|end| matches(&pattern, text.get(at..*end).unwrap_or_default()));
        match longest {
            Some(end) => {
                output.push_str(with);
                at = end;
                if !is_all {
                    break;
                }
            }
            None => {
                output.extend(text.get(at));
                at += 1;
            }
        }
    }
    output.extend(text.iter().skip(at));
    output
}

#[cfg(test)]
mod tests;
