//! What is kept of each thing, as JSON. Members are only ever added, with a default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Action;
use super::microvm::Phase;
use crate::clock::Timestamp;

/// Tags of an image or a connector.
pub type Tags = BTreeMap<String, String>;

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Image {
    pub name: String,
    pub id: String,
    pub state: ImageState,
    pub created: Timestamp,
    pub updated: Timestamp,
    pub latest_active: Option<u32>,
    pub latest_failed: Option<u32>,
    /// The number of the next version.
    pub next_version: u32,
    pub tags: Tags,
}

/// The states of an image, as the service has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the names say it")]
pub enum ImageState {
    Creating,
    Created,
    CreateFailed,
    Updating,
    Updated,
    UpdateFailed,
    Deleting,
    DeleteFailed,
}

impl ImageState {
    /// Whether nothing is going on with the image.
    pub fn is_settled(self) -> bool {
        !matches!(self, Self::Creating | Self::Updating | Self::Deleting)
    }

    /// As it is answered.
    pub fn text(self) -> &'static str {
        match self {
            Self::Creating => "CREATING",
            Self::Created => "CREATED",
            Self::CreateFailed => "CREATE_FAILED",
            Self::Updating => "UPDATING",
            Self::Updated => "UPDATED",
            Self::UpdateFailed => "UPDATE_FAILED",
            Self::Deleting => "DELETING",
            Self::DeleteFailed => "DELETE_FAILED",
        }
    }
}

/// Which version of which image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VersionId {
    /// The image's name.
    pub image: String,
    /// `1` for `1.0`
    pub number: u32,
}

/// A version of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Version {
    pub id: VersionId,
    pub state: VersionState,
    pub is_active: bool,
    pub created: Timestamp,
    pub updated: Timestamp,
    pub state_reason: Option<String>,
    pub spec: ImageSpec,
    pub builds: Vec<Build>,
}

/// The states of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the names say it")]
pub enum VersionState {
    Pending,
    InProgress,
    Successful,
    Failed,
    Deleting,
    DeleteFailed,
}

impl Version {
    /// `1.0`
    pub fn text(&self) -> String {
        version_text(self.id.number)
    }

    pub(super) fn unfinished(&self) -> Option<Action> {
        match self.state {
            VersionState::Pending | VersionState::InProgress => {
                Some(Action::Build(self.id.clone()))
            }
            VersionState::Deleting => Some(Action::RemoveVersion(self.id.clone())),
            VersionState::Successful | VersionState::Failed | VersionState::DeleteFailed => None,
        }
    }

    /// The memory that a microVM of it has at least.
    pub fn memory_mib(&self) -> u64 {
        self.spec.resources.first().map_or(0, |wanted| wanted.minimum_memory_in_mi_b)
    }
}

/// `1.0`
pub fn version_text(number: u32) -> String {
    format!("{number}.0")
}

/// A build of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Build {
    pub id: String,
    pub state: BuildState,
    pub created: Timestamp,
    pub chipset_generation: String,
    pub state_reason: Option<String>,
    pub snapshot: Option<SnapshotBuild>,
}

/// The states of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the names say it")]
pub enum BuildState {
    Pending,
    InProgress,
    Successful,
    Failed,
}

/// What a build made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names say it")]
pub struct SnapshotBuild {
    pub memory_snapshot_size_in_bytes: u64,
    pub code_install_size_in_bytes: u64,
    pub disk_snapshot_size_in_bytes: u64,
}

/// What an image is built from: the members that requests have and answers repeat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the service's names")]
pub struct ImageSpec {
    pub base_image_arn: String,
    pub base_image_version: Option<String>,
    pub build_role_arn: String,
    pub description: Option<String>,
    pub code_artifact: CodeArtifact,
    pub logging: Option<Value>,
    #[serde(default)]
    pub egress_network_connectors: Vec<String>,
    pub cpu_configurations: Option<Vec<CpuConfiguration>>,
    #[serde(default)]
    pub resources: Vec<Resources>,
    pub additional_os_capabilities: Option<Vec<String>>,
    pub hooks: Option<Hooks>,
    pub environment_variables: Option<BTreeMap<String, String>>,
}

/// Where the code is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the service's names")]
pub struct CodeArtifact {
    pub uri: String,
}

/// A processor that an image is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the service's names")]
pub struct CpuConfiguration {
    pub architecture: String,
}

/// How much memory microVMs of an image have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the service's names")]
pub struct Resources {
    pub minimum_memory_in_mi_b: u64,
}

/// The hooks of an app. An absent member is absent in answers too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the service's names")]
pub struct Hooks {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub microvm_hooks: Option<BTreeMap<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub microvm_image_hooks: Option<BTreeMap<String, Value>>,
}

/// When a microVM is suspended and ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the service's names")]
pub struct IdlePolicy {
    pub max_idle_duration_seconds: i64,
    pub suspended_duration_seconds: i64,
    pub auto_resume_enabled: bool,
}

/// A microVM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Microvm {
    pub id: String,
    pub endpoint: String,
    pub version: VersionId,
    pub phase: Phase,
    pub started: Timestamp,
    pub terminated: Option<Timestamp>,
    pub state_reason: Option<String>,
    /// Since when it runs. What came through its endpoint since then is not kept.
    pub idle_since: Timestamp,
    pub suspended_since: Option<Timestamp>,
    pub execution_role: Option<String>,
    pub idle_policy: Option<IdlePolicy>,
    pub maximum_seconds: i64,
    pub ingress: Vec<String>,
    pub egress: Vec<String>,
    pub logging: Option<Value>,
    pub run_hook_payload: Option<String>,
    pub memory_mib: u64,
}

impl Microvm {
    pub(super) fn unfinished(&self) -> Option<Action> {
        let id = self.id.clone();
        match self.phase {
            Phase::Launching => Some(Action::Launch(id)),
            Phase::Suspending => Some(Action::Suspend(id)),
            Phase::Resuming | Phase::Waking => Some(Action::Resume(id)),
            Phase::Terminating => Some(Action::Terminate(id)),
            Phase::Running | Phase::Suspended | Phase::Terminated => None,
        }
    }
}

/// A network connector: a named way out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Connector {
    pub id: String,
    pub name: String,
    pub configuration: Value,
    pub operator_role: String,
    pub state: ConnectorState,
    pub state_reason: Option<String>,
    pub update: Option<Update>,
    pub version: u32,
    pub modified: Timestamp,
    pub tags: Tags,
}

/// How the last update of a connector went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Update {
    pub status: UpdateStatus,
    pub reason: Option<String>,
}

/// The states of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the service's names")]
pub enum UpdateStatus {
    Successful,
    Failed,
    InProgress,
}

/// The states of a connector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the names say it")]
pub enum ConnectorState {
    Pending,
    Active,
    Failed,
    Deleting,
    DeleteFailed,
}

impl Connector {
    pub(super) fn unfinished(&self) -> Option<Action> {
        let is_updating =
            self.update.as_ref().is_some_and(|update| update.status == UpdateStatus::InProgress);
        match self.state {
            ConnectorState::Pending => Some(Action::Connect(self.id.clone())),
            ConnectorState::Active if is_updating => Some(Action::Connect(self.id.clone())),
            ConnectorState::Deleting => Some(Action::Disconnect(self.id.clone())),
            _ => None,
        }
    }
}

/// A client's token, and what came of the request it was sent with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The operation and the client's token.
    pub token: String,
    /// The rest of the request.
    pub request: String,
    /// What it made: the image's name, the microVM's or the connector's id.
    pub resource: String,
    /// When.
    pub at: Timestamp,
}
