//! The devices of the suite and a normal request to each.

use std::cell::RefCell;
use std::fs::File;

use socket2::{Domain, Socket, Type};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::{Specimen, Submit};
use crate::virtio::test_driver::{Buffer, TestDriver};
use crate::virtio::{VirtioDevice, block, net, rng, vsock};

/// A small disk, of one file or with an overlay.
pub(super) struct Block {
    pub(super) engine: block::Engine,
    pub(super) overlaid: bool,
}

impl Specimen for Block {
    fn name(&self) -> &'static str {
        match (self.overlaid, self.engine) {
            (true, _) => "block with an overlay",
            (false, block::Engine::Sync) => "block",
            (false, block::Engine::Async) => "block, through io_uring",
        }
    }

    fn device(&self) -> Box<dyn VirtioDevice> {
        let directory = tempfile::tempdir().unwrap();
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(64 << 10).unwrap();
        let options = block::Options {
            id: "specimen".into(),
            path: image.path().into(),
            read_only: false,
            cache: block::Cache::Unsafe,
            engine: self.engine,
            queue_count: 2,
            // The file stays open when its name is gone.
            overlay: self.overlaid.then(|| directory.path().join("overlay")),
        };
        let file = File::options().read(true).write(true).open(image.path()).unwrap();
        Box::new(block::Block::with_file(file, &options).unwrap())
    }

    fn queue(&self) -> usize {
        0
    }

    /// Writes a sector and reads it back.
    fn request(&self, driver: &mut TestDriver, submit: Submit) {
        let header = |kind: u32| {
            Buffer::Read([&kind.to_le_bytes()[..], &[0; 4], &3_u64.to_le_bytes()].concat())
        };
        let written = b"rotifers".repeat(64);
        let out = [header(VIRTIO_BLK_T_OUT), Buffer::Read(written.clone()), Buffer::Write(1)];
        let (head, at) = submit(driver, 0, &out);
        driver.kick(0);
        let used = driver.answer(0).expect("a write is answered");
        assert_eq!((used.head, used.len), (head.into(), 1));
        assert_eq!(driver.bytes(at[2], 1), [0], "status of the write");

        let read = [header(VIRTIO_BLK_T_IN), Buffer::Write(512), Buffer::Write(1)];
        let (head, at) = submit(driver, 0, &read);
        driver.kick(0);
        let used = driver.answer(0).expect("a read is answered");
        assert_eq!((used.head, used.len), (head.into(), 513));
        assert_eq!(driver.bytes(at[2], 1), [0], "status of the read");
        assert_eq!(driver.bytes(at[1], 512), written);
    }
}

/// Random bytes.
pub(super) struct Rng;

impl Specimen for Rng {
    fn name(&self) -> &'static str {
        "rng"
    }

    fn device(&self) -> Box<dyn VirtioDevice> {
        Box::new(rng::Rng::new())
    }

    fn queue(&self) -> usize {
        0
    }

    fn request(&self, driver: &mut TestDriver, submit: Submit) {
        let (head, at) = submit(driver, 0, &[Buffer::Write(32), Buffer::Write(32)]);
        driver.kick(0);
        let used = driver.used(0).expect("a request is answered");
        assert_eq!((used.head, used.len), (head.into(), 64));
        assert_ne!(driver.bytes(at[1], 32), [0; 32]);
    }
}

/// Frames, with a socket in the tap's place.
#[derive(Default)]
pub(super) struct Net {
    /// The network of the device that was made last.
    network: RefCell<Option<Socket>>,
}

impl Specimen for Net {
    fn name(&self) -> &'static str {
        "net"
    }

    fn device(&self) -> Box<dyn VirtioDevice> {
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        theirs.set_nonblocking(true).unwrap();
        self.network.replace(Some(theirs));
        let tap = net::Tap::over_socket(ours.into()).unwrap();
        let mac = net::Mac::new([2, 0, 0, 0, 0, 1]);
        let options = net::Options { mac, mtu: Some(1400), ..net::Options::default() };
        Box::new(net::Net::new(tap, &options).unwrap().0)
    }

    /// The one on which the guest sends.
    fn queue(&self) -> usize {
        1
    }

    /// Sends a frame; it arrives on the network, and so does the one that is sent back.
    fn request(&self, driver: &mut TestDriver, submit: Submit) {
        let network = self.network.borrow();
        let Some(network) = network.as_ref() else { panic!("a device was made") };
        let message = [&[0; 12][..], &b"rotifers".repeat(10)].concat();
        let (receive_head, at) = submit(driver, 0, &[Buffer::Write(40), Buffer::Write(100)]);
        let (head, _) = submit(driver, 1, &[Buffer::Read(message.clone())]);
        driver.kick(1);
        let used = driver.used(1).expect("a frame is taken");
        assert_eq!((used.head, used.len), (head.into(), 0));
        // What hostile tests have sent may come before it.
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1 << 17];
        while let Ok(count) = network.recv(&mut buffer) {
            assert!(count >= 26, "a frame has a header before it");
        }
        network.send(&message).unwrap();
        driver.run();
        let used = driver.used(0).expect("the frame is delivered");
        assert_eq!((used.head, used.len), (receive_head.into(), 92));
        let expected = [&[0; 10][..], &[1, 0], &message[12..]].concat();
        assert_eq!(driver.bytes(at[0], 40), expected[..40]);
        assert_eq!(driver.bytes(at[1], 52), expected[40..]);
    }
}

/// Streams between the guest and host sockets.
pub(super) struct Vsock;

impl Specimen for Vsock {
    fn name(&self) -> &'static str {
        "vsock"
    }

    fn device(&self) -> Box<dyn VirtioDevice> {
        let directory = tempfile::tempdir().unwrap();
        // Nobody connects, so it does not matter that the directory goes away.
        Box::new(vsock::Vsock::new(3, &directory.path().join("v.sock")).unwrap())
    }

    /// The one on which the guest sends.
    fn queue(&self) -> usize {
        1
    }

    /// Connects to a port that nobody serves, which is refused.
    fn request(&self, driver: &mut TestDriver, submit: Submit) {
        const OP_OFFSET: usize = 30;
        const RST: u8 = 3;
        let mut request = vec![0; 44];
        request[..8].copy_from_slice(&3_u64.to_le_bytes());
        request[8..16].copy_from_slice(&2_u64.to_le_bytes());
        request[16..20].copy_from_slice(&1024_u32.to_le_bytes());
        request[20..24].copy_from_slice(&52_u32.to_le_bytes());
        request[28..32].copy_from_slice(&[1, 0, 1, 0]); // a stream, REQUEST
        let (receive_head, at) = submit(driver, 0, &[Buffer::Write(44), Buffer::Write(100)]);
        let (head, _) = submit(driver, 1, &[Buffer::Read(request)]);
        driver.kick(1);
        let used = driver.used(1).expect("a request is taken");
        assert_eq!((used.head, used.len), (head.into(), 0));
        let used = driver.used(0).expect("a request is answered");
        assert_eq!((used.head, used.len), (receive_head.into(), 44));
        assert_eq!(driver.bytes(at[0], 44)[OP_OFFSET], RST);
    }
}
