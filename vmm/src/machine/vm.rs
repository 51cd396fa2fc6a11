//! The virtual machine as KVM sees it: address space, memory, and how devices are wired to it.

use std::io;

use kvm_bindings::{KVMIO, kvm_ioeventfd, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use rotifer_devices::GuestMemory;
use rotifer_devices::virtio::QUEUE_NOTIFY_OFFSET;
use std::os::fd::AsRawFd;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use crate::arch::aarch64::layout;
use crate::table::Entry;

ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);

/// Width of the register that tells which queue is kicked.
const QUEUE_NOTIFY_BYTES: u32 = 4;

/// Why KVM does not give us a machine.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// There is no KVM, or not for us.
    #[error("open /dev/kvm: {}", remedy(source.errno()))]
    Open {
        /// The cause.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM refuses.
    #[error("{attempt}")]
    Kvm {
        /// What was attempted.
        attempt: &'static str,
        /// The cause.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// More RAM than the host's CPUs can translate.
    #[error(
        "machine-config.mem_size_mib: the machine needs {needed_bits} bits of physical address, \
         this host has {host_bits}"
    )]
    AddressSpace {
        /// For all of RAM.
        needed_bits: u32,
        /// Possible.
        host_bits: u32,
    },
    /// KVM refuses to connect a device.
    #[error("{attempt} of device {device}")]
    Wire {
        /// What was attempted.
        attempt: &'static str,
        /// The device's name.
        device: String,
        /// The cause.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The host has no descriptor left.
    #[error("duplicate the eventfd of the main thread")]
    Wake(#[source] io::Error),
}

fn remedy(errno: i32) -> &'static str {
    match errno {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => {
            "this host has no KVM; it must be an ARM64 machine whose kernel was started at EL2"
        }
        libc::EACCES | libc::EPERM => {
            "this user may not use KVM; add it to the group of the device"
        }
        _ => "KVM cannot be used",
    }
}

/// A virtual machine, empty at first.
pub struct Vm {
    fd: VmFd,
}

impl Vm {
    /// Creates one with room for `ram_bytes` of RAM.
    ///
    /// # Errors
    /// [`VmError::Open`], [`VmError::AddressSpace`] and [`VmError::Kvm`].
    pub fn create(ram_bytes: u64) -> Result<Self, VmError> {
        let kvm = Kvm::new().map_err(|source| VmError::Open { source })?;
        let needed_bits = layout::physical_address_bits(ram_bytes);
        let host_bits = u32::try_from(kvm.get_host_ipa_limit()).unwrap_or(0);
        if needed_bits > host_bits {
            return Err(VmError::AddressSpace { needed_bits, host_bits });
        }
        let fd = loop {
            match kvm.create_vm_with_ipa_size(needed_bits) {
                // Work that the kernel has for the thread counts as a signal, such as the end of
                // an io_uring that a drive's configuration tried out.
                Err(error) if error.errno() == libc::EINTR => {}
                outcome => break outcome,
            }
        };
        let fd =
            fd.map_err(|source| VmError::Kvm { attempt: "create a virtual machine", source })?;
        Ok(Self { fd })
    }

    /// For what is created inside of it.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Makes `memory` the guest's.
    ///
    /// # Errors
    /// [`VmError::Kvm`].
    pub fn add_memory(&self, memory: &GuestMemory) -> Result<(), VmError> {
        for (slot, region) in (0..).zip(memory.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the range is a mapping of this process, which the machine keeps until the
            // VM is gone.
            unsafe { self.fd.set_user_memory_region(region) }
                .map_err(|source| VmError::Kvm { attempt: "give RAM to the machine", source })?;
        }
        Ok(())
    }

    /// Connects a device's interrupt and doorbell, so that neither needs our attention.
    ///
    /// # Errors
    /// [`VmError::Wire`].
    pub fn wire(&self, entry: &Entry) -> Result<(), VmError> {
        let failed =
            |attempt| move |source| VmError::Wire { attempt, device: entry.name.clone(), source };
        if let (Some(fd), Some(spi)) = (entry.part.interrupt_fd(), entry.spi) {
            // On ARM64, KVM's default routing has GSI n at SPI n.
            self.fd.register_irqfd(fd, spi.0).map_err(failed("connect the interrupt"))?;
        }
        if let Some(fd) = entry.part.kick_fd() {
            let doorbell = kvm_ioeventfd {
                addr: entry.window.base.raw_value() + QUEUE_NOTIFY_OFFSET,
                len: QUEUE_NOTIFY_BYTES,
                fd: fd.as_raw_fd(),
                // Without datamatch: one eventfd for all queues of the device.
                flags: 0,
                ..Default::default()
            };
            // SAFETY: the structure is what this ioctl reads, and outlives the call.
            // (`VmFd::register_ioevent` knows no length without datamatch; without a length KVM
            // would put the doorbell on two buses, at twice the price.)
            let result = unsafe { ioctl_with_ref(&self.fd, KVM_IOEVENTFD(), &doorbell) };
            if result != 0 {
                let source = kvm_ioctls::Error::last();
                return Err(failed("connect the doorbell")(source));
            }
        }
        Ok(())
    }
}
