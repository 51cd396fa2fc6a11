//! A guest against virtio-vsock: packets of the right shape and of any other, while programs on
//! the host connect, send, stop reading and go away.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rotifer_devices::virtio::test_driver::{Buffer, TestDriver};
use rotifer_devices::virtio::vsock::Vsock;
use rotifer_fuzz::guest::{Action, Number, act, assert_recovers, may_place};

const EVENTS_MAX: usize = 64;
const STREAMS_MAX: usize = 8;
const GUEST_CID: u64 = 3;
const HOST_CID: u64 = 2;
/// Ports of the guest, so that packets meet one another.
const PORTS: u32 = 4;
/// The host's port that somebody serves.
const SERVED_PORT: u32 = 1;

#[derive(Debug, Arbitrary)]
enum Event {
    Guest(Action),
    /// Buffers for what the device sends.
    Room {
        count: u8,
        len: u16,
    },
    Packet(Packet),
    /// The guest answers the connection that the host asked for last.
    Accept {
        op: u8,
        buf_alloc: Number,
    },
    HostConnect {
        line: Line,
    },
    HostSend {
        stream: u8,
        bytes: Vec<u8>,
    },
    HostReceive {
        stream: u8,
    },
    HostClose {
        stream: u8,
    },
}

#[derive(Debug, Arbitrary)]
struct Packet {
    foreign_cid: Option<(Number, Number)>,
    src_port: u8,
    dst_port: u8,
    /// What the header says of the payload, if that is not true.
    len: Option<Number>,
    kind: Option<u16>,
    op: u8,
    flags: u8,
    buf_alloc: Number,
    fwd_cnt: Number,
    payload: Vec<u8>,
}

/// What a host program says first.
#[derive(Debug, Arbitrary)]
enum Line {
    Connect(u8),
    Raw(Vec<u8>),
}

fuzz_target!(|events: Vec<Event>| {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let uds_path = directory.path().join("v.sock");
    let mut listening = uds_path.clone().into_os_string();
    listening.push(format!("_{SERVED_PORT}"));
    let listener = UnixListener::bind(listening).expect("a program that serves a port");
    listener.set_nonblocking(true).expect("a listener that does not wait");
    let device = Vsock::new(GUEST_CID, &uds_path).expect("a vsock device");
    let mut driver = TestDriver::started(Box::new(device));
    let mut host = Host { listener, streams: Vec::new() };
    for event in events.iter().take(EVENTS_MAX) {
        step(&mut driver, &mut host, &uds_path, event);
    }
    assert_recovers(&mut driver);
});

/// The programs on the host.
struct Host {
    listener: UnixListener,
    streams: Vec<UnixStream>,
}

impl Host {
    fn adopt(&mut self, stream: UnixStream) {
        if self.streams.len() < STREAMS_MAX {
            stream.set_nonblocking(true).expect("a stream that does not wait");
            self.streams.push(stream);
        }
    }

    fn stream(&mut self, index: u8) -> Option<&mut UnixStream> {
        let count = self.streams.len().max(1);
        self.streams.get_mut(usize::from(index) % count)
    }
}

fn step(driver: &mut TestDriver, host: &mut Host, uds_path: &Path, event: &Event) {
    match event {
        Event::Guest(action) => act(driver, action),
        Event::Room { count, len } => {
            for _ in 0..count % 8 {
                submit(driver, 0, &[Buffer::Write(44 + u32::from(*len) % 4096)]);
            }
        }
        Event::Packet(packet) => submit(driver, 1, &packet.buffers()),
        Event::Accept { op, buf_alloc } => accept(driver, *op, buf_alloc.get() as u32),
        Event::HostConnect { line } => {
            // A full backlog refuses, as it should.
            if let Ok(mut stream) = UnixStream::connect(uds_path) {
                let _ = match line {
                    Line::Connect(port) => stream.write_all(format!("CONNECT {port}\n").as_bytes()),
                    Line::Raw(bytes) => stream.write_all(&bytes[..bytes.len().min(128)]),
                };
                host.adopt(stream);
            }
        }
        Event::HostSend { stream, bytes } => {
            if let Some(stream) = host.stream(*stream) {
                let _ = stream.write(bytes);
            }
        }
        Event::HostReceive { stream } => {
            if let Some(stream) = host.stream(*stream) {
                let _ = stream.read(&mut [0; 4096]);
            }
        }
        Event::HostClose { stream } => {
            if !host.streams.is_empty() {
                let index = usize::from(*stream) % host.streams.len();
                host.streams.swap_remove(index);
            }
        }
    }
    if let Ok((stream, _)) = host.listener.accept() {
        host.adopt(stream);
    }
    act(driver, &Action::Kick { queue: 1 });
}

fn submit(driver: &mut TestDriver, queue: usize, buffers: &[Buffer]) {
    if queue < driver.rings.len() && may_place(driver) {
        driver.submit(queue, buffers);
    }
}

impl Packet {
    fn buffers(&self) -> Vec<Buffer> {
        let payload = &self.payload[..self.payload.len().min(4096)];
        let (src_cid, dst_cid) = match self.foreign_cid {
            Some((src, dst)) => (src.get(), dst.get()),
            None => (GUEST_CID, HOST_CID),
        };
        let header = Header {
            cids: (src_cid, dst_cid),
            ports: (u32::from(self.src_port) % PORTS, u32::from(self.dst_port) % PORTS),
            len: self.len.map_or(payload.len() as u32, |len| len.get() as u32),
            kind: self.kind.unwrap_or(1),
            op: u16::from(self.op % 9),
            flags: (self.flags % 8).into(),
            credit: (self.buf_alloc.get() as u32, self.fwd_cnt.get() as u32),
        };
        let mut buffers = vec![Buffer::Read(header.bytes())];
        if !payload.is_empty() {
            buffers.push(Buffer::Read(payload.to_vec()));
        }
        buffers
    }
}

struct Header {
    cids: (u64, u64),
    ports: (u32, u32),
    len: u32,
    kind: u16,
    op: u16,
    flags: u32,
    credit: (u32, u32),
}

impl Header {
    fn bytes(&self) -> Vec<u8> {
        [
            &self.cids.0.to_le_bytes()[..],
            &self.cids.1.to_le_bytes(),
            &self.ports.0.to_le_bytes(),
            &self.ports.1.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.credit.0.to_le_bytes(),
            &self.credit.1.to_le_bytes(),
        ]
        .concat()
    }
}

/// Reads the last packet that the device sent, and answers it, with RESPONSE if `op` is zero.
fn accept(driver: &mut TestDriver, op: u8, buf_alloc: u32) {
    if driver.rings.is_empty() {
        return;
    }
    let Some(used) = std::iter::from_fn(|| driver.used(0)).take(64).last() else { return };
    let (table, size) = (driver.rings[0].desc, u32::from(driver.rings[0].size));
    // Rings may be anywhere in RAM by now, but always in RAM.
    let descriptor = driver.bytes(table + 16 * u64::from(used.head % size), 8);
    let at = u64::from_le_bytes(descriptor.try_into().expect("8 bytes"));
    let mut header = [0; 44];
    let address = vm_memory::GuestAddress(at);
    if vm_memory::Bytes::read_slice(driver.memory.as_ref(), &mut header, address).is_err() {
        return;
    }
    let port = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let answer = Header {
        cids: (GUEST_CID, HOST_CID),
        ports: (port(20), port(16)),
        len: 0,
        kind: 1,
        op: if op == 0 { 2 } else { u16::from(op % 9) },
        flags: 0,
        credit: (buf_alloc, 0),
    };
    submit(driver, 1, &[Buffer::Read(answer.bytes())]);
}
