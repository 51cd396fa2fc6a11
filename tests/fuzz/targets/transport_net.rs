//! A guest against virtio-net, with a network (a socket in the tap's place) that sends anything.
#![no_main]

use std::mem::MaybeUninit;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rotifer_devices::virtio::net::{Net, Options, Tap};
use rotifer_devices::virtio::test_driver::{Buffer, TestDriver};
use rotifer_fuzz::guest::{Action, act, assert_recovers, may_place};
use socket2::{Domain, Socket, Type};

const EVENTS_MAX: usize = 64;
const HEADER_BYTES: usize = 12;
const MESSAGE_BYTES_MAX: usize = 128 << 10;
const TX_QUEUE: usize = 1;

#[derive(Debug, Arbitrary)]
struct Input {
    mtu: Option<u16>,
    events: Vec<Event>,
}

#[derive(Debug, Arbitrary)]
enum Event {
    Guest(Action),
    /// A frame with a header of the right size.
    Send {
        header: [u8; HEADER_BYTES],
        frame_bytes: u16,
        split: u8,
    },
    /// Room for frames, of these sizes.
    Room {
        sizes: Vec<u16>,
        indirect: bool,
    },
    /// A message from the network.
    Arrive {
        bytes: u16,
        fill: u8,
    },
    /// The network goes away.
    HangUp,
}

fuzz_target!(|input: Input| {
    let (ours, theirs) =
        Socket::pair(Domain::UNIX, Type::SEQPACKET, None).expect("a pair of sockets");
    theirs.set_nonblocking(true).expect("a socket that does not wait");
    let mut network = Some(theirs);
    let tap = Tap::over_socket(ours.into()).expect("a tap");
    let options = Options { mtu: input.mtu, ..Options::default() };
    let (net, _limits) = Net::new(tap, &options).expect("a network device");
    let mut driver = TestDriver::started(Box::new(net));
    for event in input.events.iter().take(EVENTS_MAX) {
        match event {
            Event::Guest(action) => act(&mut driver, action),
            Event::Send { header, frame_bytes, split } => {
                send(&mut driver, header, (*frame_bytes).into(), (*split).into());
            }
            Event::Room { sizes, indirect } => room(&mut driver, sizes, *indirect),
            Event::Arrive { bytes, fill } => {
                if let Some(network) = &network {
                    // A full socket is a network that loses something.
                    let _ = network.send(&vec![*fill; usize::from(*bytes).max(1)]);
                }
                act(&mut driver, &Action::Kick { queue: 0 });
            }
            Event::HangUp => network = None,
        }
        if let Some(network) = &network {
            check_arrivals(network);
        }
    }
    assert_recovers(&mut driver);
});

/// What gets out is a frame, and its header says nothing that is not so.
fn check_arrivals(network: &Socket) {
    let mut buffer = vec![MaybeUninit::uninit(); MESSAGE_BYTES_MAX];
    while let Ok(count @ 1..) = network.recv(&mut buffer) {
        assert!(count >= HEADER_BYTES + 14, "{count} bytes are no frame");
        // SAFETY: `recv` has written so many bytes.
        let byte = |at: usize| unsafe { buffer[at].assume_init() };
        let word = |at| usize::from(u16::from_le_bytes([byte(at), byte(at + 1)]));
        assert_eq!(byte(0) & !1, 0, "unknown flags");
        if byte(0) == 1 {
            assert!(word(6) + word(8) + 2 <= count - HEADER_BYTES, "a checksum behind the end");
        }
        assert!(byte(1) == 0 || (byte(0) == 1 && word(4) > 0), "impossible segments");
    }
}

fn send(driver: &mut TestDriver, header: &[u8], frame_bytes: usize, split: usize) {
    if driver.rings.len() <= TX_QUEUE || !may_place(driver) {
        return;
    }
    let message = [header, &vec![7; frame_bytes]].concat();
    let parts = message.split_at(split.min(message.len()));
    let buffers = [Buffer::Read(parts.0.to_vec()), Buffer::Read(parts.1.to_vec())];
    driver.submit(TX_QUEUE, &buffers);
    act(driver, &Action::Kick { queue: TX_QUEUE as u8 });
}

fn room(driver: &mut TestDriver, sizes: &[u16], indirect: bool) {
    for size in sizes.iter().take(8) {
        if driver.rings.is_empty() || !may_place(driver) {
            return;
        }
        let buffers = [Buffer::Write(u32::from(*size) / 2), Buffer::Write(u32::from(*size))];
        if indirect {
            driver.submit_indirect(0, &buffers);
        } else {
            driver.submit(0, &buffers);
        }
    }
    act(driver, &Action::Kick { queue: 0 });
}
