//! Statements that only this daemon can have made: tokens.
//!
//! A sealed statement is a JWS in compact form (RFC 7515), of HMAC-SHA-256 and nothing else: its header is
//! compared with ours, byte for byte, and what it says of an algorithm is not looked at. The kind of the
//! statement is in the header, so that a token of one kind is none of another. Every character of it is
//! one that a WebSocket subprotocol may have.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longer than any that is made here.
pub const SEALED_BYTES_MAX: usize = 4096;

/// The key.
#[derive(Clone)]
pub struct Seal {
    key: hmac::Key,
    key_id: String,
}

/// What a statement is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Who may use a microVM's endpoint.
    Endpoint,
    /// Whose credentials an access key is.
    Session,
    /// That a guest may ask for metadata.
    Metadata,
}

/// Why a statement is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum SealError {
    #[error("it is no token at all")]
    Malformed,
    #[error("it was not made here, or not for this")]
    Forged,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Seal").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl Seal {
    /// With this secret.
    pub fn new(secret: &[u8]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        // A name for the key that says nothing about it.
        let tag = hmac::sign(&key, b"key id");
        let key_id = URL_SAFE_NO_PAD.encode(tag.as_ref().get(..12).unwrap_or_default());
        Self { key, key_id }
    }

    /// Makes a statement.
    pub fn seal(&self, kind: Kind, claims: &impl Serialize) -> String {
        let claims = serde_json::json!(claims).to_string();
        let mut text = format!("{}.{}", self.header(kind), URL_SAFE_NO_PAD.encode(claims));
        let tag = hmac::sign(&self.key, text.as_bytes());
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(tag.as_ref(), &mut text);
        text
    }

    /// What was stated, if it was stated here. The tags are compared in constant time.
    pub fn open<T: DeserializeOwned>(&self, kind: Kind, text: &str) -> Result<T, SealError> {
        if text.len() > SEALED_BYTES_MAX {
            return Err(SealError::Malformed);
        }
        let (signed, tag) = text.rsplit_once('.').ok_or(SealError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(SealError::Malformed)?;
        let decode = |part: &str| {
            let bytes = URL_SAFE_NO_PAD.decode(part).ok().filter(|bytes| !bytes.is_empty());
            bytes.ok_or(SealError::Malformed)
        };
        let (_, claims, tag) = (decode(header)?, decode(claims)?, decode(tag)?);
        if header != self.header(kind) {
            return Err(SealError::Forged);
        }
        hmac::verify(&self.key, signed.as_bytes(), &tag).map_err(|_| SealError::Forged)?;
        serde_json::from_slice(&claims).map_err(|_| SealError::Forged)
    }

    /// A secret that follows from the key and a name. It is no tag of any statement: those have dots.
    pub fn derive(&self, name: &str) -> String {
        let tag = hmac::sign(&self.key, format!("derive {name}").as_bytes());
        URL_SAFE_NO_PAD.encode(tag.as_ref())
    }

    fn header(&self, kind: Kind) -> String {
        let typ = match kind {
            Kind::Endpoint => "endpoint",
            Kind::Session => "session",
            Kind::Metadata => "metadata",
        };
        let header = format!(r#"{{"kid":"{}","alg":"HS256","typ":"{typ}"}}"#, self.key_id);
        URL_SAFE_NO_PAD.encode(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_is_opened_and_nothing_else_is() {
        let seal = Seal::new(b"secret");
        let text = seal.seal(Kind::Endpoint, &("microvm-1", 7));
        assert!(text.starts_with("eyJraWQiOi"), "as the guide shows it: {text}");
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        assert!(text.bytes().all(token), "a subprotocol has only token characters: {text}");
        assert_eq!(seal.open(Kind::Endpoint, &text), Ok(("microvm-1".to_owned(), 7)));
        let open = |seal: &Seal, kind, text: &str| seal.open::<(String, u32)>(kind, text);
        assert_eq!(open(&seal, Kind::Session, &text), Err(SealError::Forged));
        assert_eq!(open(&Seal::new(b"other"), Kind::Endpoint, &text), Err(SealError::Forged));
        for place in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(open(&seal, Kind::Endpoint, &changed).is_err(), "{place}");
            assert!(open(&seal, Kind::Endpoint, &text[..place]).is_err(), "{place}");
        }
    }

    #[test]
    fn an_algorithm_that_a_token_asks_for_is_not_used() {
        let seal = Seal::new(b"secret");
        let text = seal.seal(Kind::Endpoint, &"microvm-1");
        let claims = text.split('.').nth(1).unwrap();
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        for (text, error) in [
            (format!("{header}.{claims}."), SealError::Malformed),
            (format!("{header}.{claims}.AAAA"), SealError::Forged),
            ("nonsense".into(), SealError::Malformed),
            (String::new(), SealError::Malformed),
            ("a".repeat(SEALED_BYTES_MAX + 1), SealError::Malformed),
        ] {
            assert_eq!(seal.open::<String>(Kind::Endpoint, &text), Err(error), "{text}");
        }
    }
}
