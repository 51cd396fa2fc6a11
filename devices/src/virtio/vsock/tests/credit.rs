//! Credit in both directions, and host programs that do not read.

use std::io::{Read, Write};

use super::super::multiplexer::BUF_ALLOC_BYTES;
use super::super::packet::{Header, Op, Shutdown};
use super::guest::{Guest, Packet, header, pattern};

const PORTS: (u32, u32) = (52, 1024);

/// A guest whose buffer holds `buf_alloc` bytes and has passed `fwd_cnt` on.
fn with_credit(op: Op, buf_alloc: u32, fwd_cnt: u32) -> Header {
    Header { buf_alloc, fwd_cnt, ..header(op, PORTS) }
}

fn bytes(packets: &[Packet]) -> usize {
    packets.iter().map(|packet| packet.data.len()).sum()
}

#[test]
fn the_guest_is_sent_no_more_than_it_has_room_for() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    guest.send(with_credit(Op::CreditUpdate, 5000, 0), &[]);
    program.write_all(&pattern(12_000)).unwrap();
    let packets = guest.receive();
    assert_eq!(bytes(&packets), 5000);
    assert_eq!(packets.last().unwrap().op(), Op::CreditRequest);

    guest.send(with_credit(Op::CreditUpdate, 5000, 0), &[]);
    assert_eq!(bytes(&guest.receive()), 0, "no news is no credit");
    guest.send(with_credit(Op::CreditUpdate, 5000, 4000), &[]);
    assert_eq!(bytes(&guest.receive()), 4000);
    guest.send(with_credit(Op::CreditUpdate, 5000, 9000), &[]);
    assert_eq!(bytes(&guest.receive()), 3000);
}

#[test]
fn counters_that_wrap_around_change_nothing() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    // The guest claims a past that makes the difference wrap: it has no credit, and no panic.
    guest.send(with_credit(Op::CreditUpdate, 5000, u32::MAX), &[]);
    program.write_all(b"1").unwrap();
    assert_eq!(bytes(&guest.receive()), 1);
    guest.send(with_credit(Op::CreditUpdate, 5000, 2), &[]);
    program.write_all(b"2").unwrap();
    assert_eq!(bytes(&guest.receive()), 0);
    guest.send(with_credit(Op::CreditUpdate, u32::MAX, 0), &[]);
    assert_eq!(bytes(&guest.receive()), 1);
}

#[test]
fn a_guest_that_asks_for_credit_is_told_at_once() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    guest.write(PORTS, b"12345");
    program.read_exact(&mut [0; 5]).unwrap();
    guest.say(Op::CreditRequest, PORTS);
    let packet = guest.receive_one();
    assert_eq!(packet.op(), Op::CreditUpdate);
    assert_eq!((packet.header.buf_alloc, packet.header.fwd_cnt), (BUF_ALLOC_BYTES, 5));
}

/// Sends until the credit that the device announced is used up; how much that was.
fn fill(guest: &mut Guest, stream: &[u8]) -> usize {
    let (mut sent, mut credit) = (0_usize, 0_usize);
    loop {
        let len = (credit + BUF_ALLOC_BYTES as usize - sent).min(50_000);
        if len == 0 {
            return sent;
        }
        guest.write(PORTS, &stream[sent..sent + len]);
        sent += len;
        for packet in guest.receive() {
            assert_eq!(packet.op(), Op::CreditUpdate);
            credit = packet.header.fwd_cnt as usize;
        }
    }
}

#[test]
fn a_host_program_that_does_not_read_stops_the_guest_and_loses_nothing() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    let stream = pattern(4 << 20);
    let sent = fill(&mut guest, &stream);
    assert!(sent > BUF_ALLOC_BYTES as usize, "the socket takes some besides the buffer");
    assert!(sent < 2 << 20, "what waits is bounded: {sent}");

    let mut received = vec![0; sent];
    let mut done = 0;
    let mut credit = 0;
    while done < sent {
        // Slow: a little at a time, and the device works in between.
        let end = (done + 20_000).min(sent);
        program.read_exact(&mut received[done..end]).unwrap();
        done = end;
        for packet in guest.receive() {
            assert_eq!(packet.op(), Op::CreditUpdate);
            credit = packet.header.fwd_cnt as usize;
        }
    }
    assert_eq!(received, stream[..sent]);
    assert!(sent - credit <= BUF_ALLOC_BYTES as usize / 2, "the guest has credit again");
}

#[test]
fn a_guest_that_overruns_its_credit_is_reset() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    let stream = pattern(4 << 20);
    fill(&mut guest, &stream);
    guest.write(PORTS, b"!");
    assert_eq!(guest.receive_one().op(), Op::Rst);
    let mut rest = Vec::new();
    program.read_to_end(&mut rest).unwrap();
    assert!(stream.starts_with(&rest));
}

#[test]
fn a_guest_that_closes_early_has_all_its_bytes_delivered() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    let stream = pattern(4 << 20);
    let sent = fill(&mut guest, &stream);
    guest.shut_down(PORTS, Shutdown::BOTH);
    assert!(guest.receive().is_empty(), "RST would say that all is delivered");
    // Tired of waiting, it drops the connection.
    guest.say(Op::Rst, PORTS);
    guest.say(Op::Request, PORTS);
    assert_eq!(guest.receive_one().op(), Op::Rst, "the old bytes are still on their way");

    let reader = std::thread::spawn(move || {
        let mut received = Vec::new();
        program.read_to_end(&mut received).unwrap();
        received
    });
    while !reader.is_finished() {
        guest.driver.run();
        std::thread::yield_now();
    }
    assert_eq!(reader.join().unwrap(), stream[..sent]);
}

#[test]
fn a_full_rx_ring_stops_the_host_program_and_not_the_device() {
    let mut guest = Guest::without_buffers();
    guest.post_rx(1);
    let mut program = guest.connect_out(PORTS);
    program.write_all(&pattern(20_000)).unwrap();
    // `run` panics if the device spins on the readable socket.
    guest.driver.run();
    let packets = guest.receive();
    assert_eq!(bytes(&packets), 20_000, "the one buffer, again and again");
}
