//! Reset, save and load.

use std::io::Write;

use rotifer_snapshot::{Section, Stateful};

use super::super::packet::Op;
use super::super::{EVENT_QUEUE, Vsock, VsockState};
use super::guest::{GUEST_CID, Guest, is_at_end, read_line};
use crate::virtio::test_driver::reg;

const PORTS: (u32, u32) = (52, 1024);

/// Marks memory in which no event is.
const NO_EVENT: [u8; 4] = [0xaa; 4];

/// A guest with event buffers, as Linux has them, and what happens in them.
fn with_event_buffers(count: usize) -> (Guest, Vec<u64>) {
    let mut guest = Guest::new();
    let buffers = (0..count).map(|_| guest.post_event_buffer()).collect::<Vec<_>>();
    for address in &buffers {
        let address = vm_memory::GuestAddress(*address);
        vm_memory::Bytes::write_slice(&*guest.driver.memory, &NO_EVENT, address).unwrap();
    }
    (guest, buffers)
}

#[test]
fn a_reset_ends_every_connection_and_not_the_listener() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    let (mut client, _) = guest.connect_in(1024);
    guest.driver.write(reg::STATUS, 0);
    assert!(is_at_end(&mut program));
    assert!(is_at_end(&mut client));

    guest.restart();
    guest.post_rx(8);
    assert!(guest.receive().is_empty(), "nothing of the former life");
    guest.connect_in(1024);
}

#[test]
fn a_restored_guest_hears_that_its_connections_are_gone() {
    let (mut guest, buffers) = with_event_buffers(8);
    let mut program = guest.connect_out(PORTS);
    let mut guest = guest.restored();
    assert!(is_at_end(&mut program));
    let used = guest.driver.used(EVENT_QUEUE).unwrap();
    assert_eq!(used.len, 4);
    assert_eq!(guest.driver.bytes(buffers[0], 4), [0; 4], "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET");
    assert_eq!(guest.driver.bytes(buffers[1], 4), NO_EVENT, "it is told once");
    assert!(guest.driver.take_interrupt());

    guest.write(PORTS, b"anybody there?");
    assert_eq!(guest.receive_one().op(), Op::Rst);
    assert_eq!(guest.driver.used(EVENT_QUEUE), None);
}

#[test]
fn a_client_of_a_restored_guest_waits_until_the_guest_has_handled_the_reset() {
    let (guest, buffers) = with_event_buffers(8);
    let mut guest = guest.restored();
    let mut client = guest.client(1024);
    assert!(guest.receive().is_empty());
    assert!(guest.driver.used(EVENT_QUEUE).is_some());
    guest.repost_event_buffer(buffers[0]);
    let request = guest.receive_one();
    assert_eq!(request.op(), Op::Request);
    guest.say(Op::Response, (request.header.src_port, 1024));
    assert!(read_line(&mut client).starts_with("OK "));
    client.write_all(b"hello").unwrap();
    assert_eq!(guest.receive_one().data, b"hello");
}

#[test]
fn the_event_waits_for_a_buffer() {
    let guest = Guest::new();
    let mut guest = guest.restored();
    let _client = guest.client(1024);
    assert!(guest.receive().is_empty());
    let address = guest.driver.rings[EVENT_QUEUE].desc;
    // A buffer without room for an event is given back empty.
    let small = crate::virtio::test_driver::Buffer::At { address, len: 2, write: true };
    guest.driver.submit(EVENT_QUEUE, &[small]);
    guest.driver.kick(EVENT_QUEUE);
    assert_eq!(guest.driver.used(EVENT_QUEUE).map(|used| used.len), Some(0));
    let spare = guest.spare_address();
    guest.repost_event_buffer(spare);
    assert_eq!(guest.driver.used(EVENT_QUEUE).map(|used| used.len), Some(4));
    assert!(guest.receive().is_empty());
    guest.repost_event_buffer(spare);
    assert_eq!(guest.receive_one().op(), Op::Request);
}

#[test]
fn event_buffers_survive_a_second_suspend() {
    let (guest, _) = with_event_buffers(3);
    let mut guest = guest.restored();
    assert!(guest.driver.used(EVENT_QUEUE).is_some());
    // Suspended again before the guest got to handle the event.
    let mut guest = guest.restored();
    assert!(guest.driver.used(EVENT_QUEUE).is_some(), "the second of three");
    let mut guest = guest.restored();
    assert!(guest.driver.used(EVENT_QUEUE).is_some(), "the third");
    assert!(guest.driver.used(EVENT_QUEUE).is_none());
}

#[test]
fn a_driver_that_starts_anew_after_a_restore_has_nothing_to_be_told() {
    let (guest, _) = with_event_buffers(1);
    let mut guest = guest.restored();
    guest.restart();
    guest.post_rx(4);
    guest.post_event_buffer();
    assert_eq!(guest.driver.used(EVENT_QUEUE), None);
    guest.connect_in(1024);
}

#[test]
fn saving_a_machine_that_goes_on_disturbs_no_connection() {
    let mut guest = Guest::new();
    let mut program = guest.connect_out(PORTS);
    guest.driver.transport.drain();
    let state = guest.driver.transport.save();
    program.write_all(b"still here").unwrap();
    assert_eq!(guest.receive_one().data, b"still here");
    assert_ne!(guest.driver.transport.save(), state);
}

#[test]
fn the_identifier_comes_back_from_the_state() {
    let directory = tempfile::tempdir().unwrap();
    let saved = Vsock::new(77, &directory.path().join("a.sock")).unwrap();
    let mut loaded = Vsock::new(GUEST_CID, &directory.path().join("b.sock")).unwrap();
    loaded.load_section(&saved.save_section()).unwrap();
    assert_eq!(loaded.save(), saved.save());
}

#[test]
fn a_client_does_not_get_a_port_that_the_guest_may_still_know() {
    let (mut guest, buffers) = with_event_buffers(8);
    let (_client, former) = guest.connect_in(1024);
    let mut guest = guest.restored();
    guest.repost_event_buffer(buffers[0]);
    let (_client, later) = guest.connect_in(1024);
    assert_ne!(later, former);
}

#[test]
fn a_port_that_clients_do_not_get_is_not_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let mut device = Vsock::new(GUEST_CID, &directory.path().join("v.sock")).unwrap();
    for port in [0, 1024, u32::MAX] {
        let error = device.load(VsockState { next_local_port: port, ..device.save() }).unwrap_err();
        assert!(error.to_string().contains("next_local_port"), "{error}");
    }
}

#[test]
fn a_reserved_identifier_is_not_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let mut device = Vsock::new(GUEST_CID, &directory.path().join("v.sock")).unwrap();
    for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 32] {
        let error = device.load(VsockState { guest_cid: cid, ..device.save() }).unwrap_err();
        assert!(error.to_string().contains("guest_cid"), "{error}");
    }
    assert_eq!(device.save().guest_cid, GUEST_CID, "what was refused changed nothing");
}
