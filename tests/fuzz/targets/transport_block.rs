//! A guest against virtio-block with either engine or an overlay, over an image or a snapshot's, on a
//! disk that somebody else truncates now and then.
#![no_main]

use std::fs::File;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rotifer_devices::virtio::block::overlay::Layer;
use rotifer_devices::virtio::block::{Block, Cache, Engine, Options};
use rotifer_devices::virtio::test_driver::{Buffer, TestDriver};
use rotifer_fuzz::guest::{Action, Number, act, assert_recovers};
use rotifer_snapshot::{Digest, DiskBase, MemorySource, Name, SnapshotId};

const IMAGE_BYTES: u64 = 64 << 10;
const EVENTS_MAX: usize = 64;

#[derive(Debug, Arbitrary)]
struct Input {
    read_only: bool,
    writeback: bool,
    host: Host,
    queue_count: u8,
    events: Vec<Event>,
}

#[derive(Debug, Clone, Copy, PartialEq, Arbitrary)]
enum Host {
    Sync,
    Async,
    Overlay,
    Layered,
}

#[derive(Debug, Arbitrary)]
enum Event {
    Guest(Action),
    /// A request with a header of the right shape.
    Request {
        queue: u8,
        kind: u8,
        sector: Number,
        data: Vec<u8>,
        room: u16,
    },
    /// The image gets another length.
    Truncate(u16),
}

fuzz_target!(|input: Input| {
    let image = tempfile::tempfile().expect("a temporary file");
    image.set_len(IMAGE_BYTES).expect("a length for it");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let other = image.try_clone().expect("another descriptor of it");
    let options = Options {
        id: "fuzz".into(),
        path: "image".into(),
        read_only: input.read_only,
        cache: if input.writeback { Cache::Writeback } else { Cache::Unsafe },
        engine: if input.host == Host::Async { Engine::Async } else { Engine::Sync },
        queue_count: input.queue_count.into(),
        overlay: matches!(input.host, Host::Overlay | Host::Layered)
            .then(|| directory.path().join("overlay")),
    };
    let block = match input.host {
        Host::Layered => restored(image, &options),
        _ => Block::with_file(image, &options).expect("a block device"),
    };
    let overlay = block.overlay_file().expect("further descriptors");
    let mut driver = TestDriver::started(Box::new(block));
    for event in input.events.iter().take(EVENTS_MAX) {
        match event {
            Event::Guest(action) => act(&mut driver, action),
            Event::Request { queue, kind, sector, data, room } => {
                request(&mut driver, *queue, header(*kind, sector.get()), data, *room);
            }
            Event::Truncate(len) => other.set_len((*len).into()).expect("another length"),
        }
        let len = other.metadata().expect("the image's metadata").len();
        assert!(len <= IMAGE_BYTES, "the guest made its disk larger: {len} bytes");
    }
    assert_recovers(&mut driver);
    driver.transport.drain();
    if let Some(overlay) = overlay {
        let frozen = overlay.freeze().expect("a drained overlay is in its file");
        assert!(frozen.blocks().len() <= 1, "the disk has one block");
    }
});

/// A disk of which every other page is a snapshot's.
fn restored(image: File, options: &Options) -> Block {
    let name = Name::new("disk").expect("a name");
    let content = (0..IMAGE_BYTES).map(|at| (at >> 12 & 1) as u8).collect();
    let layer = Layer {
        snapshot: SnapshotId(Digest([1; 32])),
        base: DiskBase::of(&image, IMAGE_BYTES).expect("the base is read"),
        source: Box::new(MemorySource::new(name, content)),
    };
    let block = Block::restored(image, options, layer).expect("a block device");
    let overlay = block.overlay_file().expect("further descriptors").expect("it has an overlay");
    overlay.begin().expect("a new overlay");
    block
}

fn header(kind: u8, sector: u64) -> Vec<u8> {
    [&u32::from(kind % 16).to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn request(driver: &mut TestDriver, queue: u8, header: Vec<u8>, data: &[u8], room: u16) {
    if driver.rings.is_empty() {
        return;
    }
    let mut buffers = vec![Buffer::Read(header)];
    if !data.is_empty() {
        // A sector of data needs no 512 bytes of input.
        let sectors = 1 + usize::from(room % 4);
        let bytes =
            data.iter().copied().cycle().take(if room % 2 == 0 { 512 * sectors } else { 16 });
        buffers.push(Buffer::Read(bytes.collect()));
    }
    buffers.push(Buffer::Write(u32::from(room % 9) * 512));
    buffers.push(Buffer::Write(1));
    driver.submit(usize::from(queue) % driver.rings.len(), &buffers);
    act(driver, &Action::Kick { queue });
}
