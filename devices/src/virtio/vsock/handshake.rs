//! `CONNECT <port>\n`, the line by which a host client says where in the guest it wants to go.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// The longest line that is accepted, in bytes, its end included. "CONNECT 4294967295\r\n" fits.
const MAX_LINE_BYTES: usize = 32;

/// How far a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handshake {
    /// The line is not complete.
    Incomplete,
    /// It asks for this port of the guest.
    Connect {
        /// The port.
        guest_port: u32,
    },
    /// It is something else, or the client has gone.
    Refused,
}

/// Reads the line from a client, and not a byte of what follows it, so that what a client sends
/// without waiting for the answer goes to the guest. Nothing is kept between two calls: an
/// incomplete line stays in the socket.
pub(super) fn read(client: &UnixStream) -> Handshake {
    let mut buffer = [0; MAX_LINE_BYTES];
    let count = match receive(client, &mut buffer, libc::MSG_PEEK) {
        Ok(0) => return Handshake::Refused,
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Handshake::Incomplete,
        Err(_) => return Handshake::Refused,
    };
    let seen = buffer.get(..count).unwrap_or_default();
    let Some(end) = seen.iter().position(|&byte| byte == b'\n') else {
        let may_grow = count < MAX_LINE_BYTES;
        return if may_grow { Handshake::Incomplete } else { Handshake::Refused };
    };
    let Some(guest_port) = seen.get(..end).and_then(parse) else { return Handshake::Refused };
    let line = buffer.get_mut(..=end).unwrap_or_default();
    match receive(client, line, 0) {
        Ok(count) if count == line.len() => Handshake::Connect { guest_port },
        _ => Handshake::Refused,
    }
}

/// The port in a line without its end.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let is_connect = words.next()?.eq_ignore_ascii_case("connect");
    let port = words.next()?;
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    (is_connect && is_number && words.next().is_none()).then(|| port.parse().ok())?
}

fn receive(client: &UnixStream, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, which is borrowed
    // mutably for the length of the call.
    let count =
        unsafe { libc::recv(client.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use proptest::prelude::*;

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, client) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, client)
    }

    #[test]
    fn a_line_in_pieces_is_understood_when_it_is_complete() {
        let (ours, mut client) = pair();
        assert_eq!(read(&ours), Handshake::Incomplete);
        for piece in ["CON", "NECT 10", "24"] {
            client.write_all(piece.as_bytes()).unwrap();
            assert_eq!(read(&ours), Handshake::Incomplete);
        }
        client.write_all(b"\n").unwrap();
        assert_eq!(read(&ours), Handshake::Connect { guest_port: 1024 });
    }

    #[test]
    fn what_follows_the_line_stays_for_the_guest() {
        let (mut ours, mut client) = pair();
        client.write_all(b"CONNECT 7\nGET / HTTP/1.1\r\n").unwrap();
        assert_eq!(read(&ours), Handshake::Connect { guest_port: 7 });
        let mut rest = [0; 5];
        ours.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"GET /");
    }

    #[test]
    fn only_a_connect_line_with_a_port_is_accepted() {
        let table: [(&[u8], Handshake); 11] = [
            (b"CONNECT 4294967295\r\n", Handshake::Connect { guest_port: u32::MAX }),
            (b"connect 0\n", Handshake::Connect { guest_port: 0 }),
            (b"CONNECT 4294967296\n", Handshake::Refused),
            (b"CONNECT +1\n", Handshake::Refused),
            (b"CONNECT -1\n", Handshake::Refused),
            (b"CONNECT\n", Handshake::Refused),
            (b"CONNECT 1 2\n", Handshake::Refused),
            (b"CONNECTED 1\n", Handshake::Refused),
            (b"\n", Handshake::Refused),
            (b"CONNECT \xff\n", Handshake::Refused),
            (b"CONNECT 000000000000000000000000001\n", Handshake::Refused),
        ];
        for (line, expected) in table {
            let (ours, mut client) = pair();
            client.write_all(line).unwrap();
            assert_eq!(read(&ours), expected, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_client_that_leaves_is_refused() {
        let (ours, client) = pair();
        drop(client);
        assert_eq!(read(&ours), Handshake::Refused);
    }

    proptest! {
        #[test]
        fn no_line_panics(line in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse(&line);
        }
    }
}
