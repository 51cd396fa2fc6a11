//! Image builds: from a zip with a Dockerfile to a root disk, without a Docker engine.
//!
//! [`archive`] looks at the zip, [`plan`] decides what is to be done, [`builder`] does what [`disks`] does
//! not have yet, in a [`machine`] that is thrown away, where [`worker`] acts. `docs/image-builds.md` tells
//! users what they can write and operators what they can set.

pub mod archive;
pub mod base;
pub mod builder;
pub mod disks;
pub mod dockerfile;
pub mod expand;
pub mod glob;
pub mod ignore;
pub mod image;
pub mod limits;
pub mod machine;
pub mod network;
pub mod plan;
pub mod protocol;
pub mod proxy;
pub mod settings;
mod tarball;
pub mod worker;
