//! What a processor architecture fixes: where things are in physical memory, how a kernel is laid
//! out and started, how the machine is described to it. Pure functions of their arguments: they
//! build and are tested on any Linux.

pub mod aarch64;
