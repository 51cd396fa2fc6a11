//! Well-behaved guests and host programs.

use std::io::{Read, Write};
use std::net::Shutdown as HostShutdown;

use super::super::multiplexer::FIRST_LOCAL_PORT;
use super::super::packet::{Op, Shutdown};
use super::guest::{GUEST_BUF_ALLOC, Guest, header, is_at_end, pattern, read_line};
use crate::virtio::vsock::packet::Header;

const PORTS: (u32, u32) = (52, 1024);

#[test]
fn the_guest_reads_its_identifier_from_configuration_space() {
    let guest = Guest::new();
    assert_eq!(guest.driver.config(0, 8), 3_u64.to_le_bytes());
    assert_eq!(guest.driver.config(4, 8), [0; 8], "bytes past the end are zero");
}

#[test]
fn a_host_client_reaches_a_port_of_the_guest() {
    let mut guest = Guest::new();
    let (mut client, host_port) = guest.connect_in(1024);
    assert_eq!(host_port, FIRST_LOCAL_PORT);

    client.write_all(b"ping").unwrap();
    let packet = guest.receive_one();
    assert_eq!((packet.op(), packet.data.as_slice()), (Op::Rw, b"ping".as_slice()));
    guest.write((host_port, 1024), b"pong");
    let mut answer = [0; 4];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");
}

#[test]
fn what_a_client_sends_before_it_is_answered_reaches_the_guest() {
    let mut guest = Guest::new();
    let mut client = guest.client(80);
    client.write_all(b"GET /").unwrap();
    let request = guest.receive_one();
    guest.say(Op::Response, (request.header.src_port, 80));
    assert_eq!(guest.receive_one().data, b"GET /");
    assert!(read_line(&mut client).starts_with("OK "));
}

#[test]
fn a_guest_that_refuses_a_client_closes_its_socket() {
    let mut guest = Guest::new();
    let mut client = guest.client(9);
    let request = guest.receive_one();
    guest.say(Op::Rst, (request.header.src_port, 9));
    assert!(is_at_end(&mut client));
    assert!(guest.receive().is_empty());
}

#[test]
fn a_client_that_gives_up_takes_its_request_back() {
    let mut guest = Guest::new();
    let client = guest.client(9);
    assert_eq!(guest.receive_one().op(), Op::Request);
    drop(client);
    assert_eq!(guest.receive_one().op(), Op::Rst);
}

#[test]
fn a_client_that_comes_before_the_driver_reaches_it_when_it_is_up() {
    let mut guest = Guest::without_buffers();
    let mut client = guest.client(1024);
    guest.driver.run();
    guest.driver.start_with(guest.driver.offered_features(), 128);
    guest.post_rx(4);
    let request = guest.receive_one();
    guest.say(Op::Response, (request.header.src_port, 1024));
    assert!(read_line(&mut client).starts_with("OK "));
}

#[test]
fn the_guest_reaches_a_socket_of_the_host() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    guest.write(PORTS, b"hello");
    let mut greeting = [0; 5];
    program.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"hello");
    program.write_all(b"well").unwrap();
    assert_eq!(guest.receive_one().data, b"well");
}

#[test]
fn a_port_that_nobody_serves_is_refused() {
    let mut guest = Guest::new();
    guest.say(Op::Request, (53, 1));
    let packet = guest.receive_one();
    assert_eq!((packet.op(), packet.header.src_port, packet.header.dst_port), (Op::Rst, 53, 1));
}

#[test]
fn a_mebibyte_comes_back_as_it_was_sent() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    let echo = std::thread::spawn(move || {
        let mut buffer = vec![0; 10_000];
        loop {
            let count = program.read(&mut buffer).unwrap();
            if count == 0 {
                return;
            }
            program.write_all(&buffer[..count]).unwrap();
        }
    });
    let sent = pattern(1 << 20);
    let (mut echoed, mut offset) = (Vec::new(), 0);
    let (mut credit, mut told) = (0_u32, 0_u32);
    while echoed.len() < sent.len() {
        let mut packets = Vec::new();
        // An honest guest: it sends within its credit and tells what it has taken.
        let len = (sent.len() - offset).min(40_000);
        if len > 0 && offset as u32 + len as u32 - credit <= 256 << 10 {
            let header = Header { fwd_cnt: told, len: len as u32, ..header(Op::Rw, PORTS) };
            guest.send(header, &sent[offset..offset + len]);
            offset += len;
        } else {
            packets = guest.receive_some();
        }
        packets.extend(guest.receive());
        for packet in packets {
            credit = packet.header.fwd_cnt;
            echoed.extend(packet.data);
        }
        if echoed.len() as u32 - told > GUEST_BUF_ALLOC / 2 {
            told = echoed.len() as u32;
            guest.send(Header { fwd_cnt: told, ..header(Op::CreditUpdate, PORTS) }, &[]);
        }
    }
    assert_eq!(echoed, sent);
    guest.shut_down(PORTS, Shutdown::BOTH);
    assert_eq!(guest.receive_some()[0].op(), Op::Rst);
    echo.join().unwrap();
}

#[test]
fn a_guest_that_ends_its_sending_still_receives() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    guest.write(PORTS, b"question");
    guest.shut_down(PORTS, Shutdown::SEND);
    let mut question = String::new();
    program.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");

    program.write_all(b"answer").unwrap();
    drop(program);
    let packets = guest.receive();
    assert_eq!(packets[0].data, b"answer");
    assert_eq!(packets[1].op(), Op::Shutdown);
    assert_eq!(packets[1].header.flags, Shutdown::BOTH.flags());
    guest.say(Op::Rst, PORTS);
    assert!(guest.receive().is_empty(), "RST is not answered");
}

#[test]
fn a_host_program_that_ends_its_sending_still_receives() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    program.write_all(b"question").unwrap();
    program.shutdown(HostShutdown::Write).unwrap();
    let packets = guest.receive();
    assert_eq!(packets[0].data, b"question");
    assert_eq!((packets[1].op(), packets[1].header.flags), (Op::Shutdown, 2));

    guest.write(PORTS, b"answer");
    guest.shut_down(PORTS, Shutdown::BOTH);
    let mut answer = String::new();
    program.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(guest.receive_one().op(), Op::Rst);
}

#[test]
fn a_guest_that_receives_no_more_breaks_the_pipe_of_the_host_program() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    guest.shut_down(PORTS, Shutdown::RECEIVE);
    let error = program.write_all(b"too late").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    guest.write(PORTS, b"still here");
    let mut bytes = [0; 10];
    program.read_exact(&mut bytes).unwrap();
}

#[test]
fn a_host_program_that_leaves_is_announced_and_its_place_freed() {
    let mut guest = Guest::new();
    drop(guest.connect_out(PORTS));
    let packet = guest.receive_one();
    assert_eq!((packet.op(), packet.header.flags), (Op::Shutdown, Shutdown::BOTH.flags()));
    // The guest had not heard of it yet.
    guest.write(PORTS, b"lost");
    guest.shut_down(PORTS, Shutdown::BOTH);
    assert_eq!(guest.receive_one().op(), Op::Rst);
    guest.say(Op::Request, PORTS);
    assert_eq!(guest.receive_one().op(), Op::Rst, "nobody serves the port any more");
}

#[test]
fn a_hundred_connections_keep_their_bytes_apart_and_take_turns() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let mut programs = Vec::new();
    for guest_port in 0..100 {
        guest.say(Op::Request, (52, guest_port));
        assert_eq!(guest.receive_one().op(), Op::Response);
        programs.push(listener.accept().unwrap().0);
    }
    for (guest_port, program) in programs.iter_mut().enumerate() {
        program.write_all(&vec![guest_port as u8; 10_000]).unwrap();
    }
    let mut received = vec![0; 100];
    let mut order = Vec::new();
    for packet in guest.receive() {
        let guest_port = packet.header.dst_port;
        assert!(packet.data.iter().all(|byte| u32::from(*byte) == guest_port));
        received[guest_port as usize] += packet.data.len();
        order.push(guest_port);
    }
    assert_eq!(received, vec![10_000; 100]);
    let mut first_turns = order[..64].to_vec();
    first_turns.dedup();
    assert_eq!(first_turns.len(), 64, "nobody has two turns in a row: {order:?}");
    for (guest_port, program) in programs.iter_mut().enumerate() {
        guest.write((52, guest_port as u32), &[guest_port as u8]);
        let mut byte = [0];
        program.read_exact(&mut byte).unwrap();
        assert_eq!(usize::from(byte[0]), guest_port);
    }
}

#[test]
fn one_interrupt_tells_of_a_batch_of_packets() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    guest.driver.take_interrupt();
    program.write_all(&pattern(40_000)).unwrap();
    guest.driver.run();
    assert_eq!(guest.driver.transport.interrupt_fd().read().ok(), Some(1));
}
