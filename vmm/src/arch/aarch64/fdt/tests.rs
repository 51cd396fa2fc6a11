use dtoolkit::fdt::Fdt;
use dtoolkit::{Node as _, Property as _};
use vm_memory::GuestAddress;

use super::*;

const MIB: u64 = 1 << 20;

fn node(kind: NodeKind, base: u64, spi: Option<u32>) -> Node {
    Node { kind, window: Window { base: GuestAddress(base), bytes: 0x1000 }, spi: spi.map(Spi) }
}

/// Builds a tree with `change` applied to an ordinary machine, and asks it with `ask`.
fn with_tree<T>(change: impl FnOnce(&mut Description<'_>), ask: impl FnOnce(Fdt<'_>) -> T) -> T {
    let devices = [
        node(NodeKind::Serial, 0x0900_0000, Some(0)),
        node(NodeKind::Rtc, 0x0901_0000, None),
        node(NodeKind::PanicNotifier, 0x0902_0000, None),
        node(NodeKind::VmGenerationId, 0x8001_0000, Some(1)),
        node(NodeKind::Virtio, 0x0a00_0000, Some(2)),
    ];
    let mut description = Description {
        cpu_affinities: &[0, 1],
        ram_bytes: 128 * MIB,
        gic: Gic::V3,
        command_line: "console=ttyS0 quiet",
        initrd: None,
        rng_seed: [7; 32],
        kaslr_seed: 0x0102_0304_0506_0708,
        devices: &devices,
    };
    change(&mut description);
    let blob = build(&description).unwrap();
    ask(Fdt::new(&blob).expect("a parser that is not ours accepts the tree"))
}

fn bytes(tree: Fdt<'_>, path: &str, property: &str) -> Vec<u8> {
    let node = tree.find_node(path).unwrap_or_else(|| panic!("there is no node {path}"));
    node.property(property).unwrap_or_else(|| panic!("{path} has no {property}")).value().to_vec()
}

fn text(tree: Fdt<'_>, path: &str, property: &str) -> String {
    String::from_utf8(bytes(tree, path, property)).unwrap().trim_end_matches('\0').to_owned()
}

fn words(tree: Fdt<'_>, path: &str, property: &str) -> Vec<u32> {
    let bytes = bytes(tree, path, property);
    bytes.chunks_exact(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect()
}

fn doubles(tree: Fdt<'_>, path: &str, property: &str) -> Vec<u64> {
    let bytes = bytes(tree, path, property);
    bytes.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn the_kernel_is_told_its_command_line_seeds_and_console() {
    with_tree(
        |_| {},
        |tree| {
            assert_eq!(text(tree, "/chosen", "bootargs"), "console=ttyS0 quiet");
            assert_eq!(bytes(tree, "/chosen", "rng-seed"), [7; 32]);
            assert_eq!(doubles(tree, "/chosen", "kaslr-seed"), [0x0102_0304_0506_0708]);
            let console = text(tree, "/chosen", "stdout-path");
            assert_eq!(text(tree, &console, "compatible"), "ns16550a");
            let chosen = tree.find_node("/chosen").unwrap();
            assert!(chosen.property("linux,initrd-start").is_none());
        },
    );
}

#[test]
fn an_initrd_is_told_by_its_bounds() {
    with_tree(
        |description| description.initrd = Some(0x8600_0000..0x8600_1234),
        |tree| {
            assert_eq!(doubles(tree, "/chosen", "linux,initrd-start"), [0x8600_0000]);
            assert_eq!(doubles(tree, "/chosen", "linux,initrd-end"), [0x8600_1234]);
        },
    );
}

#[test]
fn the_system_area_is_no_memory_of_the_kernel() {
    with_tree(
        |_| {},
        |tree| {
            let reg = doubles(tree, "/memory@80200000", "reg");
            assert_eq!(reg, [0x8020_0000, 126 * MIB]);
            let [generation_id, _] = doubles(tree, "/vmgenid@80010000", "reg")[..] else {
                panic!()
            };
            assert!(generation_id < reg[0]);
        },
    );
}

#[test]
fn every_cpu_is_listed_by_affinity_and_started_through_psci() {
    with_tree(
        |description| description.cpu_affinities = &[0, 1, 0x100],
        |tree| {
            for (path, affinity) in
                [("/cpus/cpu@0", 0), ("/cpus/cpu@1", 1), ("/cpus/cpu@100", 0x100)]
            {
                assert_eq!(doubles(tree, path, "reg"), [affinity]);
                assert_eq!(text(tree, path, "enable-method"), "psci");
            }
            assert_eq!(text(tree, "/psci", "method"), "hvc");
        },
    );
}

#[test]
fn a_gicv3_has_a_redistributor_for_each_cpu() {
    with_tree(
        |_| {},
        |tree| {
            let path = "/intc@8000000";
            assert_eq!(text(tree, path, "compatible"), "arm,gic-v3");
            let reg = doubles(tree, path, "reg");
            assert_eq!(reg, [0x0800_0000, 0x1_0000, 0x080a_0000, 2 * 0x2_0000]);
            assert_eq!(words(tree, "/timer", "interrupts")[..3], [1, 13, 4]);
        },
    );
}

#[test]
fn a_gicv2_names_the_cpus_of_private_interrupts() {
    with_tree(
        |description| description.gic = Gic::V2,
        |tree| {
            let path = "/intc@8000000";
            assert_eq!(text(tree, path, "compatible"), "arm,gic-400");
            assert_eq!(doubles(tree, path, "reg"), [0x0800_0000, 0x1000, 0x0801_0000, 0x2000]);
            assert_eq!(words(tree, "/timer", "interrupts")[..3], [1, 13, 0x304]);
        },
    );
}

#[test]
fn devices_interrupt_by_edges_at_the_controller_of_the_root() {
    with_tree(
        |_| {},
        |tree| {
            let parent = words(tree, "/", "interrupt-parent");
            assert_eq!(parent, words(tree, "/intc@8000000", "phandle"));
            let path = "/virtio_mmio@a000000";
            assert_eq!(words(tree, path, "interrupts"), [0, 2, 1]);
            assert_eq!(doubles(tree, path, "reg"), [0x0a00_0000, 0x1000]);
            assert_eq!(text(tree, path, "compatible"), "virtio,mmio");
            assert_eq!(text(tree, "/pvpanic@9020000", "compatible"), "qemu,pvpanic-mmio");
            assert_eq!(text(tree, "/vmgenid@80010000", "compatible"), "microsoft,vmgenid");
            let clock = words(tree, "/rtc@9010000", "clocks");
            assert_eq!(clock, words(tree, "/apb-pclk", "phandle"));
        },
    );
}
