//! ARM64: the Linux boot protocol, the device tree and the physical memory map.

pub mod fdt;
pub mod image;
pub mod layout;
