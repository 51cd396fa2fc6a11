use std::os::fd::OwnedFd;

use socket2::{Domain, Socket, Type};

use super::*;
use crate::rate_limiter::{Change, Rate};
use crate::virtio::test_driver::{Buffer, RAM_BASE, RAM_BYTES, TestDriver};

mod receiving;
mod restore;
mod sending;

const MRG_RXBUF: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

/// A device, its driver, and the network in the tap's place.
struct Rig {
    driver: TestDriver,
    network: Socket,
    limits: LimitSender,
}

fn device(options: &Options) -> (Net, Socket, LimitSender) {
    let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let tap = Tap::over_socket(OwnedFd::from(ours)).unwrap();
    let (net, limits) = Net::new(tap, options).unwrap();
    (net, theirs, limits)
}

impl Rig {
    fn new(options: &Options) -> Self {
        let (net, network, limits) = device(options);
        Self { driver: TestDriver::started(Box::new(net)), network, limits }
    }

    fn plain() -> Self {
        Self::new(&Options::default())
    }

    /// One whose driver does not know these features.
    fn without(features: u64) -> Self {
        let (net, network, limits) = device(&Options::default());
        let mut driver = TestDriver::new(Box::new(net));
        let offered = driver.offered_features();
        driver.start_with(offered & !features, 64);
        Self { driver, network, limits }
    }

    /// What is on the network: a header and a frame.
    fn arrived(&self) -> Option<Vec<u8>> {
        let mut buffer = Vec::with_capacity(1 << 17);
        let count = self.network.recv(buffer.spare_capacity_mut()).ok()?;
        // SAFETY: `recv` has written so many bytes.
        unsafe { buffer.set_len(count) };
        Some(buffer)
    }

    /// Puts a frame with an empty header on the network.
    fn put(&self, frame: &[u8]) {
        self.network.send(&[&[0; 12][..], frame].concat()).unwrap();
    }

    /// The guest sends, with this header.
    fn send(&mut self, header: &[u8], frame: &[u8]) {
        let buffers = [Buffer::Read(header.to_vec()), Buffer::Read(frame.to_vec())];
        self.driver.submit(TX_QUEUE, &buffers);
        self.driver.kick(TX_QUEUE);
    }
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|index| index as u8).collect()
}

#[test]
fn the_guest_reads_its_address_the_link_and_the_mtu() {
    let mac = Some("06:00:ac:10:00:02".parse().unwrap());
    let rig = Rig::new(&Options { mac, mtu: Some(9000), ..Options::default() });
    let expected = [6, 0, 0xac, 0x10, 0, 2, 1, 0, 0, 0, 0x28, 0x23];
    assert_eq!(rig.driver.config(0, 12), expected);
    assert_eq!(rig.driver.config(10, 4), [0x28, 0x23, 0, 0], "zeroes behind the end");
    assert_ne!(rig.driver.offered_features() & 1 << VIRTIO_NET_F_MTU, 0);
    let rig = Rig::plain();
    assert_eq!(rig.driver.offered_features() & 1 << VIRTIO_NET_F_MTU, 0);
    assert_ne!(rig.driver.config(0, 6), [0; 6], "without one it has an address all the same");
}
