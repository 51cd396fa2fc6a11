//! The JSON configuration.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = rotifer_vmm::config::parse(bytes) {
        assert!(!error.to_string().is_empty());
    }
});
