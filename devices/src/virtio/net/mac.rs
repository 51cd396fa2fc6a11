//! Addresses of Ethernet.

use std::fmt;
use std::io;
use std::str::FromStr;

/// In its first byte: many stations are meant.
const GROUP: u8 = 1;
/// In its first byte: no manufacturer has given it.
const LOCAL: u8 = 2;

/// The address of one station.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub(super) [u8; 6]);

impl Mac {
    /// None for an address of many stations, and for that of none.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        let [first, ..] = bytes;
        (first & GROUP == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// One that nobody has, in all likelihood.
    ///
    /// # Errors
    /// The host gives no random numbers.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 6];
        super::super::rng::random(&mut bytes)?;
        let [first, ..] = &mut bytes;
        *first = *first & !GROUP | LOCAL;
        Ok(Self(bytes))
    }
}

/// Not an address of one station.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum MacError {
    /// Not six bytes.
    #[error("it is not six pairs of hexadecimal digits with colons between them")]
    Form,
    /// Of a group, or zero.
    #[error("it is not the address of one station: its first byte is odd, or all are zero")]
    Station,
}

impl FromStr for Mac {
    type Err = MacError;

    /// `06:00:AC:10:00:02`
    fn from_str(text: &str) -> Result<Self, MacError> {
        let pairs: Vec<u8> = text
            .split(':')
            .filter(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()))
            .filter_map(|pair| u8::from_str_radix(pair, 16).ok())
            .collect();
        let bytes = pairs.try_into().map_err(|_| MacError::Form)?;
        const TEXT_BYTES: usize = 17;
        if text.len() != TEXT_BYTES {
            return Err(MacError::Form);
        }
        Self::new(bytes).ok_or(MacError::Station)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_in_either_case_and_written_in_one() {
        let mac: Mac = "06:00:AC:10:fe:02".parse().unwrap();
        assert_eq!(mac, Mac([6, 0, 0xac, 0x10, 0xfe, 2]));
        assert_eq!(mac.to_string(), "06:00:ac:10:fe:02");
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            "06:00:ac:10:fe",
            "06:00:ac:10:fe:02:03",
            "06-00-ac-10-fe-02",
            "6:00:ac:10:fe:002",
            "+6:00:ac:10:fe:02",
            "06:00:ac:10:fe:0g",
            "06:00:ac:10:fe:02:",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(MacError::Form), "{text}");
        }
        for text in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert_eq!(text.parse::<Mac>(), Err(MacError::Station), "{text}");
        }
    }

    #[test]
    fn random_addresses_are_local_and_of_one_station() {
        for _ in 0..100 {
            let mac = Mac::random().unwrap();
            assert_eq!(mac.0[0] & 3, LOCAL);
        }
    }
}
