//! Image versions: a root disk, then a machine that was started from it once, kept as a snapshot.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use serde_json::Value;

use super::files::{self, blocking};
use super::lines::Lines;
use super::machines::{MachineError, ROOT};
use super::prepare::{self, PrepareError};
use super::{BUG, Inner, Parts};
use crate::fleet::records::{SnapshotBuild, Version, VersionId};
use crate::fleet::{Measured, Report};
use crate::s3::{self, FetchError};
use crate::store::StoreError;

/// The archive, while it is built from.
const ARCHIVE: &str = "code.zip";

/// What a root disk is to be made from.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The zip that a user has uploaded.
    pub archive: &'a Path,
    /// Where the disk goes.
    pub disk: &'a Path,
}

/// A root disk that was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Root {
    /// The app to start, as the agent takes it.
    pub app: Value,
}

/// Why no root disk was made: one of the service's codes, and words for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {text}")]
#[expect(missing_docs, reason = "the type's description says it")]
pub struct Failure {
    pub code: &'static str,
    pub text: String,
}

/// The first half of an image build.
pub trait RootDisks: Send + Sync {
    /// Makes a disk, on the thread that asks; `log` hears what the build says, line by line.
    fn make(&self, wish: &Wish<'_>, log: &mut dyn FnMut(&str)) -> Result<Root, Failure>;
}

/// Why a version is not built.
#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error("{0}")]
    Code(FetchError),
    #[error(transparent)]
    Disk(#[from] Failure),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error("INTERNAL_PLATFORM_ERROR: {}", crate::report(.0))]
    Host(#[from] MachineError),
    #[error("INTERNAL_PLATFORM_ERROR: {}", crate::report(.0))]
    Store(#[from] StoreError),
}

impl From<FetchError> for BuildError {
    fn from(error: FetchError) -> Self {
        Self::Code(error)
    }
}

impl Inner {
    /// Builds a version. One that an earlier daemon had begun begins anew.
    pub(super) async fn build(
        self: &Arc<Self>,
        id: &VersionId,
        reports: &Sender<Report>,
    ) -> Report {
        let _place = self.builds.acquire().await;
        let _nobody_listens = reports.send(Report::BuildStarted { version: id.clone() });
        match self.try_build(id).await {
            Ok(snapshot) => {
                let stored_bytes = files::stored_bytes(&self.version_directory(id));
                let measured = Measured { stored_bytes, ..Measured::default() };
                Report::BuildSucceeded { version: id.clone(), snapshot, measured }
            }
            Err(error) => {
                tracing::warn!("the build of {id:?} failed: {}", crate::report(&error));
                Report::BuildFailed { version: id.clone(), reason: error.to_string() }
            }
        }
    }

    async fn try_build(self: &Arc<Self>, id: &VersionId) -> Result<SnapshotBuild, BuildError> {
        let version = self.version(id)?;
        let lines = self.parts.logs.of_build(&version);
        let built = self.build_beside(&version, &lines).await;
        if let Err(error) = &built {
            lines.say(&error.to_string());
        }
        lines.flushed().await;
        let directory = self.version_directory(id);
        let new = beside(&directory);
        match built {
            Ok(snapshot) => {
                // Of a build that was done and not reported.
                files::remove(&directory).await?;
                files::commit(new, directory).await?;
                Ok(snapshot)
            }
            Err(error) => {
                files::remove(&new).await?;
                Err(error)
            }
        }
    }

    async fn build_beside(
        self: &Arc<Self>,
        version: &Version,
        lines: &Lines,
    ) -> Result<SnapshotBuild, BuildError> {
        let new = beside(&self.version_directory(&version.id));
        files::empty(&new).await?;
        let archive = new.join(ARCHIVE);
        self.fetch(&version.spec.code_artifact.uri, &archive).await?;
        let (inner, said, disk) = (Arc::clone(self), lines.clone(), new.join(ROOT));
        let made = tokio::task::spawn_blocking(move || {
            let wish = Wish { archive: &archive, disk: &disk };
            let made = inner.parts.disks.make(&wish, &mut |line| said.say_waiting(line));
            let _it_is_not_needed = fs::remove_file(&archive);
            made
        });
        let root = made.await.unwrap_or_else(|panic| {
            tracing::error!("a build failed: {panic}");
            Err(Failure { code: "INTERNAL_PLATFORM_ERROR", text: BUG.into() })
        })?;
        let place = prepare::Place {
            settings: &self.parts.settings,
            directory: &new,
            networks: self.networks.as_ref(),
            variables: self.variables(version),
        };
        Ok(prepare::prepare(&place, version, root.app, lines).await?)
    }

    /// Has the code where the builder finds it.
    async fn fetch(self: &Arc<Self>, uri: &str, to: &Path) -> Result<(), BuildError> {
        let (bucket, key) = s3::parts(uri)?;
        if let Some(at) = self.parts.settings.code_endpoints.get(bucket) {
            let fetched = s3::fetch_remote(&s3::Object { uri, bucket, key, at }, to).await;
            return Ok(fetched.map_err(FetchError::from)?);
        }
        let (inner, uri, to) = (Arc::clone(self), uri.to_owned(), to.to_owned());
        let fetched = blocking(move || {
            let Parts { store, directory, settings, .. } = &inner.parts;
            let objects = directory.join("objects");
            let place =
                s3::Place { store, blobs: &objects, directories: &settings.code_directories };
            s3::fetch(&place, &uri, &to)
        });
        Ok(fetched.await?)
    }

    /// What every app finds in its environment.
    fn variables(&self, version: &Version) -> Vec<(&'static str, String)> {
        let name = &version.id.image;
        vec![
            ("AWS_LAMBDA_MICROVM_IMAGE_ARN", self.parts.names.image(name)),
            ("AWS_LAMBDA_MICROVM_IMAGE_NAME", name.clone()),
            ("AWS_LAMBDA_MICROVM_IMAGE_VERSION", version.text()),
            ("AWS_REGION", self.parts.region.clone()),
        ]
    }

    /// Removes a version, in one step as far as others see.
    pub(super) async fn remove_version(&self, id: &VersionId) -> Result<(), String> {
        let directory = self.version_directory(id);
        let gone = directory.with_extension("gone");
        let remove = async {
            files::remove(&gone).await?;
            match fs::rename(&directory, &gone) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                Err(source) => {
                    Err(MachineError::File { attempt: "remove", path: directory.clone(), source })
                }
                Ok(()) => files::remove(&gone).await,
            }
        };
        remove.await.map_err(|error| crate::report(&error))
    }
}

fn beside(directory: &Path) -> PathBuf {
    directory.with_extension("new")
}
