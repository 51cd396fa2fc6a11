//! Interfaces, addresses and routes of the namespace that a socket belongs to.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NetlinkDeserializable, NetlinkHeader};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use crate::netlink::{Error, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;

/// An interface as the kernel lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What was noted about it.
    pub alias: String,
}

/// A pair of interfaces, one of them in another namespace.
pub struct Pair<'a> {
    /// The end in the namespace of the socket.
    pub name: &'a str,
    /// The other end.
    pub peer: &'a str,
    /// Its namespace.
    pub peer_namespace: BorrowedFd<'a>,
    /// Of both.
    pub mtu: u32,
}

/// Makes both ends at once, so neither ever is without the other.
pub fn add_pair(socket: &mut Socket, pair: &Pair) -> Result<(), Error> {
    let end = |name: &str| LinkAttribute::IfName(name.to_owned());
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        end(pair.peer),
        LinkAttribute::NetNsFd(pair.peer_namespace.as_raw_fd()),
        LinkAttribute::Mtu(pair.mtu),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        end(pair.name),
        LinkAttribute::Mtu(pair.mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    let what = format!("make the pair of interfaces {} and {}", pair.name, pair.peer);
    socket.request(&what, NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewLink(message))
}

/// Brings an interface up, with what else `attributes` change.
pub fn bring_up(
    socket: &mut Socket,
    link: &Link,
    attributes: Vec<LinkAttribute>,
) -> Result<(), Error> {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = attributes;
    let what = format!("bring up the interface {}", link.name);
    socket.request(&what, 0, RouteNetlinkMessage::SetLink(message))
}

/// Removes an interface, and the other end of a pair. One that is gone is no error.
pub fn delete(socket: &mut Socket, name: &str) -> Result<(), Error> {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    let what = format!("remove the interface {name}");
    match socket.request(&what, 0, RouteNetlinkMessage::DelLink(message)) {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// All interfaces.
pub fn list(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let answers = socket.dump("list the interfaces", &message, 0)?;
    let parse = |answer: &Vec<u8>| {
        let RouteNetlinkMessage::NewLink(message) = message_of(RTM_NEWLINK, answer)? else {
            return None;
        };
        let mut link = Link { index: message.header.index, ..Link::default() };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                _ => {}
            }
        }
        Some(link)
    };
    Ok(answers.iter().filter_map(parse).collect())
}

/// One interface.
pub fn find(socket: &mut Socket, name: &str) -> Result<Link, Error> {
    let found = list(socket)?.into_iter().find(|link| link.name == name);
    found.ok_or_else(|| Error::Request {
        what: format!("find the interface {name}"),
        source: std::io::Error::from_raw_os_error(libc::ENODEV),
    })
}

/// Gives an interface an address.
pub fn add_address(
    socket: &mut Socket,
    link: &Link,
    address: Ipv4Addr,
    prefix: u8,
) -> Result<(), Error> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix;
    message.header.index = link.index;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(address)),
        AddressAttribute::Address(IpAddr::V4(address)),
    ];
    let what = format!("give the interface {} the address {address}/{prefix}", link.name);
    socket.request(&what, NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewAddress(message))
}

/// All IPv4 addresses, each with its network.
pub fn addresses(socket: &mut Socket) -> Result<Vec<Ipv4Net>, Error> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let message = RouteNetlinkMessage::GetAddress(message);
    let answers = socket.dump("list the addresses", &message, 0)?;
    let parse = |answer: &Vec<u8>| {
        let RouteNetlinkMessage::NewAddress(message) = message_of(RTM_NEWADDR, answer)? else {
            return None;
        };
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => {
                Ipv4Net::new(*address, message.header.prefix_len).ok()
            }
            _ => None,
        })
    };
    Ok(answers.iter().filter_map(parse).collect())
}

/// Sends what is for nobody known to this router.
pub fn add_default_route(socket: &mut Socket, gateway: Ipv4Addr) -> Result<(), Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = libc::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway))];
    let what = format!("route through {gateway}");
    socket.request(&what, NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewRoute(message))
}

/// Says once and for all where an address is, so that nobody is asked.
pub fn add_neighbour(
    socket: &mut Socket,
    link: &Link,
    address: Ipv4Addr,
    mac: [u8; 6],
) -> Result<(), Error> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = link.index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    let what = format!("make {address} a neighbour of the interface {}", link.name);
    socket.request(&what, NLM_F_CREATE, RouteNetlinkMessage::NewNeighbour(message))
}

fn message_of(kind: u16, answer: &[u8]) -> Option<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    RouteNetlinkMessage::deserialize(&header, answer).ok()
}
