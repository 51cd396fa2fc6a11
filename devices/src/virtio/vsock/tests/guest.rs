//! The guest's side of the socket device: a driver that posts buffers and exchanges packets.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::super::packet::{HEADER_BYTES, HOST_CID, Header, Op, Shutdown, TYPE_STREAM};
use super::super::{EVENT_QUEUE, RX_QUEUE, TX_QUEUE, Vsock};
use crate::virtio::test_driver::{Buffer, TestDriver};

pub const GUEST_CID: u64 = 3;
/// What the guest announces as its own buffer.
pub const GUEST_BUF_ALLOC: u32 = 256 << 10;
/// RX buffers as large as Linux's.
pub const RX_BUFFER_BYTES: u32 = 4096 + HEADER_BYTES as u32;
const RX_BUFFERS: usize = 64;

/// A packet that the device sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub header: Header,
    pub data: Vec<u8>,
}

impl Packet {
    pub fn op(&self) -> Op {
        Op::from_raw(self.header.op).unwrap()
    }
}

pub struct Guest {
    pub driver: TestDriver,
    pub directory: TempDir,
    /// Buffers on the RX ring: (head, address).
    posted: Vec<(u16, u64)>,
    /// TX memory, used again for each packet.
    tx_address: u64,
}

impl Guest {
    /// A device, and a driver that has set it up and posted RX buffers.
    pub fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.post_rx(RX_BUFFERS);
        guest
    }

    pub fn without_buffers() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let device = Vsock::new(GUEST_CID, &directory.path().join("v.sock")).unwrap();
        let mut driver = TestDriver::new(Box::new(device));
        driver.start_with(driver.offered_features(), 128);
        let tx_address = driver.allocate(128 << 10);
        driver.run();
        Self { driver, directory, posted: Vec::new(), tx_address }
    }

    /// The driver resets the device and sets it up anew, without RX buffers.
    pub fn restart(&mut self) {
        self.posted.clear();
        self.driver.start_with(self.driver.offered_features(), 128);
        self.driver.run();
    }

    /// The same guest on another device, which has loaded the state of this one.
    pub fn restored(self) -> Self {
        self.driver.transport.drain();
        let state = self.driver.transport.save();
        let (memory, rings) = (self.driver.memory.clone(), self.driver.rings.clone());
        drop(self.driver);
        let device = Vsock::new(GUEST_CID, &self.directory.path().join("v.sock")).unwrap();
        let mut driver = TestDriver::with_memory(Box::new(device), memory);
        driver.rings = rings;
        // What the former driver has allocated stays in use.
        driver.allocate(4 << 20);
        driver.transport.load(&state).unwrap();
        driver.transport.kick();
        driver.run();
        Self { driver, ..self }
    }

    /// Memory that is free between two packets.
    pub fn spare_address(&self) -> u64 {
        self.tx_address
    }

    pub fn uds_path(&self) -> PathBuf {
        self.directory.path().join("v.sock")
    }

    pub fn post_rx(&mut self, count: usize) {
        for _ in 0..count {
            let (head, addresses) = self.driver.submit(RX_QUEUE, &[Buffer::Write(RX_BUFFER_BYTES)]);
            self.posted.push((head, addresses[0]));
        }
        self.driver.kick(RX_QUEUE);
    }

    /// Lets the device work and collects what it sent; buffers are posted again.
    pub fn receive(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        loop {
            self.driver.run();
            let fresh = self.take_received();
            if fresh.is_empty() {
                return packets;
            }
            packets.extend(fresh);
        }
    }

    fn take_received(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Some(used) = self.driver.used(RX_QUEUE) {
            let position =
                self.posted.iter().position(|(head, _)| u32::from(*head) == used.head).unwrap();
            let (_, address) = self.posted.remove(position);
            let bytes = self.driver.bytes(address, used.len as usize);
            let header = parse(&bytes);
            assert_eq!(header.len as usize, bytes.len() - HEADER_BYTES);
            packets.push(Packet { header, data: bytes[HEADER_BYTES..].to_vec() });
            // The same memory again: tests may run for long.
            let buffer = Buffer::At { address, len: RX_BUFFER_BYTES, write: true };
            let (head, _) = self.driver.submit(RX_QUEUE, &[buffer]);
            self.posted.push((head, address));
        }
        if !packets.is_empty() {
            self.driver.kick(RX_QUEUE);
        }
        packets
    }

    /// Waits for packets from a host program that runs on its own.
    pub fn receive_some(&mut self) -> Vec<Packet> {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            let packets = self.receive();
            if !packets.is_empty() {
                return packets;
            }
            assert!(std::time::Instant::now() < deadline, "no packet within a minute");
            std::thread::yield_now();
        }
    }

    /// The one packet that the device sent.
    pub fn receive_one(&mut self) -> Packet {
        let mut packets = self.receive();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    /// Sends a packet, header and payload in one chain of two descriptors.
    pub fn send(&mut self, header: Header, data: &[u8]) {
        self.queue(header, data);
        self.flush();
    }

    /// The same without letting the device work.
    pub fn queue(&mut self, header: Header, data: &[u8]) {
        assert!(data.len() <= 64 << 10);
        let (head_at, data_at) = (self.tx_address, self.tx_address + 64);
        let memory = self.driver.memory.clone();
        memory.write_slice(&header.encode(), GuestAddress(head_at)).unwrap();
        memory.write_slice(data, GuestAddress(data_at)).unwrap();
        let mut buffers =
            vec![Buffer::At { address: head_at, len: HEADER_BYTES as u32, write: false }];
        if !data.is_empty() {
            buffers.push(Buffer::At { address: data_at, len: data.len() as u32, write: false });
        }
        self.driver.submit(TX_QUEUE, &buffers);
    }

    pub fn flush(&mut self) {
        self.driver.kick(TX_QUEUE);
        while self.driver.used(TX_QUEUE).is_some() {}
    }

    /// Sends a packet about `ports` (host, guest) without payload.
    pub fn say(&mut self, op: Op, ports: (u32, u32)) {
        self.send(header(op, ports), &[]);
    }

    pub fn shut_down(&mut self, ports: (u32, u32), flags: Shutdown) {
        self.send(Header { flags: flags.flags(), ..header(Op::Shutdown, ports) }, &[]);
    }

    pub fn write(&mut self, ports: (u32, u32), data: &[u8]) {
        self.send(Header { len: data.len() as u32, ..header(Op::Rw, ports) }, data);
    }

    /// A host program that serves `host_port`, and the guest connected to it.
    pub fn connect_out(&mut self, ports: (u32, u32)) -> UnixStream {
        let listener = self.listen(ports.0);
        self.say(Op::Request, ports);
        assert_eq!(self.receive_one().op(), Op::Response);
        listener.accept().unwrap().0
    }

    pub fn listen(&self, host_port: u32) -> UnixListener {
        let path = self.directory.path().join(format!("v.sock_{host_port}"));
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(path).unwrap()
    }

    /// A host client that has asked for `guest_port`.
    pub fn client(&self, guest_port: u32) -> UnixStream {
        let mut client = UnixStream::connect(self.uds_path()).unwrap();
        writeln!(client, "CONNECT {guest_port}").unwrap();
        client
    }

    /// A host client connected to `guest_port`, and the port that it was given.
    pub fn connect_in(&mut self, guest_port: u32) -> (UnixStream, u32) {
        let mut client = self.client(guest_port);
        let request = self.receive_one();
        assert_eq!((request.op(), request.header.dst_port), (Op::Request, guest_port));
        let host_port = request.header.src_port;
        self.say(Op::Response, (host_port, guest_port));
        assert_eq!(read_line(&mut client), format!("OK {host_port}\n"));
        (client, host_port)
    }

    /// Posts four bytes for an event: where they are.
    pub fn post_event_buffer(&mut self) -> u64 {
        let address = self.driver.allocate(4);
        self.repost_event_buffer(address);
        address
    }

    pub fn repost_event_buffer(&mut self, address: u64) {
        let buffer = Buffer::At { address, len: 4, write: true };
        self.driver.submit(EVENT_QUEUE, &[buffer]);
        self.driver.kick(EVENT_QUEUE);
    }
}

pub fn header(op: Op, (host_port, guest_port): (u32, u32)) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: host_port,
        kind: TYPE_STREAM,
        op: op as u16,
        buf_alloc: GUEST_BUF_ALLOC,
        ..Header::default()
    }
}

fn parse(bytes: &[u8]) -> Header {
    Header::parse(bytes[..HEADER_BYTES].try_into().unwrap()).unwrap()
}

pub fn read_line(client: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Bytes that differ from their neighbours.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Whether the other end has closed the connection, and nothing is left to read.
pub fn is_at_end(client: &mut UnixStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let end = match client.read(&mut [0; 16]) {
        Ok(count) => count == 0,
        // The device had not read everything.
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    };
    client.set_nonblocking(false).unwrap();
    end
}
