use super::*;

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    let mut rig = Rig::plain();
    let at: Vec<u64> =
        (0..5).map(|_| rig.driver.submit(RX_QUEUE, &[Buffer::Write(1000)]).1[0]).collect();
    rig.driver.kick(RX_QUEUE);
    let whole = frame(2500);
    rig.put(&whole);
    rig.driver.run();
    let lens: Vec<u32> =
        std::iter::from_fn(|| rig.driver.used(RX_QUEUE)).map(|used| used.len).collect();
    assert_eq!(lens, [1000, 1000, 512]);
    assert_eq!(rig.driver.bytes(at[0], 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    let received = [
        &rig.driver.bytes(at[0], 1000)[12..],
        &rig.driver.bytes(at[1], 1000),
        &rig.driver.bytes(at[2], 512),
    ]
    .concat();
    assert_eq!(received, whole);
    assert!(rig.driver.take_interrupt());
    // The buffers that were taken ahead are for the next one.
    rig.put(&frame(100));
    rig.driver.run();
    assert_eq!(rig.driver.used(RX_QUEUE).unwrap().len, 112);
    assert_eq!(rig.driver.bytes(at[3] + 12, 100), frame(100));
}

#[test]
fn frames_wait_for_buffers_and_come_in_order() {
    let mut rig = Rig::plain();
    for len in [100, 200, 300] {
        rig.put(&frame(len));
    }
    rig.driver.run();
    for len in [100, 200, 300] {
        rig.driver.submit(RX_QUEUE, &[Buffer::Write(2000)]);
        rig.driver.kick(RX_QUEUE);
        assert_eq!(rig.driver.used(RX_QUEUE).map(|used| used.len), Some(len + 12));
    }
}

#[test]
fn without_mergeable_buffers_a_frame_has_one_or_is_lost() {
    let mut rig = Rig::without(MRG_RXBUF);
    let (_, at) = rig.driver.submit(RX_QUEUE, &[Buffer::Write(12), Buffer::Write(500)]);
    rig.driver.submit(RX_QUEUE, &[Buffer::Write(1000)]);
    rig.driver.kick(RX_QUEUE);
    rig.put(&frame(600));
    rig.put(&frame(400));
    rig.put(&frame(988));
    rig.driver.run();
    assert_eq!(rig.driver.used(RX_QUEUE).unwrap().len, 412);
    assert_eq!(rig.driver.bytes(at[0], 12)[10..], [1, 0]);
    assert_eq!(rig.driver.used(RX_QUEUE).unwrap().len, 1000, "it fits exactly");
}

#[test]
fn a_buffer_that_is_none_comes_back_empty_and_costs_no_frame() {
    let mut rig = Rig::plain();
    let end = RAM_BASE + RAM_BYTES as u64;
    rig.driver.submit(RX_QUEUE, &[Buffer::Write(2000)]);
    rig.driver.submit(RX_QUEUE, &[Buffer::At { address: end - 4, len: 100, write: true }]);
    rig.driver.submit(RX_QUEUE, &[Buffer::Read(vec![1; 100])]);
    rig.driver.submit(RX_QUEUE, &[Buffer::Write(11)]);
    rig.driver.submit(RX_QUEUE, &[Buffer::Write(2000)]);
    rig.driver.kick(RX_QUEUE);
    rig.put(&frame(100));
    rig.put(&frame(200));
    rig.driver.run();
    let used: Vec<_> = std::iter::from_fn(|| rig.driver.used(RX_QUEUE))
        .map(|used| (used.head, used.len))
        .collect();
    assert_eq!(used, [(0, 112), (1, 0), (2, 0), (3, 0), (4, 212)]);
    assert!(!rig.driver.needs_reset());
}

#[test]
fn what_is_no_frame_is_lost() {
    let mut rig = Rig::plain();
    rig.driver.submit(RX_QUEUE, &[Buffer::Write(2000)]);
    rig.driver.kick(RX_QUEUE);
    rig.network.send(&[0; 25]).unwrap();
    rig.driver.run();
    assert_eq!(rig.driver.used(RX_QUEUE), None);
    drop(std::mem::replace(&mut rig.network, device(&Options::default()).1));
    rig.driver.run();
    assert!(!rig.driver.needs_reset(), "nor does a network that is gone harm");
}

#[test]
fn a_flood_of_frames_is_delivered_in_turns() {
    let mut rig = Rig::plain();
    let mut delivered = 0;
    for _ in 0..20 {
        let mark = rig.driver.allocate(0);
        for _ in 0..60 {
            rig.driver.submit(RX_QUEUE, &[Buffer::Write(200)]);
        }
        rig.driver.kick(RX_QUEUE);
        for _ in 0..60 {
            rig.put(&frame(100));
        }
        rig.driver.run();
        delivered += std::iter::from_fn(|| rig.driver.used(RX_QUEUE)).count();
        rig.driver.give_back_from(mark);
    }
    assert!(delivered >= 1100, "{delivered}");
}

#[test]
fn a_rate_limit_leaves_frames_in_the_tap() {
    let once = Change::Limit(Rate::new(1, 0, crate::rate_limiter::REFILL_TIME_MAX).unwrap());
    let receive = Changes { bandwidth: once, ..Changes::default() };
    let limits = Limits { receive, ..Limits::default() };
    let mut rig = Rig::new(&Options { limits, ..Options::default() });
    for _ in 0..3 {
        rig.driver.submit(RX_QUEUE, &[Buffer::Write(2000)]);
        rig.put(&frame(100));
    }
    rig.driver.kick(RX_QUEUE);
    assert!(rig.driver.used(RX_QUEUE).is_some());
    assert_eq!(rig.driver.used(RX_QUEUE), None);
    let receive = Changes { bandwidth: Change::Lift, ..Changes::default() };
    rig.limits.send(Limits { receive, ..Limits::default() }).unwrap();
    rig.driver.transport.kick();
    rig.driver.run();
    assert_eq!(std::iter::from_fn(|| rig.driver.used(RX_QUEUE)).count(), 2);
}
