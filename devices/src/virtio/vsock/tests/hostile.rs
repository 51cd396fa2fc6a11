//! Guests and host programs that break the rules.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::super::host::MAX_HANDSHAKES;
use super::super::multiplexer::{MAX_CONNECTIONS, MAX_RESETS};
use super::super::packet::{HEADER_BYTES, Header, Op, Shutdown};
use super::super::{RX_QUEUE, TX_QUEUE};
use super::guest::{Guest, header, is_at_end};
use crate::virtio::test_driver::{Buffer, RAM_BASE, RAM_BYTES};

const PORTS: (u32, u32) = (52, 1024);

#[test]
fn impossible_packets_are_answered_with_rst_or_nothing() {
    let request = header(Op::Request, PORTS);
    let stray = header(Op::Rw, PORTS);
    let table = [
        ("a foreign source", Header { src_cid: 4, ..request }, false),
        ("a source of 64 bits", Header { src_cid: 1 << 32 | 3, ..request }, false),
        ("another guest", Header { dst_cid: 4, ..request }, true),
        ("the hypervisor", Header { dst_cid: 0, ..request }, true),
        ("the port that means any", Header { dst_port: u32::MAX, ..request }, true),
        ("a sequenced packet", Header { kind: 2, ..request }, true),
        ("no type", Header { kind: 0, ..request }, true),
        ("no operation", Header { op: 0, ..request }, true),
        ("an unknown operation", Header { op: 8, ..request }, true),
        ("a reset of unknown type", Header { kind: 9, op: 3, ..request }, false),
        ("a reset of nothing", Header { op: 3, ..request }, false),
        ("bytes for nobody", stray, true),
        ("a length past the chain", Header { len: 1, ..stray }, true),
        ("the longest length", Header { len: u32::MAX, ..stray }, true),
        ("an answer to nothing", header(Op::Response, PORTS), true),
        ("an end of nothing", header(Op::Shutdown, PORTS), true),
        ("credit for nothing", header(Op::CreditUpdate, PORTS), true),
        ("a question about nothing", header(Op::CreditRequest, PORTS), true),
    ];
    let mut guest = Guest::new();
    for (what, header, is_answered) in table {
        guest.send(header, &[]);
        let packets = guest.receive();
        assert_eq!(packets.len(), usize::from(is_answered), "{what}: {packets:?}");
        for packet in packets {
            assert_eq!(packet.op(), Op::Rst, "{what}");
            assert_eq!(packet.header.src_port, header.dst_port, "{what}");
            assert_eq!(packet.header.dst_port, header.src_port, "{what}");
        }
    }
    assert!(!guest.driver.needs_reset());
}

#[test]
fn impossible_packets_end_the_connection_they_name() {
    let rw = header(Op::Rw, PORTS);
    let table = [
        ("a length past the chain", Header { len: 1, ..rw }),
        ("a length above the limit", Header { len: (64 << 10) + 1, ..rw }),
        ("the longest length", Header { len: u32::MAX, ..rw }),
        ("a second request", header(Op::Request, PORTS)),
        ("an answer to nothing", header(Op::Response, PORTS)),
    ];
    for (what, header) in table {
        let mut guest = Guest::new();
        let mut program = guest.connect_out(PORTS);
        guest.send(header, &[]);
        assert_eq!(guest.receive_one().op(), Op::Rst, "{what}");
        assert!(is_at_end(&mut program), "{what}");
    }
}

#[test]
fn bytes_after_the_end_of_sending_end_the_connection() {
    let mut guest = Guest::new();
    let _program = guest.connect_out(PORTS);
    guest.shut_down(PORTS, Shutdown::SEND);
    guest.write(PORTS, b"more");
    assert_eq!(guest.receive_one().op(), Op::Rst);
}

#[test]
fn a_guest_cannot_answer_for_a_request_it_has_not_seen() {
    let mut guest = Guest::without_buffers();
    let mut client = guest.client(9);
    guest.driver.run();
    guest.say(Op::Response, (1 << 30, 9));
    assert!(is_at_end(&mut client));
}

#[test]
fn chains_that_hold_no_packet_are_given_back() {
    let mut guest = Guest::new();
    let outside = RAM_BASE + RAM_BYTES as u64;
    let chains = [
        vec![Buffer::Read(vec![0; HEADER_BYTES - 1])],
        vec![Buffer::Write(64)],
        vec![Buffer::Read(Vec::new())],
        vec![Buffer::At { address: outside, len: 64, write: false }],
        vec![Buffer::At { address: u64::MAX - 10, len: 64, write: false }],
    ];
    for chain in chains {
        let (head, _) = guest.driver.submit(TX_QUEUE, &chain);
        guest.driver.kick(TX_QUEUE);
        assert_eq!(guest.driver.used(TX_QUEUE).map(|used| used.head), Some(head.into()));
    }
    assert!(guest.receive().is_empty());
    assert!(!guest.driver.needs_reset());
}

#[test]
fn a_payload_outside_of_memory_ends_its_connection() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    let header = Header { len: 100, ..header(Op::Rw, PORTS) };
    let outside = RAM_BASE + RAM_BYTES as u64 - 50;
    let payload = Buffer::At { address: outside, len: 100, write: false };
    guest.driver.submit(TX_QUEUE, &[Buffer::Read(header.encode().to_vec()), payload]);
    guest.driver.kick(TX_QUEUE);
    assert_eq!(guest.receive_one().op(), Op::Rst);
    assert!(is_at_end(&mut program));
}

#[test]
fn a_packet_in_many_pieces_is_the_same_packet() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    let mut bytes = Header { len: 12, ..header(Op::Rw, PORTS) }.encode().to_vec();
    bytes.extend_from_slice(b"Hello, world and what is past the length");
    let pieces: Vec<_> = bytes.chunks(5).map(|piece| Buffer::Read(piece.to_vec())).collect();
    guest.driver.submit_indirect(TX_QUEUE, &pieces);
    guest.driver.kick(TX_QUEUE);
    let mut greeting = [0; 12];
    program.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"Hello, world");
}

#[test]
fn rx_buffers_without_room_for_a_packet_are_given_back_empty() {
    let mut guest = Guest::without_buffers();
    for buffer in [Buffer::Write(HEADER_BYTES as u32), Buffer::Read(vec![0; 100])] {
        guest.driver.submit(RX_QUEUE, &[buffer]);
    }
    guest.say(Op::Rw, PORTS);
    for _ in 0..2 {
        assert_eq!(guest.driver.used(RX_QUEUE).map(|used| used.len), Some(0));
    }
    guest.post_rx(1);
    assert_eq!(guest.receive_one().op(), Op::Rst, "which has waited for a proper buffer");
}

#[test]
fn resets_that_a_guest_does_not_fetch_are_bounded() {
    let mut guest = Guest::without_buffers();
    for port in 0..1000 {
        guest.say(Op::Rw, (52, port));
    }
    guest.post_rx(64);
    assert_eq!(guest.receive().len(), MAX_RESETS);
}

#[test]
fn connecting_and_resetting_without_rx_buffers_leaves_nothing_behind() {
    let mut guest = Guest::without_buffers();
    let listener = guest.listen(52);
    for _ in 0..1000 {
        guest.say(Op::Request, PORTS);
        drop(listener.accept().unwrap());
        guest.say(Op::Rst, PORTS);
    }
    guest.post_rx(64);
    assert!(guest.receive().is_empty());
}

#[test]
fn past_the_limit_a_connection_is_refused_until_one_ends() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let mut programs = Vec::new();
    for port in 0..MAX_CONNECTIONS as u32 {
        guest.say(Op::Request, (52, port));
        assert_eq!(guest.receive_one().op(), Op::Response, "connection {port}");
        programs.push(listener.accept().unwrap().0);
    }
    let one_more = (52, MAX_CONNECTIONS as u32);
    guest.say(Op::Request, one_more);
    assert_eq!(guest.receive_one().op(), Op::Rst);
    let mut client = guest.client(9);
    guest.driver.run();
    assert!(is_at_end(&mut client));

    // The guest does not let go of a connection whose host program has gone: it gives way.
    drop(programs.pop());
    assert_eq!(guest.receive_one().op(), Op::Shutdown);
    guest.say(Op::Request, one_more);
    let packets = guest.receive();
    assert_eq!(
        packets.iter().map(|packet| packet.op()).collect::<Vec<_>>(),
        [Op::Rst, Op::Response]
    );
    assert_eq!(packets[0].header.dst_port, one_more.1 - 1);
}

#[test]
fn clients_that_never_finish_their_line_keep_nobody_out() {
    let mut guest = Guest::new();
    let mut slow: Vec<_> = (0..MAX_HANDSHAKES + 10)
        .map(|_| {
            let mut client = UnixStream::connect(guest.uds_path()).unwrap();
            client.write_all(b"CONN").unwrap();
            guest.driver.run();
            client
        })
        .collect();
    let (_client, _) = guest.connect_in(1024);
    let gone = slow.iter_mut().filter_map(|client| is_at_end(client).then_some(())).count();
    assert_eq!(gone, 11, "the oldest made room");
}

#[test]
fn a_client_that_says_something_else_is_dropped() {
    let guest = Guest::new();
    let mut client = UnixStream::connect(guest.uds_path()).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let mut guest = guest;
    guest.driver.run();
    let mut rest = Vec::new();
    // The unread rest makes it a reset rather than an end.
    assert!(client.read_to_end(&mut rest).is_err() || rest.is_empty());
    assert!(guest.receive().is_empty());
}

fn any_header() -> impl Strategy<Value = Header> {
    let port = || prop_oneof![3 => 50_u32..54, 1 => any::<u32>()];
    let word = || prop_oneof![Just(0_u32), 0_u32..100_000, any::<u32>()];
    (
        (port(), port(), word(), 0_u16..10, 0_u32..8, word(), word()),
        prop_oneof![9 => Just(1_u16), 1 => any::<u16>()],
        prop_oneof![9 => Just(2_u64), 1 => any::<u64>()],
    )
        .prop_map(
            |((src_port, dst_port, len, op, flags, buf_alloc, fwd_cnt), kind, dst_cid)| {
                let (src_cid, len) = (3, len % 100_000);
                Header {
                    src_cid,
                    dst_cid,
                    src_port,
                    dst_port,
                    len,
                    kind,
                    op,
                    flags,
                    buf_alloc,
                    fwd_cnt,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest says while host programs come, talk and go: no panic, no spinning, and
    /// the device still serves who asks properly.
    #[test]
    fn no_conversation_breaks_the_device(
        steps in prop::collection::vec((any_header(), 0_usize..3000, 0_u8..6), 1..60),
    ) {
        let mut guest = Guest::new();
        let listener = guest.listen(52);
        listener.set_nonblocking(true).unwrap();
        let mut programs = Vec::new();
        for (header, len, host) in steps {
            match host {
                0 => programs.push(guest.client(header.src_port)),
                1 => drop(programs.pop()),
                2 => programs.iter_mut().for_each(|program| {
                    program.set_nonblocking(true).unwrap();
                    let _ = program.write(b"some bytes");
                    let _ = program.read(&mut [0; 1000]);
                }),
                _ => programs.extend(listener.accept().map(|(program, _)| program)),
            }
            guest.send(Header { len: header.len.min(len as u32), ..header }, &vec![7; len]);
            guest.receive();
        }
        prop_assert!(!guest.driver.needs_reset());
        guest.driver.start_with(guest.driver.offered_features(), 128);
    }
}
