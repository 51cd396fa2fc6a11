//! A client of the socket API: HTTP messages, one after another, and their routes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rotifer_vmm::api::http::{BODY_BYTES_MAX, HEAD_BYTES_MAX, Progress, parse};
use rotifer_vmm::api::route;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    loop {
        match parse(rest) {
            Ok(Progress::Complete(message)) => {
                assert!(message.message_bytes > 0 && message.message_bytes <= rest.len());
                assert!(message.body.len() <= BODY_BYTES_MAX);
                // A refusal is an answer too.
                let _ = route(message.method, message.path, message.body);
                if !message.keep_alive {
                    return;
                }
                rest = &rest[message.message_bytes..];
            }
            Ok(Progress::Partial { needed_bytes, .. }) => {
                assert!(needed_bytes > rest.len());
                assert!(needed_bytes <= HEAD_BYTES_MAX + BODY_BYTES_MAX);
                return;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        }
    }
});
