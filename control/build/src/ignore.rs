//! `.dockerignore`: what of the archive no `COPY` sees.

use crate::limits::IGNORE_PATTERNS_MAX;
use globset::GlobMatcher;
use rotifer_build_worker::glob;

/// The patterns in their order: the last one that matches decides.
#[derive(Debug, Default)]
pub struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    matcher: GlobMatcher,
    /// The pattern began with `!`: what matches is seen after all.
    is_exception: bool,
}

impl Ignore {
    /// Reads the file.
    ///
    /// # Errors
    /// The line and what is wrong with it, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rules = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let (is_exception, rest) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            let path = glob::clean(rest);
            if path.is_empty() {
                continue;
            }
            if rules.len() == IGNORE_PATTERNS_MAX {
                return Err(format!(".dockerignore has more than {IGNORE_PATTERNS_MAX} patterns"));
            }
            let matcher = glob::pattern(&path)
                .map_err(|reason| format!(".dockerignore line {}: {reason}", index + 1))?;
            rules.push(Rule { matcher, is_exception });
        }
        Ok(Self { rules })
    }

    /// Whether `path` is not to be seen. A pattern that matches a directory matches all below it.
    #[must_use]
    pub fn hides(&self, path: &str) -> bool {
        let mut hidden = false;
        for rule in &self.rules {
            if hidden == rule.is_exception && matches_path_or_parent(&rule.matcher, path) {
                hidden = !rule.is_exception;
            }
        }
        hidden
    }
}

fn matches_path_or_parent(matcher: &GlobMatcher, path: &str) -> bool {
    let ends = path.match_indices('/').map(|(index, _)| index).chain([path.len()]);
    ends.into_iter().any(|end| path.get(..end).is_some_and(|prefix| matcher.is_match(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hides(rules: &str, path: &str) -> bool {
        Ignore::parse(rules).unwrap().hides(path)
    }

    #[test]
    fn a_directory_hides_what_is_in_it() {
        assert!(hides("node_modules", "node_modules/a/b.js"));
        assert!(!hides("node_modules", "src/node_modules/a"));
        assert!(hides("**/node_modules", "src/node_modules/a"));
        assert!(hides("/build/", "build/x"));
    }

    #[test]
    fn the_last_match_decides() {
        let rules = "*.md\n!README.md\n";
        assert!(hides(rules, "NOTES.md"));
        assert!(!hides(rules, "README.md"));
        assert!(hides("!README.md\n*.md\n", "README.md"));
        assert!(!hides("*\n!src/app.py\n", "src/app.py"));
    }

    #[test]
    fn comments_and_empty_lines_hide_nothing() {
        assert!(!hides("# app.py\n\n   \n.\n", "app.py"));
    }

    #[test]
    fn a_bad_pattern_is_refused_with_its_line() {
        let error = Ignore::parse("ok\n[a\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("[a"), "{error}");
    }
}
