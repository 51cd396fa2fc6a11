use std::io::Write;

use super::*;
use crate::memory;

fn wanted(disk_count: usize) -> Wanted {
    let disk = |index| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; 4096]).unwrap();
        Disk {
            id: format!("disk{index}"),
            path: format!("/images/{index}").into(),
            file,
            size_bytes: 4096,
            read_only: false,
            root: index == 0,
            cache: CacheType::Unsafe,
            engine: block::Engine::Sync,
            overlay: None,
        }
    };
    Wanted {
        console: Console::File("/dev/null".into()),
        disks: (0..disk_count).map(disk).collect(),
        layers: DiskLayers::new(),
        vsock: None,
        entropy: true,
        networks: Vec::new(),
    }
}

fn table(wanted: Wanted) -> Table {
    let memory = Arc::new(memory::map(8 << 20).unwrap());
    Table::build(wanted, 2, &memory, EventFd::new(EFD_NONBLOCK).unwrap()).unwrap()
}

#[test]
fn the_same_configuration_makes_the_same_machine() {
    assert_eq!(table(wanted(3)).nodes(), table(wanted(3)).nodes());
}

#[test]
fn disks_come_first_among_virtio_devices_and_in_order() {
    let table = table(wanted(2));
    let virtio: Vec<_> =
        table.entries.iter().filter(|entry| matches!(entry.part, Part::Virtio(_))).collect();
    let names: Vec<_> = virtio.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["disk0", "disk1", "rng"]);
    let bases: Vec<_> = virtio.iter().map(|entry| entry.window.base.0).collect();
    assert_eq!(bases, [0x0a00_0000, 0x0a00_1000, 0x0a00_2000]);
}

#[test]
fn every_interrupt_belongs_to_one_device() {
    let table = table(wanted(16));
    let mut interrupts: Vec<_> = table.entries.iter().filter_map(|entry| entry.spi).collect();
    let count = interrupts.len();
    interrupts.sort();
    interrupts.dedup();
    assert_eq!(interrupts.len(), count);
    for entry in &table.entries {
        assert_eq!(entry.spi.is_some(), entry.part.interrupt_fd().is_some(), "{}", entry.name);
    }
}

#[test]
fn what_the_device_tree_tells_answers_on_the_bus() {
    /// virtio-mmio, section 4.2.2: "virt".
    const VIRTIO_MAGIC: [u8; 4] = *b"virt";
    let table = table(wanted(1));
    let bus = table.bus();
    for node in table.nodes().iter().filter(|node| node.kind == NodeKind::Virtio) {
        let mut magic = [0; 4];
        bus.read(node.window.base.0, &mut magic);
        assert_eq!(magic, VIRTIO_MAGIC);
    }
}

#[test]
fn a_panic_of_the_guest_reaches_the_main_thread() {
    let wake = EventFd::new(EFD_NONBLOCK).unwrap();
    let memory = Arc::new(memory::map(8 << 20).unwrap());
    let table = Table::build(wanted(0), 1, &memory, wake.try_clone().unwrap()).unwrap();
    let is_notifier = |entry: &&Entry| matches!(entry.part, Part::PanicNotifier(_));
    let window = table.entries.iter().find(is_notifier).unwrap().window;
    table.bus().write(window.base.0, &[1]);
    assert!(table.panic_notifier.panicked());
    assert_eq!(wake.read().unwrap(), 1);
}

#[test]
fn what_a_snapshot_has_of_a_disk_that_is_not_there_is_refused_by_its_name() {
    use rotifer_snapshot::{Digest, DiskBase, MemorySource, Name, SnapshotId};
    let layer = || Layer {
        snapshot: SnapshotId(Digest([1; 32])),
        base: DiskBase { bytes: 4096, fingerprint: Digest([2; 32]) },
        source: Box::new(MemorySource::new(Name::new("disk").unwrap(), vec![0; 4096])),
    };
    let refusal = |device: &str| {
        let wanted = Wanted { layers: [(device.to_owned(), layer())].into(), ..wanted(2) };
        let memory = Arc::new(memory::map(8 << 20).unwrap());
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        Table::build(wanted, 1, &memory, wake).err().unwrap().to_string()
    };
    assert!(refusal("block-b000000").contains("content of disk block-b000000"));
    // One that is there and has no overlay.
    let second = DeviceShape::of(&table(wanted(2)).entries[5]).section_name();
    let error = refusal(&second);
    assert!(error.contains("disk1") && error.contains("overlay_path"), "{error}");
}
