//! What is particular to GICv2.

use kvm_bindings::{
    KVM_VGIC_V2_ADDR_TYPE_CPU, KVM_VGIC_V2_ADDR_TYPE_DIST, kvm_device_type,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
};
use vm_memory::GuestAddress;

use crate::arch::aarch64::layout;

pub(super) const DEVICE_TYPE: kvm_device_type = kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2;

/// Its target registers have one bit for each of 8 CPUs (ARM IHI 0048B, section 4.3.12).
pub(super) const VCPUS_MAX: u8 = 8;

pub(super) const ADDRESSES: [(&str, u32, GuestAddress); 2] = [
    ("the distributor's address", KVM_VGIC_V2_ADDR_TYPE_DIST, layout::GIC_DISTRIBUTOR),
    ("the CPU interface's address", KVM_VGIC_V2_ADDR_TYPE_CPU, layout::GICV2_CPU_INTERFACE),
];
