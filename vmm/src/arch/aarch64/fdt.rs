//! The flattened device tree: how the guest's kernel learns what its machine has.
//!
//! Bindings: Documentation/devicetree/bindings of Linux; format: <https://www.devicetree.org>.

use std::ops::Range;

use vm_fdt::{Error, FdtWriter};

use super::layout;
use crate::slots::{Spi, Window};

/// Which interrupt controller the host can give to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gic {
    /// GICv2: up to 8 CPUs (Raspberry Pi 5).
    V2,
    /// GICv3: servers.
    V3,
}

/// What a device node says, apart from its window and interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// virtio over MMIO; the device tells the rest itself.
    Virtio,
    /// A 16550A; also the standard output.
    Serial,
    /// A PL031.
    Rtc,
    /// Tells the host of a kernel panic (QEMU's pvpanic).
    PanicNotifier,
    /// The identifier that changes when the machine is restored or cloned.
    VmGenerationId,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Where it is.
    pub window: Window,
    /// Its interrupt, raised by edges.
    pub spi: Option<Spi>,
}

/// Everything that the tree tells.
#[derive(Debug)]
pub struct Description<'a> {
    /// Affinity of each CPU, the boot CPU first.
    pub cpu_affinities: &'a [u64],
    /// All RAM, the system area included.
    pub ram_bytes: u64,
    /// The interrupt controller.
    pub gic: Gic,
    /// For the kernel, and for init behind ` -- `.
    pub command_line: &'a str,
    /// Where the initial RAM file system was put.
    pub initrd: Option<Range<u64>>,
    /// Entropy for the kernel's random number generator.
    pub rng_seed: [u8; 32],
    /// Entropy for the kernel's address space layout.
    pub kaslr_seed: u64,
    /// In the order of the device table.
    pub devices: &'a [Node],
}

/// Frequency of the fixed clock of serial console and RTC, in Hz. Nothing depends on it.
const CLOCK_HZ: u32 = 24_000_000;
/// PL031, by ARM, revision 0: spares the guest from reading it byte by byte.
const PL031_PERIPHERAL_ID: u32 = 0x0004_1031;

/// References between nodes.
const GIC_PHANDLE: u32 = 1;
const CLOCK_PHANDLE: u32 = 2;

/// Cells of an `interrupts` property (bindings/interrupt-controller/arm,gic.yaml).
mod interrupt {
    pub const SPI: u32 = 0;
    pub const PPI: u32 = 1;
    pub const EDGE_RISING: u32 = 1;
    pub const LEVEL_HIGH: u32 = 4;
}
/// Private interrupts of the generic timer: secure, non-secure, virtual, hypervisor.
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];
/// GIC maintenance.
const MAINTENANCE_PPI: u32 = 9;

/// Encodes `description`.
///
/// # Errors
/// The command line contains a NUL, or the tree grows past 4 GiB.
pub fn build(description: &Description<'_>) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC_PHANDLE)?;
    chosen(&mut fdt, description)?;
    memory(&mut fdt, description.ram_bytes)?;
    cpus(&mut fdt, description.cpu_affinities)?;
    psci(&mut fdt)?;
    let cpu_count = description.cpu_affinities.len();
    gic(&mut fdt, description.gic, cpu_count)?;
    timer(&mut fdt, description.gic, cpu_count)?;
    clock(&mut fdt)?;
    for device in description.devices {
        device_node(&mut fdt, device)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

fn chosen(fdt: &mut FdtWriter, description: &Description<'_>) -> Result<(), Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", description.command_line)?;
    fdt.property("rng-seed", &description.rng_seed)?;
    fdt.property_u64("kaslr-seed", description.kaslr_seed)?;
    if let Some(initrd) = &description.initrd {
        fdt.property_u64("linux,initrd-start", initrd.start)?;
        fdt.property_u64("linux,initrd-end", initrd.end)?;
    }
    if let Some(serial) = description.devices.iter().find(|node| node.kind == NodeKind::Serial) {
        fdt.property_string("stdout-path", &format!("/{}", node_name(serial)))?;
    }
    fdt.end_node(node)
}

fn memory(fdt: &mut FdtWriter, ram_bytes: u64) -> Result<(), Error> {
    let start = layout::RAM_START.0 + layout::SYSTEM_AREA_BYTES;
    let node = fdt.begin_node(&format!("memory@{start:x}"))?;
    fdt.property_string("device_type", "memory")?;
    let bytes = ram_bytes.saturating_sub(layout::SYSTEM_AREA_BYTES);
    fdt.property_array_u64("reg", &[start, bytes])?;
    fdt.end_node(node)
}

fn cpus(fdt: &mut FdtWriter, affinities: &[u64]) -> Result<(), Error> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for affinity in affinities {
        let cpu = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,arm-v8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", *affinity)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)
}

fn psci(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("psci")?;
    let compatible = ["arm,psci-1.0", "arm,psci-0.2"].map(String::from);
    fdt.property_string_list("compatible", compatible.to_vec())?;
    // KVM answers hypervisor calls; a guest has no secure monitor.
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)
}

fn gic(fdt: &mut FdtWriter, gic: Gic, cpu_count: usize) -> Result<(), Error> {
    let distributor = layout::GIC_DISTRIBUTOR.0;
    let node = fdt.begin_node(&format!("intc@{distributor:x}"))?;
    let (compatible, reg) = match gic {
        Gic::V2 => (
            "arm,gic-400",
            [
                distributor,
                layout::GICV2_DISTRIBUTOR_BYTES,
                layout::GICV2_CPU_INTERFACE.0,
                layout::GICV2_CPU_INTERFACE_BYTES,
            ],
        ),
        Gic::V3 => (
            "arm,gic-v3",
            [
                distributor,
                layout::GICV3_DISTRIBUTOR_BYTES,
                layout::GICV3_REDISTRIBUTORS.0,
                layout::GICV3_REDISTRIBUTOR_BYTES * cpu_count as u64,
            ],
        ),
    };
    fdt.property_string("compatible", compatible)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    fdt.property_array_u64("reg", &reg)?;
    fdt.property_array_u32("interrupts", &private_interrupt(gic, cpu_count, MAINTENANCE_PPI))?;
    fdt.property_phandle(GIC_PHANDLE)?;
    fdt.end_node(node)
}

fn timer(fdt: &mut FdtWriter, gic: Gic, cpu_count: usize) -> Result<(), Error> {
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    // It goes on while a CPU sleeps, so no other timer is needed to wake it.
    fdt.property_null("always-on")?;
    let interrupts = TIMER_PPIS.map(|ppi| private_interrupt(gic, cpu_count, ppi));
    fdt.property_array_u32("interrupts", interrupts.as_flattened())?;
    fdt.end_node(node)
}

/// On GICv2, the third cell tells in bits 8 to 15 which CPUs have the interrupt.
fn private_interrupt(gic: Gic, cpu_count: usize, ppi: u32) -> [u32; 3] {
    let cpu_mask = match gic {
        Gic::V2 => (0xff_u32 >> 8_usize.saturating_sub(cpu_count)) << 8,
        Gic::V3 => 0,
    };
    [interrupt::PPI, ppi, interrupt::LEVEL_HIGH | cpu_mask]
}

fn clock(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", CLOCK_HZ)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(CLOCK_PHANDLE)?;
    fdt.end_node(node)
}

fn device_node(fdt: &mut FdtWriter, device: &Node) -> Result<(), Error> {
    let node = fdt.begin_node(&node_name(device))?;
    match device.kind {
        NodeKind::Virtio => {
            fdt.property_string("compatible", "virtio,mmio")?;
            fdt.property_null("dma-coherent")?;
        }
        NodeKind::Serial => {
            fdt.property_string("compatible", "ns16550a")?;
            fdt.property_u32("clock-frequency", CLOCK_HZ)?;
        }
        NodeKind::Rtc => {
            let compatible = ["arm,pl031", "arm,primecell"].map(String::from);
            fdt.property_string_list("compatible", compatible.to_vec())?;
            fdt.property_u32("arm,primecell-periphid", PL031_PERIPHERAL_ID)?;
            fdt.property_u32("clocks", CLOCK_PHANDLE)?;
            fdt.property_string("clock-names", "apb_pclk")?;
        }
        NodeKind::PanicNotifier => fdt.property_string("compatible", "qemu,pvpanic-mmio")?,
        NodeKind::VmGenerationId => fdt.property_string("compatible", "microsoft,vmgenid")?,
    }
    fdt.property_array_u64("reg", &[device.window.base.0, device.window.bytes])?;
    if let Some(Spi(spi)) = device.spi {
        fdt.property_array_u32("interrupts", &[interrupt::SPI, spi, interrupt::EDGE_RISING])?;
    }
    fdt.end_node(node)
}

fn node_name(device: &Node) -> String {
    let name = match device.kind {
        NodeKind::Virtio => "virtio_mmio",
        NodeKind::Serial => "serial",
        NodeKind::Rtc => "rtc",
        NodeKind::PanicNotifier => "pvpanic",
        NodeKind::VmGenerationId => "vmgenid",
    };
    format!("{name}@{:x}", device.window.base.0)
}

#[cfg(test)]
mod tests;
