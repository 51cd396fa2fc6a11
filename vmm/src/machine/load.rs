//! Boot: kernel, initial RAM file system and device tree go into RAM, registers into the first
//! vCPU.

use std::io;
use std::path::PathBuf;

use linux_loader::loader::{KernelLoader, PE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::Assembled;
use super::vcpu::{Vcpu, VcpuError};
use crate::arch::aarch64::{fdt, layout};
use crate::boot::{Boot, Initrd};

/// Why loading failed, though the files were found in order: they have changed since.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel.
    #[error("load kernel {}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// The initial RAM file system.
    #[error("load initial RAM file system {}", path.display())]
    Initrd {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: GuestMemoryError,
    },
    /// The device tree cannot be encoded.
    #[error("describe the machine in a device tree")]
    Fdt(#[source] vm_fdt::Error),
    /// The device tree is larger than its place.
    #[error("put a device tree of {bytes} bytes into RAM: at most {} fit", layout::FDT_BYTES_MAX)]
    FdtTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Writing to RAM failed.
    #[error("write {what} into RAM")]
    Write {
        /// What.
        what: &'static str,
        /// The cause.
        #[source]
        source: GuestMemoryError,
    },
    /// The host gives no random numbers.
    #[error("draw random numbers for the machine")]
    Random(#[source] io::Error),
    /// Registers cannot be set.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}

/// Loads `boot` into `machine`, which has `ram_bytes` of RAM.
pub(super) fn load(boot: Boot, machine: &Assembled, ram_bytes: u64) -> Result<(), LoadError> {
    let Boot { kernel: (path, mut kernel), initrd, command_line, placement } = boot;
    let memory = machine.memory.as_ref();
    let loaded = PE::load(memory, Some(placement.kernel), &mut kernel, None)
        .map_err(|source| LoadError::Kernel { path, source })?;
    let initrd = match (initrd, placement.initrd) {
        (Some(Initrd { path, mut file, bytes }), Some(start)) => {
            memory
                .read_exact_volatile_from(start, &mut file, bytes as usize)
                .map_err(|source| LoadError::Initrd { path, source })?;
            Some(start.0..start.0 + bytes)
        }
        _ => None,
    };
    let generation_id: [u8; layout::VM_GENERATION_ID_BYTES as usize] =
        random().map_err(LoadError::Random)?;
    write(machine, "the generation identifier", &generation_id, layout::VM_GENERATION_ID)?;
    let affinities: Vec<u64> = machine.vcpus.iter().map(Vcpu::affinity).collect();
    let tree = fdt::build(&fdt::Description {
        cpu_affinities: &affinities,
        ram_bytes,
        gic: machine.gic.version(),
        command_line: &command_line,
        initrd,
        rng_seed: random().map_err(LoadError::Random)?,
        kaslr_seed: u64::from_ne_bytes(random().map_err(LoadError::Random)?),
        devices: &machine.table.nodes(),
    })
    .map_err(LoadError::Fdt)?;
    if tree.len() as u64 > layout::FDT_BYTES_MAX {
        return Err(LoadError::FdtTooLarge { bytes: tree.len() });
    }
    write(machine, "the device tree", &tree, placement.fdt)?;
    if let Some(boot_vcpu) = machine.vcpus.first() {
        boot_vcpu.set_boot_registers(loaded.kernel_load, placement.fdt)?;
    }
    Ok(())
}

fn write(
    machine: &Assembled,
    what: &'static str,
    bytes: &[u8],
    to: GuestAddress,
) -> Result<(), LoadError> {
    machine.memory.write_slice(bytes, to).map_err(|source| LoadError::Write { what, source })
}

/// Random bytes of the host.
pub(super) fn random<const COUNT: usize>() -> io::Result<[u8; COUNT]> {
    let mut bytes = [0; COUNT];
    let mut filled = 0;
    while filled < COUNT {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut bytes[filled..], flags) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}
