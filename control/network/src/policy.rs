//! What a guest may reach: an egress policy, and what follows from it for addresses and names.
//!
//! Everything in here is pure. The kernel's rules ([`crate::rules`]) and the resolver
//! ([`crate::resolver`]) both act on the same [`Verdicts`].

use std::{fmt, net::Ipv4Addr, str::FromStr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::ranges::Ranges;

/// Entries of `allow`, and of `deny`.
pub const ENTRIES_MAX: usize = 1024;
const DOMAIN_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// Nobody's destinations, whatever a policy says: this network, loopback, link-local (so the
/// clouds' metadata services), multicast, reserved and broadcast.
const NEVER: &[&str] =
    &["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "224.0.0.0/4", "240.0.0.0/4"];
/// Only what a policy names as an address range within these: RFC 1918, RFC 6598, RFC 2544.
const PRIVATE: &[&str] =
    &["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15"];

/// A policy that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No JSON, or not of this shape.
    #[error(
        "cannot read the policy: it is JSON like {{\"allow\": [\"internet\"]}}, with the fields \
         allow, deny and metadata"
    )]
    Json(#[from] serde_json::Error),
    /// A list is too long.
    #[error("the policy's {field} has {count} entries; there may be {ENTRIES_MAX}")]
    TooMany {
        /// Which list.
        field: &'static str,
        /// How many it has.
        count: usize,
    },
    /// An entry of `allow`.
    #[error(
        "{entry:?} is nothing that can be allowed: it is \"internet\", an IPv4 range such as \
         \"203.0.113.0/24\", or a domain name such as \"example.org\" or \"*.example.org\" \
         (in its ASCII form)"
    )]
    Entry {
        /// As given.
        entry: String,
    },
    /// A range whose address has bits beyond its prefix.
    #[error("the range {range} has bits set beyond its prefix: write {network}")]
    HostBits {
        /// As given.
        range: Ipv4Net,
        /// What was probably meant.
        network: Ipv4Net,
    },
}

/// Something that a guest may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Destination {
    /// Every public address.
    Internet,
    /// Addresses. Private ones only if the whole range is private.
    Range(Ipv4Net),
    /// The addresses that a name resolves to.
    Domain(Domain),
}

/// A domain name, or all below one. In lower case, without the last dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    name: String,
    is_wildcard: bool,
}

/// An egress policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// What may be reached; nothing unless named.
    #[serde(default)]
    pub allow: Vec<Destination>,
    /// What may not be reached although it is allowed.
    #[serde(default)]
    pub deny: Vec<Ipv4Net>,
    /// Whether the guest has a metadata service at 169.254.169.254.
    #[serde(default)]
    pub metadata: bool,
}

impl Policy {
    /// Nothing can be reached.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every public address.
    pub fn internet() -> Self {
        Self { allow: vec![Destination::Internet], ..Self::default() }
    }

    /// From JSON.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let policy: Self = serde_json::from_str(text)?;
        policy.check()?;
        Ok(policy)
    }

    /// Whether lists are of bearable length, and ranges are what they look like.
    pub fn check(&self) -> Result<(), Error> {
        for (field, count) in [("allow", self.allow.len()), ("deny", self.deny.len())] {
            if count > ENTRIES_MAX {
                return Err(Error::TooMany { field, count });
            }
        }
        let allowed = self.allow.iter().filter_map(|entry| match entry {
            Destination::Range(range) => Some(range),
            _ => None,
        });
        for &range in allowed.chain(&self.deny) {
            if range != range.trunc() {
                return Err(Error::HostBits { range, network: range.trunc() });
            }
        }
        Ok(())
    }

    /// What follows, on a host whose own addresses are `host`.
    pub fn verdicts(&self, host: &Ranges) -> Verdicts {
        let private = Ranges::of(&networks(PRIVATE));
        let forbidden = Ranges::of(&networks(NEVER)).union(host).union(&Ranges::of(&self.deny));
        let public = Ranges::all().without(&private);
        let mut addresses = Ranges::default();
        let mut names = Vec::new();
        let mut is_open = false;
        for entry in &self.allow {
            match entry {
                Destination::Internet => {
                    is_open = true;
                    addresses = addresses.union(&public);
                }
                Destination::Range(range) => {
                    let named = Ranges::of([range]);
                    let is_private = named.without(&private) == Ranges::default();
                    let meant = if is_private { named } else { named.without(&private) };
                    addresses = addresses.union(&meant);
                }
                Destination::Domain(domain) => names.push(domain.clone()),
            }
        }
        Verdicts {
            addresses: addresses.without(&forbidden),
            may_be_pinned: public.union(&addresses).without(&forbidden),
            names,
            is_open,
            metadata: self.metadata,
        }
    }
}

/// A policy's answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// What may be reached by address.
    pub addresses: Ranges,
    /// What an allowed name may resolve to: no private address that is not allowed by itself, or
    /// whoever owns a name could have the guest reach into the host's network.
    may_be_pinned: Ranges,
    names: Vec<Domain>,
    /// Whether every name may be resolved, and other resolvers be asked.
    pub is_open: bool,
    /// Whether the metadata service can be reached.
    pub metadata: bool,
}

impl Verdicts {
    /// Whether a name may be resolved.
    pub fn allows_name(&self, name: &str) -> bool {
        self.is_open || self.pins_name(name)
    }

    /// Whether what a name resolves to may be reached for this name's sake.
    pub fn pins_name(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.names.iter().any(|domain| domain.covers(&name))
    }

    /// Whether a name may resolve to this.
    pub fn allows_answer(&self, address: Ipv4Addr) -> bool {
        self.may_be_pinned.contains(address)
    }
}

impl Domain {
    fn parse(text: &str) -> Option<Self> {
        let lower = text.trim_end_matches('.').to_ascii_lowercase();
        let is_wildcard = lower.starts_with("*.");
        let name = lower.strip_prefix("*.").unwrap_or(&lower);
        let is_label = |label: &str| {
            let of_ours = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            (1..=LABEL_BYTES_MAX).contains(&label.len()) && label.bytes().all(of_ours)
        };
        // Four numbers are an address that somebody forgot the prefix of.
        let is_address = name.rsplit('.').next()?.bytes().all(|byte| byte.is_ascii_digit());
        let is_name = name.len() <= DOMAIN_BYTES_MAX && name.split('.').all(is_label);
        (is_name && !is_address).then(|| Self { name: name.to_owned(), is_wildcard })
    }

    /// A name in lower case, without the last dot. One with escapes may have a dot *within* a
    /// label, and be below something else than it looks.
    fn covers(&self, name: &str) -> bool {
        if name.contains('\\') {
            return false;
        }
        if !self.is_wildcard {
            return name == self.name;
        }
        name.strip_suffix(&self.name).is_some_and(|below| below.ends_with('.') && below.len() > 1)
    }
}

impl FromStr for Destination {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "internet" {
            return Ok(Self::Internet);
        }
        if let Ok(range) = text.parse() {
            return Ok(Self::Range(range));
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Range(Ipv4Net::from(address)));
        }
        let domain = Domain::parse(text).map(Self::Domain);
        domain.ok_or_else(|| Error::Entry { entry: text.to_owned() })
    }
}

impl TryFrom<String> for Destination {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internet => out.write_str("internet"),
            Self::Range(range) => range.fmt(out),
            Self::Domain(Domain { name, is_wildcard: true }) => write!(out, "*.{name}"),
            Self::Domain(Domain { name, is_wildcard: false }) => out.write_str(name),
        }
    }
}

fn networks(texts: &[&str]) -> Vec<Ipv4Net> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests;
