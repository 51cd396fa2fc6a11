//! Image builds: from a zip with a Dockerfile to a root disk, without a Docker engine.
//!
//! [`archive`] looks at the zip, [`plan`] decides what is to be done, [`builder`] does what [`disks`] does
//! not have yet, in a [`machine`] that is thrown away, where `rotifer_build_worker` acts. `docs/image-builds.md` tells
//! users what they can write and operators what they can set.

//!
//! [`build`] is the way in for whoever has a host's [`Settings`] and a [`BuildRequest`].

pub mod archive;
pub mod base;
pub mod builder;
mod caches;
pub mod cancel;
pub mod disks;
pub mod dockerfile;
pub mod expand;
pub mod failure;
pub mod ignore;
pub mod image;
pub mod limits;
pub mod machine;
pub mod network;
pub mod plan;
pub mod proxy;
mod service;
pub mod settings;
mod tail;
mod tarball;
mod workspace;

pub use builder::{BuildRequest, Builder, Built, Event, Log};
pub use cancel::Cancel;
pub use failure::{Failure, ReasonCode};
pub use image::ImageConfig;
pub use settings::Settings;

/// Builds an image, on the thread that asks; `log` hears each line as it comes.
///
/// [`BuildRequest::cancel`] ends it from another thread. Nothing of a build that fails or is canceled is
/// left but the results of steps that were done, in the cache; what a process that was killed leaves, the
/// next build removes.
///
/// # Errors
/// Why it failed: [`Failure::code`] is the service's, [`Failure::text`] is for people.
pub fn build(settings: &Settings, request: &BuildRequest, log: Log) -> Result<Built, Failure> {
    Builder::new(settings.clone())?.build(request, log)
}
