//! The query of a request: parameters by name, and the paths among them.

use super::error::ApiError;
use crate::limits::PATH_MAX_BYTES;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, PathBuf};

/// The parameters of one request. What nobody takes is refused by [`Query::finish`].
#[derive(Debug, Clone, Default)]
pub struct Query {
    pairs: Vec<(String, Vec<u8>)>,
}

impl Query {
    /// Takes a query apart: `name=value&name=value`, percent-encoded.
    ///
    /// # Errors
    /// An escape that is none, or a parameter given twice.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let mut pairs: Vec<(String, Vec<u8>)> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)
                .ok_or_else(|| ApiError::bad_request(format!("{name}: a bad percent escape")))?;
            if pairs.iter().any(|(known, _)| known == name) {
                return Err(ApiError::bad_request(format!("{name} is given twice")));
            }
            pairs.push((name.to_owned(), value));
        }
        Ok(Self { pairs })
    }

    /// Takes a parameter as text.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.bytes(name)
            .map(String::from_utf8)
            .transpose()
            .map_err(|_| ApiError::bad_request(format!("{name} is not UTF-8")))
    }

    /// Takes a parameter as a number in the given radix.
    ///
    /// # Errors
    /// It is not such a number.
    pub fn number(&mut self, name: &str, radix: u32) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        u64::from_str_radix(&text, radix)
            .map(Some)
            .map_err(|_| ApiError::bad_request(format!("{name}={text} is not a number")))
    }

    /// Takes a parameter that is `true` or `false`; false if absent.
    ///
    /// # Errors
    /// It is neither.
    pub fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.text(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => {
                Err(ApiError::bad_request(format!("{name}={other} is neither true nor false")))
            }
        }
    }

    /// Takes the `path`: absolute, without `..`, of bounded length. It need not be UTF-8.
    ///
    /// # Errors
    /// It is missing or none of that.
    pub fn path(&mut self) -> Result<PathBuf, ApiError> {
        let bad = |message: &str| {
            ApiError::new(hyper::StatusCode::BAD_REQUEST, "bad_path", message.to_owned())
        };
        let bytes = self.bytes("path").ok_or_else(|| bad("the parameter path is missing"))?;
        if bytes.len() > PATH_MAX_BYTES {
            return Err(bad(&format!("path is longer than {PATH_MAX_BYTES} bytes")));
        }
        if bytes.contains(&0) {
            return Err(bad("path contains a NUL byte"));
        }
        let path = PathBuf::from(OsString::from_vec(bytes));
        if !path.is_absolute() {
            return Err(bad("path is not absolute"));
        }
        if path.components().any(|component| component == Component::ParentDir) {
            return Err(bad("path contains .."));
        }
        Ok(path)
    }

    /// Takes a parameter as bytes.
    pub fn bytes(&mut self, name: &str) -> Option<Vec<u8>> {
        let at = self.pairs.iter().position(|(known, _)| known == name)?;
        Some(self.pairs.swap_remove(at).1)
    }

    /// Refuses what was not taken.
    ///
    /// # Errors
    /// Names a parameter that the endpoint does not have.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.pairs.first() {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::bad_request(format!("there is no parameter {name}"))),
        }
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)?,
            byte => byte,
        });
    }
    Some(decoded)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Percent-encodes bytes so that [`Query::parse`] gives them back.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' | b'~' => {
                text.push(char::from(*byte));
            }
            // Writing to a string cannot fail.
            _ => drop(write!(text, "%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStrExt;

    fn path(query: &str) -> Result<PathBuf, ApiError> {
        Query::parse(query)?.path()
    }

    #[test]
    fn escapes_are_decoded_and_plus_is_a_plus() {
        assert_eq!(path("path=/a%20b+c").unwrap(), PathBuf::from("/a b+c"));
    }

    #[test]
    fn paths_that_could_mean_something_else_are_refused() {
        let long = format!("path=/{}", "a".repeat(PATH_MAX_BYTES));
        for query in ["", "path=", "path=a", "path=/a/../b", "path=/a%00", "path=/%zz", &long] {
            assert!(path(query).is_err(), "{query}");
        }
    }

    #[test]
    fn a_parameter_twice_or_unknown_is_refused() {
        assert!(Query::parse("a=1&a=2").is_err());
        assert!(Query::parse("b=1").unwrap().finish().is_err());
    }

    #[test]
    fn numbers_and_flags_are_what_they_say() {
        let mut query = Query::parse("mode=644&limit=x&keep=true&sync=1").unwrap();
        assert_eq!(query.number("mode", 8).unwrap(), Some(0o644));
        assert!(query.number("limit", 10).is_err());
        assert!(query.flag("keep").unwrap());
        assert!(query.flag("sync").is_err());
        assert!(!query.flag("absent").unwrap());
    }

    proptest! {
        #[test]
        fn every_name_survives_its_escape(name in proptest::collection::vec(1u8..=255, 1..50)) {
            prop_assume!(name != b".." && !name.contains(&b'/'));
            let whole = [b"/", name.as_slice()].concat();
            let decoded = path(&format!("path={}", encode(&whole))).unwrap();
            prop_assert_eq!(decoded.as_os_str().as_bytes(), whole);
        }

        #[test]
        fn any_query_is_read_or_refused(text in ".{0,100}") {
            let _ = path(&text);
        }
    }
}
