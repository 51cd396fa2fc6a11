//! From a Dockerfile to steps: everything that can be decided without running anything.
//!
//! A [`Plan`] is a pure function of the Dockerfile, the archive's names and digests, the build
//! arguments, and what the base images say of themselves. Each step has a key: the digest of all that
//! its result depends on, its predecessor's key included. Equal keys mean equal disks.

mod copy;
mod flags;
mod stage;

use crate::archive::Context;
use crate::dockerfile::{DockerfileError, Source};
use crate::image::ImageConfig;
use crate::limits::STAGES_MAX;
use rotifer_agent::process::spec::APP_FILE;
use rotifer_build_worker::protocol::{Compression, MakeDirectory, Mount, Target};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// Raised when the same step would make another disk.
const KEY_VERSION: u32 = 1;

/// What the last step is called.
const APP_TITLE: &str = "the app's description, for the agent";

/// The digest of all that a disk's content depends on, in hexadecimal.
pub type Key = String;

/// What a base image's name stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BaseInfo {
    /// The digest of its content.
    pub digest: String,
    /// What it says of itself.
    pub config: ImageConfig,
}

/// Knows base images.
pub trait Bases {
    /// What a name stands for.
    ///
    /// # Errors
    /// Why there is no such image, for people.
    fn look_up(&self, name: &str) -> Result<BaseInfo, String>;
}

/// All that a plan is made from.
pub struct Inputs<'a> {
    /// The archive.
    pub context: &'a Context,
    /// The base images.
    pub bases: &'a dyn Bases,
    /// Build arguments.
    pub args: &'a BTreeMap<String, String>,
    /// The size of the disks.
    pub disk_bytes: u64,
}

/// Where a root comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// From nothing.
    Scratch,
    /// Another stage, by its number.
    Stage(usize),
    /// A base image.
    Base {
        /// Its name in the Dockerfile.
        name: String,
        /// The digest of its content.
        digest: String,
    },
}

/// A file or directory on its way from the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Its name in the archive.
    #[serde(skip)]
    pub path: String,
    /// Its name below the target.
    pub name: String,
    /// Its permissions.
    pub mode: u32,
    /// What it is, with the digest of a file or the target of a link.
    pub content: ItemContent,
}

/// What an item is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemContent {
    /// A directory.
    Directory,
    /// A file, by its digest and length.
    File([u8; 32], u64),
    /// A symbolic link, by its target.
    Link(String),
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// `RUN`
    Run(RunAction),
    /// `COPY` and `ADD` of files of the archive.
    CopyItems {
        /// What.
        items: Vec<Item>,
        /// Where.
        target: Target,
    },
    /// `COPY --from`.
    CopyFrom {
        /// What it comes from.
        root: Root,
        /// Paths and patterns there.
        sources: Vec<String>,
        /// Where it goes.
        target: Target,
    },
    /// `COPY` of a here-document.
    Write {
        /// The file's content.
        text: String,
        /// Where.
        target: Target,
    },
    /// `ADD` of a tar.
    Extract {
        /// The tar.
        item: Item,
        /// How it is packed.
        compression: Compression,
        /// The directory it goes to.
        target: Target,
    },
    /// `WORKDIR`
    MakeDirectory {
        /// The directory.
        path: String,
        /// Its owner.
        owner: Option<String>,
    },
}

/// See [`Action::Run`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunAction {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// A program of the Dockerfile's own.
    pub script: Option<String>,
    /// Variables and arguments in scope.
    pub env: BTreeMap<String, String>,
    /// Who.
    pub user: String,
    /// Where.
    pub directory: String,
    /// What is mounted.
    pub mounts: Vec<Mount>,
    /// Whether it can reach the forward proxy.
    pub network: bool,
}

/// A step of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The line of the Dockerfile.
    pub line: usize,
    /// The first line of the instruction.
    pub title: String,
    /// What it does.
    pub action: Action,
    /// What its result depends on.
    pub key: Key,
}

/// A stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// The line of its `FROM`.
    pub line: usize,
    /// The first line of its `FROM`.
    pub title: String,
    /// What it starts from.
    pub start: Root,
    /// The key of that.
    pub start_key: Key,
    /// Its steps.
    pub steps: Vec<Step>,
    /// What its image says of itself.
    pub config: ImageConfig,
    /// Whether the last stage needs it.
    pub is_needed: bool,
}

impl Stage {
    /// The key of its disk.
    #[must_use]
    pub fn key(&self) -> &Key {
        self.steps.last().map_or(&self.start_key, |step| &step.key)
    }

    /// The roots that its steps copy from, each once.
    #[must_use]
    pub fn copied_roots(&self) -> Vec<&Root> {
        let mut roots = Vec::new();
        for step in &self.steps {
            if let Action::CopyFrom { root, .. } = &step.action
                && !roots.contains(&root)
            {
                roots.push(root);
            }
        }
        roots
    }
}

/// What is to be done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The stages; the last one is the image.
    pub stages: Vec<Stage>,
}

impl Plan {
    /// Makes the plan.
    ///
    /// # Errors
    /// The line that is wrong or not supported, and why.
    pub fn new(text: &str, inputs: &Inputs) -> Result<Self, DockerfileError> {
        let source = Source::new(text)?;
        let parsed = source.parse()?;
        let mut stages = stage::plan_all(&source, &parsed, inputs)?;
        if stages.len() > STAGES_MAX {
            let line = stages.get(STAGES_MAX).map_or(1, |stage| stage.line);
            let reason = format!("there are more than {STAGES_MAX} stages");
            return Err(DockerfileError::new(line, reason));
        }
        mark_needed(&mut stages);
        stages.last_mut().map(describe_app);
        Ok(Self { stages })
    }

    /// The stages that are built.
    pub fn needed(&self) -> impl Iterator<Item = (usize, &Stage)> {
        self.stages.iter().enumerate().filter(|(_, stage)| stage.is_needed)
    }

    /// How many steps there are, the starts included.
    #[must_use]
    pub fn step_count(&self) -> usize {
        self.needed().map(|(_, stage)| 1 + stage.steps.len()).sum()
    }

    /// The configuration of the image.
    #[must_use]
    pub fn config(&self) -> Option<&ImageConfig> {
        self.stages.last().map(|stage| &stage.config)
    }
}

/// The last step of an image: the agent finds there what to start.
fn describe_app(stage: &mut Stage) {
    let Some(app) = stage.config.app() else { return };
    let target = Target { path: APP_FILE.into(), owner: Some("0:0".into()), ..Target::default() };
    let action = Action::Write { text: format!("{app:#}\n"), target };
    let key = step_key(stage.key(), &action, None);
    stage.steps.push(Step { line: stage.line, title: APP_TITLE.into(), action, key });
}

/// Stages refer to earlier ones only, so that one pass from the end finds all.
fn mark_needed(stages: &mut [Stage]) {
    if let Some(last) = stages.last_mut() {
        last.is_needed = true;
    }
    for index in (0..stages.len()).rev() {
        let Some(stage) = stages.get(index).filter(|stage| stage.is_needed) else { continue };
        let roots: Vec<Root> =
            stage.copied_roots().into_iter().chain([&stage.start]).cloned().collect();
        for root in roots {
            if let Root::Stage(number) = root
                && let Some(other) = stages.get_mut(number)
            {
                other.is_needed = true;
            }
        }
    }
}

/// The key of a root's disk.
#[must_use]
pub fn root_key(root: &Root, stages: &[Stage], disk_bytes: u64) -> Key {
    match root {
        Root::Stage(number) => {
            stages.get(*number).map(|stage| stage.key().clone()).unwrap_or_default()
        }
        Root::Scratch => digest(&("scratch", KEY_VERSION, disk_bytes)),
        Root::Base { digest: content, .. } => digest(&("base", KEY_VERSION, disk_bytes, content)),
    }
}

/// The key of an action on top of a disk. `roots` are the keys of what it copies from.
#[must_use]
pub fn step_key(parent: &Key, action: &Action, from: Option<&Key>) -> Key {
    digest(&("step", KEY_VERSION, parent, action, from))
}

fn digest(value: &impl Serialize) -> Key {
    // Our own types: strings, numbers and lists, which cannot fail.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    hex(&Sha256::digest(&bytes))
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A path of an instruction, made absolute.
#[must_use]
pub fn absolute(directory: &str, path: &str) -> String {
    let joined = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{directory}/{path}"),
    };
    format!("/{}", rotifer_build_worker::glob::clean(&joined))
}

/// The request of a `WORKDIR`.
#[must_use]
pub fn make_directory(root: &str, path: &str, owner: Option<&str>) -> MakeDirectory {
    MakeDirectory { root: root.into(), path: path.into(), owner: owner.map(Into::into) }
}

#[cfg(test)]
mod tests;
