//! Why a build failed, in the service's codes and in words.

use crate::archive::ArchiveError;
use crate::base::BaseError;
use crate::disks::DiskError;
use crate::dockerfile::DockerfileError;
use crate::machine::MachineError;
use rotifer_agent::api::error::chain;
use std::io;
use std::time::Duration;

/// The service's codes for a build that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasonCode {
    /// `ARCHIVE_DOCKERFILE_NOT_FOUND`
    ArchiveDockerfileNotFound,
    /// `ARCHIVE_INVALID`
    ArchiveInvalid,
    /// `CONTAINER_BUILD_FAILED`
    ContainerBuildFailed,
    /// `DISK_STORAGE_FULL`
    DiskStorageFull,
    /// `INTERNAL_PLATFORM_ERROR`
    InternalPlatformError,
}

impl ReasonCode {
    /// As the service spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ReasonCode::ArchiveDockerfileNotFound => "ARCHIVE_DOCKERFILE_NOT_FOUND",
            ReasonCode::ArchiveInvalid => "ARCHIVE_INVALID",
            ReasonCode::ContainerBuildFailed => "CONTAINER_BUILD_FAILED",
            ReasonCode::DiskStorageFull => "DISK_STORAGE_FULL",
            ReasonCode::InternalPlatformError => "INTERNAL_PLATFORM_ERROR",
        }
    }
}

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The archive is refused.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The Dockerfile is wrong, or asks for what is not supported.
    #[error(transparent)]
    Dockerfile(#[from] DockerfileError),
    /// A command failed.
    #[error("Dockerfile line {line}: the command failed with exit code {code}: {title}")]
    Command {
        /// The line of the instruction.
        line: usize,
        /// Its first line.
        title: String,
        /// The exit code; 128 and the signal's number if one ended it.
        code: i32,
    },
    /// A step could not be done.
    #[error("Dockerfile line {line}: {title}")]
    Step {
        /// The line of the instruction.
        line: usize,
        /// Its first line.
        title: String,
        /// The cause.
        #[source]
        source: StepError,
    },
    /// Somebody has canceled it.
    #[error("the build was canceled")]
    Canceled,
    /// It took too long.
    #[error("the build took longer than {} s, which is all that it has", limit.as_secs())]
    Timeout {
        /// What it has.
        limit: Duration,
    },
    /// The host's own affair.
    #[error("cannot {attempt}")]
    Host {
        /// What was tried.
        attempt: &'static str,
        /// The cause.
        #[source]
        source: StepError,
    },
}

/// What can go wrong in a step.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// In the build machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// With a disk's file.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// With the base image.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// With the host.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Failure {
    /// The service's code.
    #[must_use]
    pub fn code(&self) -> ReasonCode {
        match self {
            Failure::Archive(ArchiveError::NoDockerfile(_)) => {
                ReasonCode::ArchiveDockerfileNotFound
            }
            Failure::Archive(ArchiveError::TooLargeUnpacked) => ReasonCode::DiskStorageFull,
            Failure::Archive(ArchiveError::Read { .. }) => ReasonCode::InternalPlatformError,
            Failure::Archive(_) => ReasonCode::ArchiveInvalid,
            Failure::Dockerfile(_) | Failure::Command { .. } | Failure::Timeout { .. } => {
                ReasonCode::ContainerBuildFailed
            }
            Failure::Canceled => ReasonCode::InternalPlatformError,
            Failure::Step { source, .. } | Failure::Host { source, .. } => source.code(),
        }
    }

    /// The line of the Dockerfile, if it is one's fault. The text says it, too.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        match self {
            Failure::Dockerfile(error) => Some(error.line),
            Failure::Command { line, .. } | Failure::Step { line, .. } => Some(*line),
            _ => None,
        }
    }

    /// What went wrong, down to the first cause.
    #[must_use]
    pub fn text(&self) -> String {
        chain(self)
    }
}

impl StepError {
    fn code(&self) -> ReasonCode {
        match self {
            StepError::Machine(MachineError::Refused(_)) => ReasonCode::ContainerBuildFailed,
            StepError::Machine(MachineError::DiskFull(_)) => ReasonCode::DiskStorageFull,
            StepError::Disk(error) if error.is_full() => ReasonCode::DiskStorageFull,
            _ => ReasonCode::InternalPlatformError,
        }
    }
}

pub(crate) fn host<E: Into<StepError>>(attempt: &'static str) -> impl FnOnce(E) -> Failure {
    move |source| Failure::Host { attempt, source: source.into() }
}
