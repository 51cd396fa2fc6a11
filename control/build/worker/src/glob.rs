//! Patterns of `COPY` and of `.dockerignore`: `*`, `?`, `[a-z]`, `\x`, and `**` across directories.

use globset::{GlobBuilder, GlobMatcher};

/// Reads a pattern.
///
/// # Errors
/// What is wrong with it, for people.
pub fn pattern(text: &str) -> Result<GlobMatcher, String> {
    // Braces are ordinary characters in a Dockerfile.
    let literal_braces = text.replace('{', "[{]").replace('}', "[}]");
    GlobBuilder::new(&literal_braces)
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map(|glob| glob.compile_matcher())
        .map_err(|error| format!("the pattern {text:?} is not valid: {}", error.kind()))
}

/// Whether a path is a pattern rather than a name.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '\\'])
}

/// A path as `path.Clean` would have it, relative to a root: no `.`, no empty parts, `..` ends at
/// the root. The root itself is empty.
#[must_use]
pub fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stop_at_directories_and_double_stars_do_not() {
        assert!(pattern("*.py").unwrap().is_match("app.py"));
        assert!(!pattern("*.py").unwrap().is_match("src/app.py"));
        assert!(pattern("**/*.py").unwrap().is_match("a/b/app.py"));
        assert!(pattern("**/*.py").unwrap().is_match("app.py"));
        assert!(pattern("{a}").unwrap().is_match("{a}"));
        assert!(pattern(r"a\*").unwrap().is_match("a*"));
    }

    #[test]
    fn paths_are_cleaned_and_end_at_the_root() {
        assert_eq!(clean("./a//b/../c/"), "a/c");
        assert_eq!(clean("../../etc"), "etc");
        assert_eq!(clean("/"), "");
    }
}
