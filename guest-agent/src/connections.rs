//! The guest's TCP connections to others, which a restore has cut.
//!
//! Whoever was at the other end has gone on without the guest, or talks to another clone of it. A program that sends
//! would be told so; one that waits for an answer would wait for ever. So the kernel is asked to end these
//! connections, as it is by `ss --kill`: whoever uses one gets ECONNABORTED at once.
//!
//! The messages are those of Linux' `sock_diag(7)`, whose SOCK_DESTROY no maintained library has.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` (`linux/sock_diag.h`).
const DUMP: u16 = 20;
const DESTROY: u16 = 21;
/// `struct nlmsghdr`
const HEADER_BYTES: usize = 16;
/// Of `struct inet_diag_msg`: family, state, timer, retransmissions.
const FACTS_BYTES: usize = 4;
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID_BYTES: usize = 48;
const SOURCE_AT: usize = 4;
const DESTINATION_AT: usize = 20;
const ADDRESS_BYTES: usize = 16;
/// TCP's states as bits (`net/tcp_states.h`): those of a connection that somebody holds. Listening sockets stay.
const STATES: u32 = bit(1) | bit(2) | bit(4) | bit(5) | bit(8) | bit(9) | bit(11);
/// The kernel gives a dump in pieces of at most this.
const ANSWER_MAX_BYTES: usize = 32 << 10;

const fn bit(state: u32) -> u32 {
    1 << state
}

/// Ends all TCP connections to others; how many there were.
///
/// # Errors
/// The kernel cannot list sockets or end them: it takes CONFIG_INET_DIAG_DESTROY and CAP_NET_ADMIN.
pub fn end_all() -> io::Result<usize> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let protocol = SockProtocol::NetlinkSockDiag;
    let kernel = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
    let mut count = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        for id in connections(&kernel, family as u8)? {
            if is_to_another(&id) {
                count += usize::from(end(&kernel, family as u8, &id)?);
            }
        }
    }
    Ok(count)
}

type SocketId = [u8; ID_BYTES];

fn connections(kernel: &OwnedFd, family: u8) -> io::Result<Vec<SocketId>> {
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    send(kernel, &request(DUMP, flags, family, &[0; ID_BYTES]))?;
    let mut ids = Vec::new();
    let mut is_done = false;
    while !is_done {
        receive(kernel, |kind, body| match kind {
            DUMP => ids.extend(id_in(body)),
            _ => is_done = true,
        })?;
    }
    Ok(ids)
}

/// Whether it was still there.
fn end(kernel: &OwnedFd, family: u8, id: &SocketId) -> io::Result<bool> {
    send(kernel, &request(DESTROY, libc::NLM_F_REQUEST | libc::NLM_F_ACK, family, id))?;
    match receive(kernel, |_, _| {}) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A message with `struct inet_diag_req_v2`.
fn request(kind: u16, flags: libc::c_int, family: u8, id: &SocketId) -> Vec<u8> {
    let [is_tcp, extensions, padding] = [libc::IPPROTO_TCP as u8, 0, 0];
    let mut body = vec![family, is_tcp, extensions, padding];
    body.extend(STATES.to_ne_bytes());
    body.extend(id);
    let length = (HEADER_BYTES + body.len()) as u32;
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    // Sequence number and sender: there is one question at a time.
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn send(kernel: &OwnedFd, message: &[u8]) -> io::Result<()> {
    sendto(kernel.as_raw_fd(), message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(())
}

/// Hands out kind and body of the messages of one answer.
///
/// # Errors
/// The kernel refuses what it was asked for.
fn receive(kernel: &OwnedFd, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let mut answer = vec![0; ANSWER_MAX_BYTES];
    let length = loop {
        match recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            received => break received?,
        }
    };
    let mut rest = answer.get(..length).unwrap_or_default();
    while let Some((kind, body, next)) = split(rest) {
        if kind == libc::NLMSG_ERROR as u16 {
            refusal(body)?;
        }
        each(kind, body);
        rest = next;
    }
    Ok(())
}

/// The first message of an answer, and what follows it.
fn split(answer: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (length, rest) = answer.split_first_chunk::<4>()?;
    let (kind, _) = rest.split_first_chunk::<2>()?;
    let length = u32::from_ne_bytes(*length) as usize;
    let body = answer.get(HEADER_BYTES..length)?;
    let next = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes(*kind), body, next))
}

fn refusal(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn id_in(body: &[u8]) -> Option<SocketId> {
    body.get(FACTS_BYTES..)?.first_chunk().copied()
}

/// Loopback, and what the guest says to itself over another of its addresses, is not cut by a restore.
fn is_to_another(id: &SocketId) -> bool {
    let address = |at: usize| id.get(at..at + ADDRESS_BYTES).unwrap_or_default();
    address(SOURCE_AT) != address(DESTINATION_AT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(source: &[u8], destination: &[u8]) -> SocketId {
        let mut id = [0; ID_BYTES];
        id[SOURCE_AT..SOURCE_AT + source.len()].copy_from_slice(source);
        id[DESTINATION_AT..DESTINATION_AT + destination.len()].copy_from_slice(destination);
        id
    }

    #[test]
    fn what_the_guest_says_to_itself_goes_on() {
        assert!(is_to_another(&id(&[172, 16, 0, 2], &[10, 0, 0, 1])));
        assert!(!is_to_another(&id(&[127, 0, 0, 1], &[127, 0, 0, 1])));
        assert!(!is_to_another(&id(&[0xfe; 16], &[0xfe; 16])));
    }

    #[test]
    fn an_answer_is_taken_apart_and_a_cut_one_ends() {
        let one = request(DUMP, 0, 2, &id(&[1], &[2]));
        let answer = [one.clone(), one.clone()].concat();
        let (kind, body, rest) = split(&answer).unwrap();
        assert_eq!((kind, body.len()), (DUMP, 8 + ID_BYTES));
        assert_eq!(split(rest).unwrap().1, body);
        assert!(split(split(rest).unwrap().2).is_none());
        for length in 0..one.len() {
            assert!(split(&one[..length]).is_none(), "{length} bytes");
        }
        assert!(split(&[0; 64]).is_none(), "a message that has no header does not repeat for ever");
    }

    #[test]
    fn the_kernel_lists_connections() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let protocol = SockProtocol::NetlinkSockDiag;
        let flags = SockFlag::SOCK_CLOEXEC;
        let kernel = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol).unwrap();
        let ids = connections(&kernel, libc::AF_INET as u8).unwrap();
        let has_port =
            |id: &&SocketId| id[..SOURCE_AT].chunks(2).any(|it| it == port.to_be_bytes());
        let ours = ids.iter().filter(has_port);
        assert_eq!(ours.filter(|id| !is_to_another(id)).count(), 2, "both ends of it");
    }
}
