//! Root disks from Dockerfiles: the image builder, as the worker wants it.

use rotifer_build::{BuildRequest, Event, Settings};

use super::HostError;
use super::build::{Failure, Root, RootDisks, Wish};
use crate::settings::HostSettings;

/// Builds as `docs/image-builds.md` says.
struct Dockerfiles(Settings);

/// Nothing to build with.
struct NoBuilder;

/// What the settings say to build with.
pub fn disks(host: &HostSettings) -> Result<Box<dyn RootDisks>, HostError> {
    let Some(file) = &host.builds else { return Ok(Box::new(NoBuilder)) };
    let settings = Settings::read(file).map_err(|source| HostError::Builds { source })?;
    Ok(Box::new(Dockerfiles(settings)))
}

impl RootDisks for Dockerfiles {
    fn make(&self, wish: &Wish<'_>, log: &mut dyn FnMut(&str)) -> Result<Root, Failure> {
        let request = BuildRequest {
            archive: wish.archive.into(),
            disk: wish.disk.into(),
            ..BuildRequest::default()
        };
        let mut heard = |event: Event<'_>| match event {
            Event::Line(line) => log(line),
            step @ Event::Step { .. } => log(&step.to_string()),
        };
        let built = rotifer_build::build(&self.0, &request, &mut heard);
        let built =
            built.map_err(|error| Failure { code: error.code().as_str(), text: error.text() })?;
        match built.config.app() {
            Some(app) => Ok(Root { app }),
            None => Err(Failure {
                code: "CONTAINER_BUILD_FAILED",
                text: "the image names no command: add CMD or ENTRYPOINT to the Dockerfile".into(),
            }),
        }
    }
}

impl RootDisks for NoBuilder {
    fn make(&self, _: &Wish<'_>, _: &mut dyn FnMut(&str)) -> Result<Root, Failure> {
        let text =
            "no image builder is configured on this host: the settings' host.builds names its file";
        Err(Failure { code: "INTERNAL_PLATFORM_ERROR", text: text.into() })
    }
}
