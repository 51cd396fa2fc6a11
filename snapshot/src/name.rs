//! Names in a snapshot: what the guest or its configuration calls a thing, never a path.

/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 64;

/// One to 64 letters, digits, `_`, `-`, `.` or `:`. A path does not fit in here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Name(String);

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the name {text:?} is not 1 to 64 letters, digits, '_', '-', '.' or ':'")]
pub struct NameError {
    /// The text.
    pub text: String,
}

impl Name {
    /// Checks a text.
    ///
    /// # Errors
    /// [`NameError`] shows it.
    pub fn new(text: &str) -> Result<Self, NameError> {
        Self::from_bytes(text.as_bytes())
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, NameError> {
        // A manifest has some 200 names, and every restore waits for this.
        let allowed = |byte: &u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b':');
        let is_name = (1..=NAME_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(allowed);
        match std::str::from_utf8(bytes) {
            Ok(text) if is_name => Ok(Self(text.to_owned())),
            _ => {
                let shown = bytes.get(..NAME_BYTES_MAX).unwrap_or(bytes);
                Err(NameError { text: String::from_utf8_lossy(shown).into_owned() })
            }
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_no_name() {
        assert_eq!(Name::new("ID_AA64PFR0_EL1.SVE").unwrap().as_str(), "ID_AA64PFR0_EL1.SVE");
        for text in ["", "a/b", "a b", "ü", "\0", &"x".repeat(65)] {
            assert!(Name::new(text).is_err(), "{text:?}");
        }
    }
}
