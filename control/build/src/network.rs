//! What `RUN` can reach, and what the machine's own configuration says about mirrors.
//!
//! A build machine has no network. Programs in it that know `http_proxy` reach the host's forward proxy
//! ([`crate::proxy`]), which connects to names that are listed and to no other.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Where programs of many distributions expect the certificates.
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Where pip looks for packages and where it gets their files, unless it is told otherwise: pip itself knows.
const PIP_DEFAULTS: &str = "from pip._internal.models.index import PyPI\n\
    print(PyPI.simple_url, 'https://' + PyPI.file_storage_domain)";
/// Variables with which programs find certificates.
const CA_VARIABLES: [&str; 6] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
];
/// Variables with which programs find the proxy.
const PROXY_VARIABLES: [&str; 4] = ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"];
const NO_PROXY_VARIABLES: [&str; 2] = ["no_proxy", "NO_PROXY"];
/// The port of the proxy, in the machine and on the host's side.
pub const PROXY_PORT: u16 = 3128;

/// What `RUN` can reach, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Names that may be reached: `mirror.example.org`, `*.example.org`, each with `:port` if it is not 80 or 443.
    pub allow: BTreeSet<String>,
    /// Beginnings of plain HTTP addresses, and what is asked for in their place.
    pub rewrite: BTreeMap<String, String>,
    /// Variables for `RUN`, such as `PIP_INDEX_URL`.
    pub env: BTreeMap<String, String>,
    /// Certificates in PEM for `RUN`, on top of no others.
    pub ca_bundle: Option<String>,
}

impl Network {
    /// Reads this machine's own configuration: where its apt, pip and npm get packages, and its certificates.
    #[must_use]
    pub fn detect() -> Self {
        let ca_bundle = fs::read_to_string(CA_BUNDLE).ok();
        let mut network = Self { ca_bundle, ..Self::default() };
        network.detect_apt();
        network.detect_pip();
        network.allow_url(output_of("npm", &["config", "get", "registry"]).trim());
        network
    }

    fn detect_apt(&mut self) {
        let lines = output_of(
            "apt-get",
            &["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        );
        lines.lines().for_each(|uri| self.allow_url(uri));
    }

    fn detect_pip(&mut self) {
        let lines = output_of("pip", &["config", "list"]);
        for line in lines.lines() {
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.trim().trim_matches('\'');
            let variable = match key.rsplit('.').next() {
                Some("index-url") => "PIP_INDEX_URL",
                Some("extra-index-url") => "PIP_EXTRA_INDEX_URL",
                Some("trusted-host") => "PIP_TRUSTED_HOST",
                _ => continue,
            };
            self.env.insert(variable.into(), value.into());
            value.split_whitespace().for_each(|url| self.allow_url(url));
        }
        if !self.env.contains_key("PIP_INDEX_URL") {
            let defaults = output_of("python3", &["-c", PIP_DEFAULTS]);
            defaults.split_whitespace().for_each(|url| self.allow_url(url));
        }
    }

    fn allow_url(&mut self, url: &str) {
        let Some((scheme, rest)) = url.split_once("://") else { return };
        let authority = rest.split('/').next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        if matches!(scheme, "http" | "https") && !host.is_empty() {
            self.allow.insert(host.to_ascii_lowercase());
        }
    }

    /// Whether a name may be reached at a port.
    #[must_use]
    pub fn allows(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.allow.iter().any(|rule| {
            let (name, ports) = match rule.rsplit_once(':') {
                Some((name, number)) => (name, number.parse::<u16>().ok()),
                None => (rule.as_str(), None),
            };
            let is_port = ports.map_or(matches!(port, 80 | 443), |wanted| wanted == port);
            let is_name = match name.strip_prefix('*') {
                Some(domain) if domain.starts_with('.') => host.ends_with(domain),
                Some(_) => false,
                None => host == name,
            };
            is_port && is_name
        })
    }

    /// What is asked for in place of a plain HTTP address.
    #[must_use]
    pub fn rewritten(&self, url: &str) -> String {
        for (from, to) in &self.rewrite {
            if let Some(rest) = url.strip_prefix(from.as_str())
                && (rest.is_empty() || rest.starts_with('/'))
            {
                return format!("{to}{rest}");
            }
        }
        url.to_owned()
    }

    /// The variables of a `RUN` beside those of the image; what the image says itself goes before.
    #[must_use]
    pub fn variables(&self) -> BTreeMap<String, String> {
        let mut variables = self.env.clone();
        for name in PROXY_VARIABLES {
            variables.insert(name.into(), format!("http://127.0.0.1:{PROXY_PORT}"));
        }
        for name in NO_PROXY_VARIABLES {
            variables.insert(name.into(), "localhost,127.0.0.1,::1".into());
        }
        if self.ca_bundle.is_some() {
            for name in CA_VARIABLES {
                variables.insert(name.into(), rotifer_build_worker::protocol::CA_FILE.into());
            }
        }
        variables
    }
}

/// What a program prints; nothing if it is not there or fails.
fn output_of(program: &str, arguments: &[&str]) -> String {
    if program.contains('/') && !Path::new(program).exists() {
        return String::new();
    }
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(allow: &[&str]) -> Network {
        Network { allow: allow.iter().map(|&rule| rule.into()).collect(), ..Network::default() }
    }

    #[test]
    fn only_listed_names_and_ports_are_reached() {
        let network = network(&["index.test", "*.example.org", "mirror:8080"]);
        assert!(network.allows("index.test", 443) && network.allows("Index.Test.", 80));
        assert!(!network.allows("index.test", 22));
        assert!(!network.allows("notindex.test", 443) && !network.allows("index.test.evil", 443));
        assert!(network.allows("a.b.example.org", 443) && !network.allows("example.org", 443));
        assert!(!network.allows("badexample.org", 443));
        assert!(network.allows("mirror", 8080) && !network.allows("mirror", 80));
    }

    #[test]
    fn nothing_listed_is_nothing_reached() {
        assert!(!Network::default().allows("localhost", 80));
    }

    #[test]
    fn addresses_are_rewritten_at_whole_parts() {
        let mut network = Network::default();
        network.rewrite.insert("http://a/debian".into(), "http://b/mirror".into());
        assert_eq!(network.rewritten("http://a/debian/pool/x"), "http://b/mirror/pool/x");
        assert_eq!(network.rewritten("http://a/debian-security/x"), "http://a/debian-security/x");
    }
}
