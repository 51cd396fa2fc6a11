//! The interrupt controller, in the kernel: a vGICv3 where the host can make one, else a vGICv2
//! (Documentation/virt/kvm/devices/arm-vgic*.rst of Linux).

mod v2;
mod v3;

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, kvm_create_device,
    kvm_device_attr, kvm_device_type,
};
use kvm_ioctls::{DeviceFd, VmFd};

use crate::arch::aarch64::{fdt, layout};

/// Why there is no interrupt controller.
#[derive(Debug, thiserror::Error)]
pub enum GicError {
    /// The host offers neither version.
    #[error("create a vGIC: the host offers neither GICv3 nor GICv2")]
    Create(#[source] kvm_ioctls::Error),
    /// GICv2 ends at 8 CPUs.
    #[error(
        "machine-config.vcpu_count is {vcpu_count}: this host has a GICv2, whose machines have at \
         most {limit} vCPUs"
    )]
    TooManyCpus {
        /// Asked for.
        vcpu_count: u8,
        /// Possible.
        limit: u8,
    },
    /// KVM refuses a setting.
    #[error("set {what} of the vGIC")]
    Set {
        /// The setting.
        what: &'static str,
        /// The cause.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// A vGIC, owned by the machine for as long as it lives.
pub struct Gic {
    fd: DeviceFd,
    version: fdt::Gic,
}

impl Gic {
    /// Creates the controller, which must happen before the vCPUs of a GICv2 are counted and is
    /// cheapest before there are any.
    ///
    /// # Errors
    /// [`GicError::Create`] and [`GicError::TooManyCpus`].
    pub fn create(vm: &VmFd, vcpu_count: u8) -> Result<Self, GicError> {
        match device(vm, v3::DEVICE_TYPE) {
            Ok(fd) => Ok(Self { fd, version: fdt::Gic::V3 }),
            Err(error) if error.errno() == libc::ENODEV => {
                let fd = device(vm, v2::DEVICE_TYPE).map_err(GicError::Create)?;
                if vcpu_count > v2::VCPUS_MAX {
                    return Err(GicError::TooManyCpus { vcpu_count, limit: v2::VCPUS_MAX });
                }
                Ok(Self { fd, version: fdt::Gic::V2 })
            }
            Err(error) => Err(GicError::Create(error)),
        }
    }

    /// Which version it is.
    pub fn version(&self) -> fdt::Gic {
        self.version
    }

    /// Places and initialises the controller, once every vCPU exists. Interrupts can be wired
    /// only after this.
    ///
    /// # Errors
    /// [`GicError::Set`].
    pub fn init(&self) -> Result<(), GicError> {
        let addresses = match self.version {
            fdt::Gic::V2 => v2::ADDRESSES,
            fdt::Gic::V3 => v3::ADDRESSES,
        };
        for (what, attribute, address) in addresses {
            self.set(what, KVM_DEV_ARM_VGIC_GRP_ADDR, attribute, Some(&address.0))?;
        }
        let count = layout::INTERRUPT_COUNT;
        self.set("the number of interrupts", KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, Some(&count))?;
        let init = KVM_DEV_ARM_VGIC_CTRL_INIT;
        self.set::<()>("the initial state", KVM_DEV_ARM_VGIC_GRP_CTRL, init, None)
    }

    fn set<T>(
        &self,
        what: &'static str,
        group: u32,
        attribute: u32,
        value: Option<&T>,
    ) -> Result<(), GicError> {
        let attribute = kvm_device_attr {
            group,
            attr: attribute.into(),
            addr: value.map_or(0, |value| std::ptr::from_ref(value) as u64),
            flags: 0,
        };
        self.fd.set_device_attr(&attribute).map_err(|source| GicError::Set { what, source })
    }

    /// Has the controller write what it keeps in guest RAM there. A GICv2 keeps nothing there.
    pub(super) fn flush_into_ram(&self) -> Result<(), kvm_ioctls::Error> {
        let group = KVM_DEV_ARM_VGIC_GRP_CTRL;
        let attr = KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES.into();
        match self.version {
            fdt::Gic::V2 => Ok(()),
            fdt::Gic::V3 => {
                self.fd.set_device_attr(&kvm_device_attr { group, attr, addr: 0, flags: 0 })
            }
        }
    }

    /// A register of the controller, by KVM's numbers; a wide one has 64 bits and not 32.
    pub(super) fn get_attribute(
        &self,
        group: u32,
        attr: u64,
        is_wide: bool,
    ) -> Result<u64, kvm_ioctls::Error> {
        let (mut wide, mut word) = (0_u64, 0_u32);
        let addr = if is_wide { &raw mut wide as u64 } else { &raw mut word as u64 };
        let mut attribute = kvm_device_attr { group, attr, addr, flags: 0 };
        // SAFETY: KVM writes 8 or 4 bytes, as the group says, to a variable of that size which
        // outlives the call.
        unsafe { self.fd.get_device_attr(&mut attribute) }?;
        Ok(if is_wide { wide } else { word.into() })
    }

    /// Sets such a register. Of a value that is too large for it, the lower half counts.
    pub(super) fn set_attribute(
        &self,
        group: u32,
        attr: u64,
        value: u64,
        is_wide: bool,
    ) -> Result<(), kvm_ioctls::Error> {
        let word = value as u32;
        let addr = if is_wide { &raw const value as u64 } else { &raw const word as u64 };
        self.fd.set_device_attr(&kvm_device_attr { group, attr, addr, flags: 0 })
    }
}

fn device(vm: &VmFd, type_: kvm_device_type) -> Result<DeviceFd, kvm_ioctls::Error> {
    vm.create_device(&mut kvm_create_device { type_, fd: 0, flags: 0 })
}
