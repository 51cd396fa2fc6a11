//! What is particular to GICv3.

use kvm_bindings::{
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_device_type,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use vm_memory::GuestAddress;

use crate::arch::aarch64::layout;

pub(super) const DEVICE_TYPE: kvm_device_type = kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3;

pub(super) const ADDRESSES: [(&str, u32, GuestAddress); 2] = [
    ("the distributor's address", KVM_VGIC_V3_ADDR_TYPE_DIST, layout::GIC_DISTRIBUTOR),
    ("the redistributors' address", KVM_VGIC_V3_ADDR_TYPE_REDIST, layout::GICV3_REDISTRIBUTORS),
];
