use super::*;

const PLAIN: [u8; 12] = [0; 12];
/// A checksum to be filled in at 34 + 16, in segments of 1448 bytes of TCP over IPv4.
const SEGMENTED: [u8; 12] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];

#[test]
fn a_frame_arrives_with_its_header_however_it_lies_in_memory() {
    let mut rig = Rig::plain();
    let whole = frame(60_000);
    rig.send(&SEGMENTED, &whole);
    assert_eq!(rig.arrived().unwrap(), [&SEGMENTED[..], &whole].concat());
    let message = [&SEGMENTED[..], &whole].concat();
    let buffers: Vec<_> = message.chunks(5000).map(|part| Buffer::Read(part.to_vec())).collect();
    rig.driver.submit_indirect(TX_QUEUE, &buffers);
    // The header in two parts, too.
    let buffers = [&message[..5], &message[5..50], &message[50..]].map(|b| Buffer::Read(b.into()));
    rig.driver.submit(TX_QUEUE, &buffers);
    rig.driver.kick(TX_QUEUE);
    assert_eq!(rig.arrived().unwrap(), message);
    assert_eq!(rig.arrived().unwrap(), message);
}

#[test]
fn a_frame_that_must_not_be_is_lost_and_its_chain_comes_back() {
    let mut rig = Rig::plain();
    let end = RAM_BASE + RAM_BYTES as u64;
    let bad = [
        vec![Buffer::Read(PLAIN.into())],
        vec![Buffer::Read(vec![0; 11])],
        vec![Buffer::Write(2000)],
        vec![Buffer::Read(PLAIN.into()), Buffer::Read(frame(13))],
        vec![Buffer::Read(PLAIN.into()), Buffer::Read(frame(65_535 + 19))],
        vec![Buffer::Read(PLAIN.into()), Buffer::At { address: end - 8, len: 60, write: false }],
        vec![Buffer::At { address: end, len: 12, write: false }, Buffer::Read(frame(60))],
        // Segments without a checksum; a checksum behind the end.
        vec![Buffer::Read([&[0], &SEGMENTED[1..]].concat()), Buffer::Read(frame(2000))],
        vec![Buffer::Read(SEGMENTED.into()), Buffer::Read(frame(51))],
    ];
    for buffers in &bad {
        rig.driver.submit(TX_QUEUE, buffers);
        rig.driver.kick(TX_QUEUE);
        assert_eq!(rig.driver.used(TX_QUEUE).map(|used| used.len), Some(0), "{buffers:?}");
    }
    assert_eq!(rig.arrived(), None);
    assert!(!rig.driver.needs_reset());
    rig.send(&PLAIN, &frame(60));
    assert_eq!(rig.arrived().unwrap().len(), 72);
}

#[test]
fn what_was_not_negotiated_is_not_sent() {
    let mut rig = Rig::without(1 << virtio_bindings::virtio_net::VIRTIO_NET_F_HOST_TSO4);
    rig.send(&SEGMENTED, &frame(4000));
    assert_eq!(rig.arrived(), None);
}

#[test]
fn a_rate_limit_holds_frames_back_and_a_new_one_lets_them_go() {
    // One frame, and the next after the longest time there is.
    let once = Change::Limit(Rate::new(1, 0, crate::rate_limiter::REFILL_TIME_MAX).unwrap());
    let limits =
        Limits { transmit: Changes { ops: once, ..Changes::default() }, ..Limits::default() };
    let mut rig = Rig::new(&Options { limits, ..Options::default() });
    for _ in 0..3 {
        rig.send(&PLAIN, &frame(60));
    }
    assert!(rig.arrived().is_some());
    assert_eq!(rig.arrived(), None, "the others wait");
    assert!(rig.driver.used(TX_QUEUE).is_some());
    assert_eq!(rig.driver.used(TX_QUEUE), None);
    let lifted = Changes { ops: Change::Lift, ..Changes::default() };
    rig.limits.send(Limits { transmit: lifted, ..Limits::default() }).unwrap();
    rig.driver.transport.kick();
    rig.driver.run();
    assert_eq!(std::iter::from_fn(|| rig.arrived()).count(), 2);
}

#[test]
fn a_rate_limit_lets_frames_go_by_itself_when_their_time_comes() {
    let often = Change::Limit(Rate::new(1, 0, std::time::Duration::from_millis(5)).unwrap());
    let limits =
        Limits { transmit: Changes { ops: often, ..Changes::default() }, ..Limits::default() };
    let mut rig = Rig::new(&Options { limits, ..Options::default() });
    for _ in 0..3 {
        rig.send(&PLAIN, &frame(60));
    }
    for _ in 0..3 {
        assert!(rig.driver.answer(TX_QUEUE).is_some(), "no kick was needed");
    }
    assert_eq!(std::iter::from_fn(|| rig.arrived()).count(), 3);
}
