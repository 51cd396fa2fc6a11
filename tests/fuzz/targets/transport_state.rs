//! A saved device from a hostile file: refused, or a device like any other.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rotifer_devices::virtio::TransportState;
use rotifer_devices::virtio::rng::Rng;
use rotifer_devices::virtio::test_driver::TestDriver;
use rotifer_fuzz::guest::{Action, assert_recovers, play};

fuzz_target!(|input: (Option<Vec<u8>>, Vec<(u8, u8)>, Vec<Action>)| {
    let (bytes, changes, actions) = input;
    let mut driver = TestDriver::started(Box::new(Rng::new()));
    // Bytes out of nowhere are seldom a state, so most inputs change a good one.
    let mut encoded = bytes.unwrap_or_else(|| {
        postcard::to_stdvec(&driver.transport.save()).expect("a state can be encoded")
    });
    for (at, value) in changes {
        let len = encoded.len().max(1);
        if let Some(byte) = encoded.get_mut(usize::from(at) % len) {
            *byte = value;
        }
    }
    let Ok(state) = postcard::from_bytes::<TransportState>(&encoded) else { return };
    if driver.transport.load(&state).is_err() {
        return; // nobody uses a transport that refused its state
    }
    assert!(driver.transport.save() == state, "what was loaded is what is saved");
    driver.transport.kick();
    play(&mut driver, &actions);
    assert_recovers(&mut driver);
});
