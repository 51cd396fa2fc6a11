//! The rule sets: of a VM's namespace, which hold the policy, and of the host, which hold what no
//! policy changes.
//!
//! ```text
//!  guest ──tap0──▶ from_guest ──▶ forward ──▶ outbound ──▶ postrouting ──eth0──▶ host: forward ──▶
//!                  MAC, address    │            │ allowed, pinned, else                 │ not host,
//!                  else dropped    └▶ input     ▼                                       │ not VMs
//!                                     DNS     refuse: counted, told                     ▼
//! ```
//!
//! A connection that the policy admits gets the policy's number (its generation) as its mark, and
//! goes on while that is the present one. With the next policy every connection is asked for again,
//! in both directions, so a changed policy ends what it no longer allows.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_packet_netfilter::{
    NetfilterProtoFamily,
    nftables::{DevHookNumber, HookNumber, InetHookNumber, SetFlags},
};

use crate::{
    guest,
    netlink::Step,
    nft::{
        Base, BaseChain, CT_STATE, CT_STATUS, DESTINATION_TRANSLATED, ESTABLISHED, Element,
        INVALID, NEW, RELATED, Rule, Set, Table,
    },
    policy::Verdicts,
};

/// The rules of a VM's namespace.
pub const NETWORK: Table = Table { family: NetfilterProtoFamily::Inet, name: "rotifer" };
/// What comes from its tap.
pub const TAP: Table = Table { family: NetfilterProtoFamily::NetDev, name: "rotifer" };
/// The host's own rules.
pub const HOST: Table = Table { family: NetfilterProtoFamily::Inet, name: "rotifer" };

/// Addresses that a VM has been given by names at the same time.
pub const PINS_MAX: u32 = 4096;
/// Refused destinations that are remembered.
pub const REFUSED_MAX: u32 = 256;
/// For how long after the last try.
pub const REFUSED_TIMEOUT_MS: u64 = 10 * 60 * 1000;
/// New connections to the resolver.
const DNS_CONNECTIONS_PER_SECOND: u64 = 20;

/// Addresses that are allowed by a policy.
const ALLOWED: &str = "allowed";
/// Addresses that are allowed because a name resolved to them.
pub const PINNED: &str = "pinned";
/// Destinations that were refused, with what was sent there.
pub const REFUSED: &str = "refused";
/// How much was refused, by reason.
pub const TOTALS: &str = "totals";

/// Why a packet went no further: keys of [`TOTALS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The policy does not allow its destination.
    Policy = 1,
    /// It belongs to no connection that the guest may have.
    Unasked = 2,
    /// It is no answer, no question, and part of nothing known.
    Invalid = 3,
    /// Its sender's address or MAC is not the guest's.
    Spoofed = 4,
    /// It is neither IPv4 nor ARP.
    NotIpv4 = 5,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const PORT: u32 = 2;
const DNS_PORT: u16 = 53;
const DNS_OVER_TLS_PORT: u16 = 853;

/// Everything for a new namespace, with the first policy.
pub fn network(verdicts: &Verdicts, generation: u32) -> Vec<Step> {
    let mut steps = tap();
    steps.push(NETWORK.add());
    for (id, set) in (1..).zip(&[allowed_set(), pinned_set(), refused_set(), totals_set()]) {
        steps.push(NETWORK.add_set(set, id));
    }
    let filter = |hook, accepts| BaseChain {
        kind: "filter",
        hook: HookNumber::Inet(hook),
        priority: 0,
        accepts,
        device: None,
    };
    let nat = BaseChain { kind: "nat", priority: 100, ..filter(InetHookNumber::PostRouting, true) };
    for name in ["outbound", "inbound", "refuse"] {
        steps.push(NETWORK.add_chain(name, None));
    }
    for (name, base) in [
        ("forward", filter(InetHookNumber::Forward, false)),
        ("input", filter(InetHookNumber::LocalIn, false)),
        ("output", filter(InetHookNumber::LocalOut, false)),
        ("postrouting", nat),
    ] {
        steps.push(NETWORK.add_chain(name, Some(&base)));
    }
    steps.extend(fixed_rules());
    steps.extend(policy_rules(verdicts, generation));
    steps
}

/// Puts another policy in place of the one there is: all at once. `pins` stay.
pub fn change(verdicts: &Verdicts, generation: u32, pins: Vec<Element>) -> Vec<Step> {
    let mut steps: Vec<Step> =
        ["outbound", "inbound", "input"].map(|c| NETWORK.flush_chain(c)).into();
    steps.push(NETWORK.flush_set(ALLOWED));
    steps.push(NETWORK.flush_set(PINNED));
    steps.extend(policy_rules(verdicts, generation));
    if !pins.is_empty() {
        steps.push(NETWORK.add_elements(PINNED, pins));
    }
    steps
}

/// Lets the guest reach what a name has resolved to, for that long from now. An element that is
/// there cannot have its timeout changed before Linux 6.12, so it is made anew.
pub fn pin(addresses: &[Ipv4Addr], name: &str, timeout_ms: u64) -> Vec<Step> {
    let element = |address: &Ipv4Addr| Element {
        key: address.octets().to_vec(),
        ends_range: false,
        timeout_ms: Some(timeout_ms),
        note: Some(name.to_owned()),
    };
    let elements = || addresses.iter().map(element).collect::<Vec<_>>();
    vec![
        NETWORK.add_elements(PINNED, elements()),
        NETWORK.delete_elements(PINNED, addresses.iter().map(|a| a.octets().to_vec())),
        NETWORK.add_elements(PINNED, elements()),
    ]
}

/// The host's rules.
pub struct HostRules {
    /// Puts them in place of those that there are.
    pub steps: Vec<Step>,
    /// How many of them there are where nobody has removed any.
    pub rule_count: usize,
}

/// The host's rules, anew. `subnet` has the addresses of all namespaces.
pub fn host(subnet: Ipv4Net, interfaces: &str) -> HostRules {
    let filter = |hook| BaseChain {
        kind: "filter",
        hook: HookNumber::Inet(hook),
        // Before other people's filters: what they accept is not ours to open.
        priority: -10,
        accepts: true,
        device: None,
    };
    let nat = BaseChain { kind: "nat", priority: 100, ..filter(InetHookNumber::PostRouting) };
    let from_vm = || Rule::new().comes_through(interfaces);
    let to_vm = || Rule::new().leaves_through(interfaces);
    let (address, mask) = (subnet.network().octets(), subnet.netmask().octets());
    let answers = ESTABLISHED | RELATED;
    let translated = DESTINATION_TRANSLATED;
    let mut steps = vec![HOST.add(), HOST.delete(), HOST.add()];
    steps.push(HOST.add_chain("refuse", None));
    steps.push(HOST.add_chain("forward", Some(&filter(InetHookNumber::Forward))));
    steps.push(HOST.add_chain("input", Some(&filter(InetHookNumber::LocalIn))));
    steps.push(HOST.add_chain("postrouting", Some(&nat)));
    let rules = [
        ("refuse", Rule::new().protocol(TCP).reject_with_reset()),
        ("refuse", Rule::new().reject()),
        ("forward", from_vm().ipv4(false).drop()),
        ("forward", from_vm().header_outside(Base::Network, SOURCE, address, mask).drop()),
        ("forward", from_vm().leaves_through(interfaces).goto("refuse")),
        // What the host publishes by translating addresses is the host's service.
        ("forward", from_vm().connection_has(CT_STATUS, translated).goto("refuse")),
        ("forward", to_vm().connection_has(CT_STATE, answers).accept()),
        ("forward", to_vm().drop()),
        ("input", from_vm().ipv4(false).drop()),
        ("input", from_vm().goto("refuse")),
        (
            "postrouting",
            Rule::new()
                .ipv4(true)
                .header_within(Base::Network, SOURCE, address, mask)
                .leaves_not_through(interfaces)
                .masquerade(),
        ),
    ];
    let rule_count = rules.len();
    steps.extend(rules.map(|(chain, rule)| HOST.add_rule(chain, rule)));
    HostRules { steps, rule_count }
}

/// What comes from the guest is the guest's, or goes no further.
fn tap() -> Vec<Step> {
    let base = BaseChain {
        kind: "filter",
        hook: HookNumber::Dev(DevHookNumber::Ingress),
        priority: 0,
        accepts: false,
        device: Some(guest::TAP),
    };
    let chain = "from_guest";
    let (ether_type, ether_source) = (12, 6);
    let ipv4 = || Rule::new().header(Base::Link, ether_type, &0x0800u16.to_be_bytes());
    let arp = || Rule::new().header(Base::Link, ether_type, &0x0806u16.to_be_bytes());
    let (mac, address) = (guest::MAC, guest::ADDRESS.octets());
    // A request or an answer, of IPv4 over Ethernet, from the guest itself: RFC 826.
    let arp_sender = [&mac[..], &address[..]].concat();
    let arp_of_guest = arp()
        .header(Base::Link, ether_source, &mac)
        .header(Base::Network, 0, &[0, 1, 8, 0, 6, 4])
        .header(Base::Network, 8, &arp_sender);
    let ipv4_of_guest =
        ipv4().header(Base::Link, ether_source, &mac).header(Base::Network, SOURCE, &address);
    vec![
        TAP.add(),
        TAP.add_set(&totals_set(), 1),
        TAP.add_chain(chain, Some(&base)),
        TAP.add_rule(chain, ipv4_of_guest.accept()),
        TAP.add_rule(chain, arp_of_guest.accept()),
        TAP.add_rule(chain, ipv4().count(TOTALS, Reason::Spoofed as u32).drop()),
        TAP.add_rule(chain, arp().count(TOTALS, Reason::Spoofed as u32).drop()),
        TAP.add_rule(chain, Rule::new().count(TOTALS, Reason::NotIpv4 as u32).drop()),
    ]
}

fn fixed_rules() -> Vec<Step> {
    let (tap, uplink) = (guest::TAP, guest::UPLINK);
    let rules = [
        ("forward", Rule::new().ipv4(false).drop()),
        (
            "forward",
            Rule::new()
                .connection_has(CT_STATE, INVALID)
                .count(TOTALS, Reason::Invalid as u32)
                .drop(),
        ),
        ("forward", Rule::new().comes_through(tap).leaves_through(uplink).goto("outbound")),
        ("forward", Rule::new().comes_through(uplink).leaves_through(tap).goto("inbound")),
        ("refuse", Rule::new().protocol(TCP).count_destination(REFUSED, true)),
        ("refuse", Rule::new().protocol(UDP).count_destination(REFUSED, true)),
        ("refuse", Rule::new().protocol(ICMP).count_destination(REFUSED, false)),
        ("refuse", Rule::new().count(TOTALS, Reason::Policy as u32)),
        ("refuse", Rule::new().protocol(TCP).reject_with_reset()),
        ("refuse", Rule::new().reject()),
        // Only towards the guest: a process in this namespace reaches nothing from here. What it
        // could send in the guest's place has to come through the tap.
        ("output", Rule::new().leaves_through(tap).accept()),
        ("output", Rule::new().leaves_through("lo").accept()),
        ("postrouting", Rule::new().leaves_through(uplink).masquerade()),
    ];
    rules.into_iter().map(|(chain, rule)| NETWORK.add_rule(chain, rule)).collect()
}

fn policy_rules(verdicts: &Verdicts, generation: u32) -> Vec<Step> {
    let mut rules = Vec::new();
    if !verdicts.is_open {
        for (protocol, port) in [(UDP, DNS_PORT), (TCP, DNS_PORT), (TCP, DNS_OVER_TLS_PORT)] {
            rules.push(("outbound", to_port(protocol, port).goto("refuse")));
        }
    }
    let in_set = |offset, set| Rule::new().header_in_set(Base::Network, offset, 4, set);
    let answer = || Rule::new().connection_has(CT_STATE, ESTABLISHED | RELATED);
    rules.push(("outbound", Rule::new().marked(generation).accept()));
    for set in [ALLOWED, PINNED] {
        rules.push(("outbound", in_set(DESTINATION, set).set_mark(generation).accept()));
    }
    rules.push(("outbound", Rule::new().goto("refuse")));
    rules.push(("inbound", answer().marked(generation).accept()));
    for set in [ALLOWED, PINNED] {
        let from = answer().header_in_set(Base::Network, SOURCE, 4, set);
        rules.push(("inbound", from.set_mark(generation).accept()));
    }
    rules.push(("inbound", Rule::new().count(TOTALS, Reason::Unasked as u32).drop()));
    rules.extend(input_rules(verdicts));
    let mut steps: Vec<Step> =
        rules.into_iter().map(|(chain, rule)| NETWORK.add_rule(chain, rule)).collect();
    let elements = range_elements(verdicts);
    if !elements.is_empty() {
        steps.push(NETWORK.add_elements(ALLOWED, elements));
    }
    steps
}

/// What the guest may ask of this namespace itself: names, an echo, and its metadata.
fn input_rules(verdicts: &Verdicts) -> Vec<(&'static str, Rule)> {
    let of_guest = |to: Ipv4Addr| {
        Rule::new().comes_through(guest::TAP).header(Base::Network, DESTINATION, &to.octets())
    };
    let dns = |protocol| {
        of_guest(guest::GATEWAY).protocol(protocol).header(
            Base::Transport,
            PORT,
            &DNS_PORT.to_be_bytes(),
        )
    };
    let burst = 2 * u32::try_from(DNS_CONNECTIONS_PER_SECOND).unwrap_or(u32::MAX);
    let mut rules = vec![
        Rule::new().comes_through("lo").accept(),
        Rule::new().ipv4(false).drop(),
        dns(UDP).accept(),
        dns(TCP).connection_has(CT_STATE, ESTABLISHED).accept(),
        dns(TCP)
            .connection_has(CT_STATE, NEW)
            .at_most_per_second(DNS_CONNECTIONS_PER_SECOND, burst)
            .accept(),
        of_guest(guest::GATEWAY).protocol(ICMP).accept(),
    ];
    if verdicts.metadata {
        let http = of_guest(guest::METADATA).protocol(TCP);
        rules.push(http.header(Base::Transport, PORT, &80u16.to_be_bytes()).accept());
    }
    rules.push(Rule::new().comes_through(guest::TAP).goto("refuse"));
    rules.into_iter().map(|rule| ("input", rule)).collect()
}

fn to_port(protocol: u8, port: u16) -> Rule {
    Rule::new().protocol(protocol).header(Base::Transport, PORT, &port.to_be_bytes())
}

/// The first address of each range, and the first after it unless there is none.
fn range_elements(verdicts: &Verdicts) -> Vec<Element> {
    let element = |address: u32, ends_range| Element {
        key: address.to_be_bytes().to_vec(),
        ends_range,
        timeout_ms: None,
        note: None,
    };
    let mut elements = Vec::new();
    for (first, last) in verdicts.addresses.iter() {
        elements.push(element(first, false));
        elements.extend(last.checked_add(1).map(|after| element(after, true)));
    }
    elements
}

const IPV4_TYPE: u32 = 7;
const MARK_TYPE: u32 = 19;
/// `ipv4_addr . inet_proto . inet_service`, six bits each.
const DESTINATION_TYPE: u32 = (7 << 12) | (12 << 6) | 13;

fn allowed_set() -> Set {
    Set {
        name: ALLOWED,
        key_type: IPV4_TYPE,
        key_bytes: 4,
        flags: SetFlags::Interval,
        // Both ends of each range, and every range may be cut in two by each that is forbidden.
        elements_max: 1 << 16,
        timeout_ms: None,
    }
}

fn pinned_set() -> Set {
    Set {
        name: PINNED,
        key_type: IPV4_TYPE,
        key_bytes: 4,
        flags: SetFlags::Timeout,
        elements_max: PINS_MAX,
        timeout_ms: None,
    }
}

fn refused_set() -> Set {
    Set {
        name: REFUSED,
        key_type: DESTINATION_TYPE,
        key_bytes: 12,
        flags: SetFlags::Timeout | SetFlags::Eval,
        elements_max: REFUSED_MAX,
        timeout_ms: Some(REFUSED_TIMEOUT_MS),
    }
}

fn totals_set() -> Set {
    Set {
        name: TOTALS,
        key_type: MARK_TYPE,
        key_bytes: 4,
        flags: SetFlags::Eval,
        elements_max: 16,
        timeout_ms: None,
    }
}
