//! What a guest was refused: totals by reason, and the destinations of the last minutes.

use std::net::Ipv4Addr;

use serde::Serialize;

use crate::{
    netlink,
    nft::Known,
    rules::{self, Reason},
};

/// What a guest was refused since its network was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Drops {
    /// By the policy: answered with a TCP reset, or "administratively prohibited".
    pub policy: Count,
    /// Packets from outside that belong to nothing the guest may have.
    pub unasked: Count,
    /// Packets that make no sense in their connection.
    pub invalid: Count,
    /// Packets from the guest whose sender is not the guest.
    pub spoofed: Count,
    /// Packets from the guest of other protocols than IPv4: IPv6 among them.
    pub not_ipv4: Count,
    /// Destinations that the policy refused, the last one first: at most 256, each for ten minutes
    /// after its last packet. A guest that tries more has them counted, not listed.
    pub destinations: Vec<Destination>,
}

/// How much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One refused destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Destination {
    /// Its address.
    pub address: Ipv4Addr,
    /// `tcp`, `udp`, or the number of another protocol.
    pub protocol: String,
    /// 0 for protocols without ports.
    pub port: u16,
    /// How much was sent there.
    pub count: Count,
    /// For how long nothing was.
    pub idle_ms: u64,
}

/// Reads them from the namespace of the socket.
pub fn read(socket: &mut netlink::Socket) -> Result<Drops, netlink::Error> {
    let mut drops = Drops::default();
    for table in [rules::NETWORK, rules::TAP] {
        for known in table.list_elements(socket, rules::TOTALS)? {
            add_total(&mut drops, &known);
        }
    }
    let refused = rules::NETWORK.list_elements(socket, rules::REFUSED)?;
    drops.destinations = refused.iter().filter_map(destination).collect();
    drops.destinations.sort_by_key(|destination| destination.idle_ms);
    Ok(drops)
}

fn add_total(drops: &mut Drops, known: &Known) {
    let key = known.key.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let totals = [
        (Reason::Policy, &mut drops.policy),
        (Reason::Unasked, &mut drops.unasked),
        (Reason::Invalid, &mut drops.invalid),
        (Reason::Spoofed, &mut drops.spoofed),
        (Reason::NotIpv4, &mut drops.not_ipv4),
    ];
    for (reason, total) in totals {
        if key == Some(reason as u32) {
            let count = count(known);
            total.packets += count.packets;
            total.bytes += count.bytes;
        }
    }
}

fn destination(known: &Known) -> Option<Destination> {
    let (address, rest) = known.key.split_first_chunk::<4>()?;
    let protocol = match rest.first()? {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        1 => "icmp".to_owned(),
        number => number.to_string(),
    };
    let left_ms = known.expires_ms.unwrap_or(rules::REFUSED_TIMEOUT_MS);
    Some(Destination {
        address: Ipv4Addr::from(*address),
        protocol,
        port: u16::from_be_bytes(*rest.get(4..)?.first_chunk()?),
        count: count(known),
        idle_ms: rules::REFUSED_TIMEOUT_MS.saturating_sub(left_ms),
    })
}

fn count(known: &Known) -> Count {
    let (packets, bytes) = known.counter.unwrap_or_default();
    Count { packets, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_read_from_its_key() {
        let known = Known {
            key: vec![203, 0, 113, 9, 6, 0, 0, 0, 0x01, 0xbb, 0, 0],
            expires_ms: Some(rules::REFUSED_TIMEOUT_MS - 1500),
            counter: Some((2, 120)),
            ..Known::default()
        };
        let wanted = Destination {
            address: Ipv4Addr::new(203, 0, 113, 9),
            protocol: "tcp".into(),
            port: 443,
            count: Count { packets: 2, bytes: 120 },
            idle_ms: 1500,
        };
        assert_eq!(destination(&known), Some(wanted));
        assert_eq!(destination(&Known::default()), None);
    }

    #[test]
    fn the_same_reason_in_two_rule_sets_is_added_up() {
        let known = Known { key: vec![0, 0, 0, 4], counter: Some((3, 30)), ..Known::default() };
        let mut drops = Drops::default();
        add_total(&mut drops, &known);
        add_total(&mut drops, &known);
        assert_eq!(drops.spoofed, Count { packets: 6, bytes: 60 });
    }
}
