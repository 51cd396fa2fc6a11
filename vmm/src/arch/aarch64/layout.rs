//! The guest's physical memory map.
//!
//! ```text
//!  0x0800_0000  interrupt controller: distributor, then CPU interface (v2) or redistributors (v3)
//!  0x0900_0000  serial console, real-time clock, panic notifier: 64 KiB each
//!  0x0a00_0000  virtio-mmio devices, 4 KiB each
//!  0x8000_0000  RAM: 2 MiB of the machine's own (never told to the kernel as memory), then the
//!               kernel image ... initial RAM file system, device tree, end
//! ```
//! Nothing of it depends on the host, so a machine restored elsewhere finds itself at home. The
//! devices lie where QEMU's `virt` board has its own, which spares whoever debugs a second map.

use std::ops::Range;

use vm_memory::GuestAddress;

/// Interrupt controller, both versions: the distributor.
pub const GIC_DISTRIBUTOR: GuestAddress = GuestAddress(0x0800_0000);
/// Size of a GICv2 distributor (ARM IHI 0048B, section 4.1).
pub const GICV2_DISTRIBUTOR_BYTES: u64 = 0x1000;
/// Size of a GICv3 distributor (ARM IHI 0069, section 12.8).
pub const GICV3_DISTRIBUTOR_BYTES: u64 = 0x1_0000;
/// GICv2: the CPU interface, which KVM maps in 64 KiB alignment.
pub const GICV2_CPU_INTERFACE: GuestAddress = GuestAddress(0x0801_0000);
/// Size of a GICv2 CPU interface (ARM IHI 0048B, section 4.1).
pub const GICV2_CPU_INTERFACE_BYTES: u64 = 0x2000;
/// GICv3: the redistributors, one after the other in the order of the vCPUs.
pub const GICV3_REDISTRIBUTORS: GuestAddress = GuestAddress(0x080a_0000);
/// Size of one GICv3 redistributor: an RD and an SGI frame (ARM IHI 0069, section 12.10).
pub const GICV3_REDISTRIBUTOR_BYTES: u64 = 0x2_0000;

/// Windows of devices that are not virtio.
pub const PLATFORM_DEVICES: Range<u64> = 0x0900_0000..0x0a00_0000;
/// Windows of virtio-mmio devices.
pub const VIRTIO_DEVICES: Range<u64> = 0x0a00_0000..0x0b00_0000;
/// Apart by the largest page of a host or guest, so that each can be mapped on its own.
pub const PLATFORM_WINDOW_BYTES: u64 = 0x1_0000;
/// One guest page of 4 KiB for each virtio device.
pub const VIRTIO_WINDOW_BYTES: u64 = 0x1000;

/// The first shared peripheral interrupt; those below are private to each CPU.
pub const FIRST_SPI_INTID: u32 = 32;
/// Interrupts that the controller is made with, the private ones included: a multiple of 32 (KVM).
/// Each costs KVM memory and start-up time.
pub const INTERRUPT_COUNT: u32 = 128;

/// Where RAM begins.
pub const RAM_START: GuestAddress = GuestAddress(0x8000_0000);
/// At the beginning of RAM, kept from the kernel, written by the VMM: what identifies the machine.
/// As large as the alignment of the kernel behind it.
pub const SYSTEM_AREA_BYTES: u64 = KERNEL_ALIGN_BYTES;
/// In the system area: the machine's generation identifier, on a page of its own.
pub const VM_GENERATION_ID: GuestAddress = GuestAddress(RAM_START.0 + 0x1_0000);
/// Size of a generation identifier.
pub const VM_GENERATION_ID_BYTES: u64 = 16;

/// Kernel images lie at a multiple of this plus their text offset
/// (Documentation/arch/arm64/booting.rst, section 4).
pub const KERNEL_ALIGN_BYTES: u64 = 2 << 20;
/// The largest device tree (booting.rst, section 2), and its alignment here.
pub const FDT_BYTES_MAX: u64 = 2 << 20;
/// The initial RAM file system begins on a page, whatever its size.
pub const INITRD_ALIGN_BYTES: u64 = 0x1_0000;

// The regions lie in order and apart.
const _: () = {
    let redistributors_end = GICV3_REDISTRIBUTORS.0 + 16 * GICV3_REDISTRIBUTOR_BYTES;
    assert!(GIC_DISTRIBUTOR.0 + GICV3_DISTRIBUTOR_BYTES <= GICV3_REDISTRIBUTORS.0);
    assert!(GIC_DISTRIBUTOR.0 + GICV2_DISTRIBUTOR_BYTES <= GICV2_CPU_INTERFACE.0);
    assert!(redistributors_end <= PLATFORM_DEVICES.start);
    assert!(PLATFORM_DEVICES.end <= VIRTIO_DEVICES.start);
    assert!(VIRTIO_DEVICES.end <= RAM_START.0);
    assert!(VM_GENERATION_ID.0 + VM_GENERATION_ID_BYTES <= RAM_START.0 + SYSTEM_AREA_BYTES);
};

/// KVM numbers the affinity of vCPUs: 16 to a cluster.
pub fn mpidr_affinity(vcpu_index: u8) -> u64 {
    let index = u64::from(vcpu_index);
    (index & 0xf) | ((index >> 4) << 8)
}

/// One address past the end of RAM.
pub fn ram_end(ram_bytes: u64) -> u64 {
    RAM_START.0.saturating_add(ram_bytes)
}

/// How many bits of physical address the machine needs. KVM's smallest space has 32; one that is
/// no larger than needed spares a level of page tables, which every TLB miss would walk.
pub fn physical_address_bits(ram_bytes: u64) -> u32 {
    (u64::BITS - (ram_end(ram_bytes) - 1).leading_zeros()).max(32)
}

/// Where the parts of a boot lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// 2 MiB aligned; the image is loaded here plus its text offset, which is part of the image's
    /// own needs.
    pub kernel: GuestAddress,
    /// The initial RAM file system.
    pub initrd: Option<GuestAddress>,
    /// The device tree, up to [`FDT_BYTES_MAX`].
    pub fdt: GuestAddress,
}

/// The parts do not fit into RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the kernel needs {kernel_bytes} bytes of RAM and the initial RAM file system {initrd_bytes}; \
     with the device tree that is more than the machine's {ram_bytes}"
)]
pub struct DoesNotFit {
    /// What the kernel occupies once it runs, its text offset included.
    pub kernel_bytes: u64,
    /// 0 without one.
    pub initrd_bytes: u64,
    /// All RAM.
    pub ram_bytes: u64,
}

/// Places a kernel that needs `kernel_bytes` from its base on: the kernel low, the rest high, so
/// that the middle is one piece. The whole of RAM lies in one window of 32 GiB that starts at a
/// multiple of 1 GiB, which is what booting.rst asks of kernel and initial RAM file system.
///
/// # Errors
/// [`DoesNotFit`].
pub fn place(
    ram_bytes: u64,
    kernel_bytes: u64,
    initrd_bytes: Option<u64>,
) -> Result<Placement, DoesNotFit> {
    let error = DoesNotFit { kernel_bytes, initrd_bytes: initrd_bytes.unwrap_or(0), ram_bytes };
    let align_down = |address: u64, align: u64| address - address % align;
    let kernel = RAM_START.0 + SYSTEM_AREA_BYTES;
    let kernel_end = kernel.checked_add(kernel_bytes).ok_or(error)?;
    let fdt = ram_end(ram_bytes).checked_sub(FDT_BYTES_MAX).ok_or(error)?;
    let fdt = align_down(fdt, FDT_BYTES_MAX);
    let initrd = initrd_bytes
        .map(|bytes| {
            let start = fdt.checked_sub(bytes).ok_or(error)?;
            Ok(align_down(start, INITRD_ALIGN_BYTES))
        })
        .transpose()?;
    if initrd.unwrap_or(fdt) < kernel_end {
        return Err(error);
    }
    Ok(Placement {
        kernel: GuestAddress(kernel),
        initrd: initrd.map(GuestAddress),
        fdt: GuestAddress(fdt),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn a_small_machine_gets_the_smallest_address_space() {
        assert_eq!(physical_address_bits(128 * MIB), 32);
        assert_eq!(physical_address_bits(2 * GIB), 32);
        assert_eq!(physical_address_bits(2 * GIB + MIB), 33);
        assert_eq!(physical_address_bits(32 * GIB), 36);
    }

    #[test]
    fn kernel_initrd_and_device_tree_do_not_overlap_and_lie_in_ram() {
        for (ram, kernel, initrd) in [
            (128 * MIB, 9 * MIB + 5, Some(3 * MIB + 7)),
            (16 * MIB, 8 * MIB, Some(1)),
            (GIB, 1, None),
        ] {
            let placed = place(ram, kernel, initrd).unwrap();
            let initrd_start = placed.initrd.map_or(placed.fdt.0, |address| address.0);
            assert_eq!(placed.kernel.0 % KERNEL_ALIGN_BYTES, 0);
            assert!(placed.kernel.0 + kernel <= initrd_start);
            assert!(initrd_start + initrd.unwrap_or(0) <= placed.fdt.0);
            assert_eq!(placed.fdt.0 % 8, 0);
            assert!(placed.fdt.0 + FDT_BYTES_MAX <= RAM_START.0 + ram);
        }
    }

    #[test]
    fn what_is_larger_than_ram_is_refused_with_the_sizes() {
        for (ram, kernel, initrd) in [
            (MIB, 1, None),
            (8 * MIB, 5 * MIB, None),
            (64 * MIB, 8 * MIB, Some(60 * MIB)),
            (64 * MIB, u64::MAX, None),
            (64 * MIB, 1, Some(u64::MAX)),
        ] {
            let error = place(ram, kernel, initrd).unwrap_err();
            assert_eq!(error.ram_bytes, ram);
            assert_eq!(error.kernel_bytes, kernel);
        }
    }

    #[test]
    fn the_sixteenth_vcpu_is_the_last_of_its_cluster() {
        assert_eq!(mpidr_affinity(0), 0);
        assert_eq!(mpidr_affinity(15), 15);
        assert_eq!(mpidr_affinity(16), 0x100);
    }
}
