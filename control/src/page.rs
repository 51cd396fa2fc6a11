//! Tokens that say where the next page begins.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// A token that says: after this.
pub fn encode(after: &str) -> String {
    URL_SAFE_NO_PAD.encode(after)
}

/// What a token says; nothing if it is none of ours.
pub fn decode(token: &str) -> Option<String> {
    String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()
}
