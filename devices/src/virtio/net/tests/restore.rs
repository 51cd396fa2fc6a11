use super::*;
use crate::virtio::TransportState;

fn options(mac: &str) -> Options {
    Options { mac: Some(mac.parse().unwrap()), mtu: Some(1400), ..Options::default() }
}

#[test]
fn buffers_taken_ahead_are_the_next_devices() {
    let mut rig = Rig::new(&options("06:00:00:00:00:01"));
    for _ in 0..6 {
        rig.driver.submit(RX_QUEUE, &[Buffer::Write(1000)]);
    }
    rig.driver.kick(RX_QUEUE);
    rig.put(&frame(1500));
    rig.driver.run();
    assert_eq!(rig.driver.used(RX_QUEUE).unwrap().len, 1000);
    assert_eq!(rig.driver.used(RX_QUEUE).unwrap().len, 512);
    rig.driver.transport.drain();
    let state = rig.driver.transport.save();

    let (net, network, limits) = device(&options("06:00:00:00:00:02"));
    let mut driver = TestDriver::with_memory(Box::new(net), rig.driver.memory.clone());
    driver.transport.load(&state).unwrap();
    assert!(driver.transport.save() == state, "its address among it");
    driver.rings = rig.driver.rings.clone();
    let mut copy = Rig { driver, network, limits };
    copy.put(&frame(3900));
    copy.driver.transport.kick();
    copy.driver.run();
    let lens: Vec<_> =
        std::iter::from_fn(|| copy.driver.used(RX_QUEUE)).map(|used| used.len).collect();
    assert_eq!(lens, [1000, 1000, 1000, 912], "in all four that were left");
    // The first one goes on as well: a machine may be saved and not end.
    rig.put(&frame(100));
    rig.driver.run();
    assert_eq!(rig.driver.used(RX_QUEUE).unwrap().len, 112);
}

#[test]
fn another_mtu_or_an_impossible_address_is_refused_by_name() {
    let rig = Rig::new(&options("06:00:00:00:00:01"));
    let state = rig.driver.transport.save();
    let refusal = |options: &Options, state: &TransportState| {
        let driver = TestDriver::new(Box::new(device(options).0));
        driver.transport.load(state).unwrap_err().to_string()
    };
    let other = Options { mtu: Some(1500), ..options("06:00:00:00:00:01") };
    let text = refusal(&other, &state);
    assert!(text.contains("mtu = 1400"), "{text}");
    use rotifer_snapshot::Stateful;
    let (mut net, ..) = device(&options("06:00:00:00:00:01"));
    let text = net.load(NetState { mac: [1; 6], mtu: Some(1400) }).unwrap_err().to_string();
    assert!(text.contains("mac"), "{text}");
}
