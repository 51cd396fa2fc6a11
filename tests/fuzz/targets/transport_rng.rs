//! A guest against virtio-rng.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rotifer_devices::virtio::rng::Rng;
use rotifer_devices::virtio::test_driver::TestDriver;
use rotifer_fuzz::guest::{Action, assert_recovers, play};

fuzz_target!(|actions: Vec<Action>| {
    let mut driver = TestDriver::started(Box::new(Rng::new()));
    play(&mut driver, &actions);
    assert_recovers(&mut driver);
});
