//! From bytes to typed sections, with errors that say where and what to write instead.

use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::Error;

/// A misspelt key is one of the known keys if at most this many edits apart.
const SPELLING_EDITS_MAX: usize = 4;

/// Reads a JSON document into `T`; `root` is where in the configuration the document belongs,
/// such as `machine-config`, or empty for the whole.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], root: &str) -> Result<T, Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = join(root, &error.path().to_string());
        explain(error.inner(), &path)
    })?;
    reader.end().map_err(|error| explain(&error, root))?;
    Ok(value)
}

/// `a` and `b` make `a.b`; either may be empty. `.` is how an empty path is written.
fn join(root: &str, path: &str) -> String {
    match (root, path) {
        (root, "." | "") => root.into(),
        ("", path) => path.into(),
        (root, path) if path.starts_with('[') => format!("{root}{path}"),
        (root, path) => format!("{root}.{path}"),
    }
}

fn explain(error: &serde_json::Error, path: &str) -> Error {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let text = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text);
    if error.classify() != Category::Data {
        return Error::Syntax { line, column, reason: text.into() };
    }
    // serde offers these two facts only as text; a test of ours fails should the text change.
    let mut words = text.split('`');
    match (words.next(), words.next()) {
        (Some("missing field "), Some(key)) => Error::Missing { path: join(path, key) },
        (Some("unknown field "), Some(key)) => {
            // The reader's path ends in the key already when it was known at that point.
            let parent = path.strip_suffix(key).map_or(path, |p| p.trim_end_matches('.'));
            let known: Vec<&str> = words.skip(1).step_by(2).collect();
            Error::UnknownKey { path: join(parent, key), line, column, remedy: advise(key, &known) }
        }
        _ => {
            let path = if path.is_empty() { "the document" } else { path };
            Error::Shape { path: path.into(), reason: text.into(), line, column }
        }
    }
}

fn advise(key: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|name| (edits(key, name), name)).min();
    match nearest {
        Some((count, name)) if count <= SPELLING_EDITS_MAX.min(name.len() / 2) => {
            format!("did you mean `{name}`?")
        }
        _ if known.is_empty() => "no keys are expected here".into(),
        _ => format!("the keys known here are {}", known.join(", ")),
    }
}

/// How many letters to insert, delete, change or swap with their neighbour to make `a` of `b`,
/// with `_` and `-` counted as the same letter.
fn edits(a: &str, b: &str) -> usize {
    /// Longer words are no misspelling of ours, and the table stays small.
    const WORD_BYTES_MAX: usize = 64;
    if a.len() > WORD_BYTES_MAX || b.len() > WORD_BYTES_MAX {
        return usize::MAX;
    }
    let plain = |word: &str| word.to_ascii_lowercase().replace('_', "-").into_bytes();
    let (a, b) = (plain(a), plain(b));
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let change = above[j] + usize::from(x != y);
            let mut best = change.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(usize::MAX)
}
