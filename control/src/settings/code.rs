//! Where code artifacts come from besides this daemon's own S3.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::Deserialize;

/// A file of credentials has three words.
const CREDENTIALS_BYTES_MAX: u64 = 64 << 10;
/// What the group and others may do with a file.
const OTHERS: u32 = 0o077;

/// An S3-compatible endpoint that has a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CodeEndpoint {
    /// `https://HOST` or `https://HOST:PORT`
    pub endpoint: String,
    /// The region that requests are signed for.
    #[serde(default = "default_region")]
    pub region: String,
    /// A file with [`KeyPair`], as JSON, that nobody else may read.
    pub credentials_file: PathBuf,
    /// Whether the bucket is in the path of addresses. Otherwise it is in their host's name.
    #[serde(default = "default_path_style")]
    pub path_style: bool,
    /// Authorities that sign the endpoint's certificate, as PEM, in place of those that the host trusts.
    pub ca: Option<PathBuf>,
}

fn default_region() -> String {
    "us-east-1".into()
}

fn default_path_style() -> bool {
    true
}

/// What requests are signed with. A daemon's own `credentials.json` is such a file.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPair {
    /// `AWS_ACCESS_KEY_ID`
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`
    pub secret_access_key: String,
    /// `AWS_SESSION_TOKEN`
    pub session_token: Option<String>,
}

impl CodeEndpoint {
    pub(super) fn relative_to(&mut self, directory: &Path) {
        self.credentials_file = directory.join(&self.credentials_file);
        self.ca = self.ca.as_ref().map(|path| directory.join(path));
    }

    /// What is wrong with it.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let is_origin = |url: Url| {
            let is_bare = url.username().is_empty() && url.password().is_none();
            // The path of one without a path is `/`, but its text has none.
            url.scheme() == "https"
                && is_bare
                && url.as_str().len() == url.origin().ascii_serialization().len() + 1
        };
        if self.endpoint.ends_with('/') || !Url::parse(&self.endpoint).is_ok_and(is_origin) {
            return Some("an endpoint is https://HOST or https://HOST:PORT, and nothing behind it");
        }
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if self.region.is_empty() || !self.region.bytes().all(is_word) {
            return Some("a region is a word, like us-east-1");
        }
        None
    }

    /// Reads the credentials, as they are now.
    ///
    /// # Errors
    /// The file is not there, is not understood, or others may use it.
    pub fn credentials(&self) -> io::Result<KeyPair> {
        let file = File::open(&self.credentials_file)?;
        if file.metadata()?.mode() & OTHERS != 0 {
            return Err(io::Error::other("others may use it: chmod 600"));
        }
        let mut text = String::new();
        file.take(CREDENTIALS_BYTES_MAX).read_to_string(&mut text)?;
        // What is wrong is said without what is there.
        let wrong = |_| "it is not {\"access_key_id\": \"...\", \"secret_access_key\": \"...\"}";
        serde_json::from_str(&text).map_err(wrong).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn credentials_are_the_owners_alone_and_are_not_shown_when_they_are_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("keys.json");
        let endpoint: CodeEndpoint = serde_json::from_value(serde_json::json!({
            "endpoint": "https://s3.example", "credentials-file": file,
        }))
        .unwrap();
        assert!(endpoint.path_style && endpoint.fault().is_none());
        let write = |text: &str, mode| {
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        };
        let good = r#"{"access_key_id": "A", "secret_access_key": "s3cret"}"#;
        write(good, 0o600);
        assert_eq!(endpoint.credentials().unwrap().secret_access_key, "s3cret");
        for mode in [0o640, 0o604, 0o620] {
            write(good, mode);
            let error = endpoint.credentials().err().unwrap().to_string();
            assert!(error.contains("chmod 600"), "{error}");
        }
        write(r#"{"access_key_id": "A", "secret": "s3cret"}"#, 0o400);
        let error = endpoint.credentials().err().unwrap().to_string();
        assert!(error.contains("access_key_id") && !error.contains("s3cret"), "{error}");
    }
}
