//! Drives a build: what the cache has is taken from it, and the rest is done in build machines.

use crate::archive::{ArchiveError, Context};
use crate::base::{BaseError, Store};
use crate::disks::{self, Cache, DiskError};
use crate::dockerfile::DockerfileError;
use crate::image::ImageConfig;
use crate::limits::LOG_MAX_BYTES;
use crate::machine::{Drives, Machine, MachineError, ROOT};
use crate::plan::{
    Action, Inputs, Key, Plan, Root, RunAction, Stage, Step, make_directory, root_key,
};
use crate::protocol::{Compression, CopyBetween, MountKind, Pack, Request, Run, Target, Unpack};
use crate::settings::Settings;
use crate::tarball;
use rotifer_agent::logs::LineSplitter;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The disk of `RUN --mount=type=cache`. It is sparse.
const CACHES_BYTES: u64 = 8 << 30;

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
pub enum BuildError {
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

impl BuildError {
    /// The service's code.
    #[must_use]
    pub fn code(&self) -> ReasonCode {
        match self {
            BuildError::Archive(ArchiveError::NoDockerfile(_)) => {
                ReasonCode::ArchiveDockerfileNotFound
            }
            BuildError::Archive(ArchiveError::TooLargeUnpacked) => ReasonCode::DiskStorageFull,
            BuildError::Archive(ArchiveError::Read { .. }) => ReasonCode::InternalPlatformError,
            BuildError::Archive(_) => ReasonCode::ArchiveInvalid,
            BuildError::Dockerfile(_) | BuildError::Command { .. } => {
                ReasonCode::ContainerBuildFailed
            }
            BuildError::Step { source, .. } | BuildError::Host { source, .. } => source.code(),
        }
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

fn host<E: Into<StepError>>(attempt: &'static str) -> impl FnOnce(E) -> BuildError {
    move |source| BuildError::Host { attempt, source: source.into() }
}

/// What a build says while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A step begins, or is known.
    Step {
        /// Counted from 1.
        number: usize,
        /// How many there are.
        count: usize,
        /// The first line of its instruction.
        title: &'a str,
        /// Whether its result was there.
        is_cached: bool,
    },
    /// A line of output.
    Line(&'a str),
}

/// Hears what a build says.
pub type Log<'a> = &'a mut dyn FnMut(Event);

/// What is to be built.
#[derive(Debug, Clone, Default)]
pub struct BuildRequest {
    /// The zip.
    pub archive: PathBuf,
    /// Where the root disk goes.
    pub disk: PathBuf,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Whether results of earlier builds are not to be used.
    pub no_cache: bool,
}

/// A build that succeeded. Its disk is where it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// What the image says of itself.
    pub config: ImageConfig,
    /// Steps that were done.
    pub done_count: usize,
    /// Steps whose result was there.
    pub cached_count: usize,
    /// The key of the disk's content.
    pub key: Key,
}

/// Builds images.
#[derive(Debug)]
pub struct Builder {
    settings: Settings,
    store: Store,
    cache: Cache,
}

impl Builder {
    /// Opens the store and the cache.
    ///
    /// # Errors
    /// What the host says.
    pub fn new(settings: Settings) -> Result<Self, BuildError> {
        let store = Store::open(&settings.store, settings.aliases.clone())
            .map_err(host("open the store of base images"))?;
        let cache = Cache::open(settings.store.join("steps"), settings.cache_bytes)
            .map_err(host("open the cache"))?;
        Ok(Self { settings, store, cache })
    }

    /// Builds an image.
    ///
    /// # Errors
    /// Why it failed, with the line of the Dockerfile if it is one's fault.
    pub fn build(&self, request: &BuildRequest, log: Log) -> Result<Built, BuildError> {
        let context = Context::open(&request.archive)?;
        let inputs = Inputs {
            context: &context,
            bases: &self.store,
            args: &request.args,
            disk_bytes: self.settings.disk_bytes,
        };
        let plan = Plan::new(&context.dockerfile()?, &inputs)?;
        let work = TempDir::new_in(&self.settings.store)
            .map_err(host("make a directory for the build"))?;
        let mut build = Build {
            builder: self,
            request,
            context: &context,
            plan: &plan,
            work: work.path(),
            number: 0,
            done_count: 0,
            said_bytes: 0,
            log,
        };
        let mut key = Key::new();
        for (_, stage) in plan.needed() {
            build.stage(stage)?;
            key.clone_from(stage.key());
        }
        let (done_count, count) = (build.done_count, build.number);
        let config = plan.config().cloned().unwrap_or_default();
        disks::copy(&build.disk(&key), &request.disk).map_err(host("write the root disk"))?;
        Ok(Built { config, done_count, cached_count: count - done_count, key })
    }
}

/// A build that goes on.
struct Build<'a> {
    builder: &'a Builder,
    request: &'a BuildRequest,
    context: &'a Context,
    plan: &'a Plan,
    /// Disks that this build has made or taken, by their keys.
    work: &'a Path,
    number: usize,
    done_count: usize,
    said_bytes: usize,
    log: Log<'a>,
}

impl Build<'_> {
    fn disk(&self, key: &str) -> PathBuf {
        self.work.join(format!("{key}.ext4"))
    }

    fn say_step(&mut self, title: &str, is_cached: bool) {
        self.number += 1;
        self.done_count += usize::from(!is_cached);
        let count = self.plan.step_count();
        (self.log)(Event::Step { number: self.number, count, title, is_cached });
    }

    /// Takes a disk from the cache; whether it was there.
    fn take(&self, key: &str) -> Result<bool, BuildError> {
        let disk = self.disk(key);
        if disk.exists() {
            return Ok(true);
        }
        self.builder.cache.take(key, &disk).map_err(host("look into the cache"))
    }

    /// Does what of a stage is not there yet; its disk is in the working directory then.
    fn stage(&mut self, stage: &Stage) -> Result<(), BuildError> {
        let keys: Vec<&Key> =
            [&stage.start_key].into_iter().chain(stage.steps.iter().map(|it| &it.key)).collect();
        let usable =
            if self.request.no_cache { keys.get(..1).unwrap_or_default() } else { &keys[..] };
        let mut known = None;
        for (index, key) in usable.iter().enumerate().rev() {
            if self.take(key)? {
                known = Some(index);
                break;
            }
        }
        let titles: Vec<&str> = [stage.title.as_str()]
            .into_iter()
            .chain(stage.steps.iter().map(|step| step.title.as_str()))
            .collect();
        let known_count = known.map_or(0, |index| index + 1);
        for title in titles.iter().take(known_count) {
            self.say_step(title, true);
        }
        if known_count == keys.len() {
            return Ok(());
        }
        self.run_stage(stage, known.and_then(|index| keys.get(index).copied()), known_count)
    }

    fn run_stage(
        &mut self,
        stage: &Stage,
        from: Option<&Key>,
        known_count: usize,
    ) -> Result<(), BuildError> {
        let disk = self.work.join("stage.ext4");
        match from {
            Some(key) => disks::copy(&self.disk(key), &disk).map_err(host("copy a disk"))?,
            None => disks::make_empty(&disk, self.builder.settings.disk_bytes)
                .map_err(host("make a disk"))?,
        }
        let steps = stage.steps.get(known_count.saturating_sub(1)..).unwrap_or_default();
        let roots = stage.copied_roots();
        let mut sources = Vec::new();
        for root in &roots {
            sources.push(self.source(root)?);
        }
        let caches = Caches::open(&self.builder.settings.store, steps)
            .map_err(host("open the disk of the caches"))?;
        let drives = Drives { stage: &disk, caches: &caches.path, sources: &sources };
        let network =
            steps.iter().any(|step| matches!(&step.action, Action::Run(run) if run.network));
        let machine = Machine::start(&self.builder.settings, &drives, network)
            .map_err(host("start a build machine"))?;
        if known_count == 0 {
            self.say_step(&stage.title, false);
            self.start_root(&machine, &stage.start).map_err(|source| BuildError::Step {
                line: stage.line,
                title: stage.title.clone(),
                source,
            })?;
            self.keep(&machine, &disk, &stage.start_key)?;
        }
        machine.mount().map_err(host("mount the disk"))?;
        for (index, step) in steps.iter().enumerate() {
            self.say_step(&step.title, false);
            self.step(&machine, step, &roots)?;
            let is_last = index + 1 == steps.len();
            if is_last || matches!(step.action, Action::Run(_)) {
                machine.unmount().map_err(host("unmount the disk"))?;
                self.keep(&machine, &disk, &step.key)?;
                if !is_last {
                    machine.mount().map_err(host("mount the disk"))?;
                }
            }
        }
        machine.unmount_caches().map_err(host("unmount the caches"))?;
        Ok(())
    }

    /// Keeps what the disk is now, as the result of a step. It is not mounted.
    fn keep(&self, _machine: &Machine, disk: &Path, key: &Key) -> Result<(), BuildError> {
        self.builder.cache.put(key, disk).map_err(host("keep a step's result"))?;
        self.take(key).map(drop)
    }

    /// The disk of a root that is copied from.
    fn source(&mut self, root: &Root) -> Result<PathBuf, BuildError> {
        let key = root_key(root, &self.plan.stages, self.builder.settings.disk_bytes);
        if !self.take(&key)? {
            // A stage was built before; an image may be used for nothing else.
            let disk = self.work.join("image.ext4");
            disks::make_empty(&disk, self.builder.settings.disk_bytes)
                .map_err(host("make a disk"))?;
            let caches = Caches::open(&self.builder.settings.store, &[])
                .map_err(host("open the disk of the caches"))?;
            let drives = Drives { stage: &disk, caches: &caches.path, sources: &[] };
            let machine = Machine::start(&self.builder.settings, &drives, false)
                .map_err(host("start a build machine"))?;
            self.start_root(&machine, root).map_err(host("unpack an image"))?;
            self.keep(&machine, &disk, &key)?;
        }
        Ok(self.disk(&key))
    }

    /// A file system with what a stage starts from.
    fn start_root(&mut self, machine: &Machine, root: &Root) -> Result<(), StepError> {
        machine.format()?;
        machine.mount()?;
        if let Root::Base { name, .. } = root {
            let base = self.builder.store.get(name)?;
            for layer in &base.layers {
                let unpack = Unpack {
                    root: ROOT.into(),
                    target: Target { path: "/".into(), is_directory: true, ..Target::default() },
                    compression: layer.compression,
                    is_layer: true,
                    is_users: false,
                };
                let store = &self.builder.store;
                let mut wrong = None;
                let worked = machine.work(
                    &Request::Unpack(unpack),
                    &mut |sink| match store.read_layer(layer, sink) {
                        Err(error @ BaseError::Invalid(_)) => {
                            wrong = Some(error);
                            Ok(())
                        }
                        other => other.map_err(io::Error::other),
                    },
                    &mut |_| {},
                );
                if let Some(error) = wrong {
                    return Err(error.into());
                }
                worked?;
            }
        }
        Ok(machine.unmount()?)
    }

    fn step(&mut self, machine: &Machine, step: &Step, roots: &[&Root]) -> Result<(), BuildError> {
        let failed = |source: StepError| BuildError::Step {
            line: step.line,
            title: step.title.clone(),
            source,
        };
        let wish = self.wish(machine, &step.action, roots).map_err(failed)?;
        let context = self.context;
        let mut splitter = LineSplitter::default();
        let mut say = Say { log: self.log, said_bytes: &mut self.said_bytes };
        let worked = machine.work(
            &wish,
            &mut |sink| tarball::write(context, &step.action, sink),
            &mut |bytes| splitter.feed(bytes, |line| say.line(line)),
        );
        splitter.finish(|line| say.line(line));
        worked.map_err(|source| failed(source.into()))?;
        if let Action::Run(_) = &step.action {
            let code = machine.status().map_err(|source| failed(source.into()))?;
            if code != 0 {
                return Err(BuildError::Command {
                    line: step.line,
                    title: step.title.clone(),
                    code,
                });
            }
        }
        Ok(())
    }

    fn wish(
        &self,
        machine: &Machine,
        action: &Action,
        roots: &[&Root],
    ) -> Result<Request, StepError> {
        let unpack = |target: &Target, compression| {
            Request::Unpack(Unpack {
                root: ROOT.into(),
                target: target.clone(),
                compression,
                is_layer: false,
                is_users: true,
            })
        };
        Ok(match action {
            Action::Run(run) => {
                if run.mounts.iter().any(|it| matches!(it.kind, MountKind::Cache { .. })) {
                    machine.mount_caches()?;
                }
                Request::Run(self.run_request(run))
            }
            Action::CopyItems { target, .. } | Action::Write { target, .. } => {
                unpack(target, Compression::None)
            }
            Action::Extract { compression, target, .. } => unpack(target, *compression),
            Action::CopyFrom { root, sources, target } => {
                let number = roots.iter().position(|known| *known == root).unwrap_or(0);
                let from = Pack { root: machine.mount_source(number)?, sources: sources.clone() };
                Request::CopyBetween(CopyBetween {
                    from,
                    root: ROOT.into(),
                    target: target.clone(),
                })
            }
            Action::MakeDirectory { path, owner } => {
                Request::MakeDirectory(make_directory(ROOT, path, owner.as_deref()))
            }
        })
    }

    fn run_request(&self, run: &RunAction) -> Run {
        let network = self.builder.settings.network.as_ref().filter(|_| run.network);
        let mut env = network.map(|it| it.variables()).unwrap_or_default();
        env.extend(run.env.clone());
        Run {
            root: ROOT.into(),
            command: run.command.clone(),
            script: run.script.clone(),
            env,
            user: run.user.clone(),
            directory: run.directory.clone(),
            network: run.network,
            mounts: run.mounts.clone(),
            ca_bundle: network.and_then(|it| it.ca_bundle.clone()),
        }
    }
}

/// Passes lines on until there are too many.
struct Say<'a, 'b> {
    log: Log<'a>,
    said_bytes: &'b mut usize,
}

impl Say<'_, '_> {
    fn line(&mut self, line: &[u8]) {
        let before = *self.said_bytes;
        *self.said_bytes = before.saturating_add(line.len() + 1);
        if *self.said_bytes <= LOG_MAX_BYTES {
            (self.log)(Event::Line(&String::from_utf8_lossy(line)));
        } else if before <= LOG_MAX_BYTES {
            (self.log)(Event::Line("(more output than is kept; the rest is left out)"));
        }
    }
}

/// The disk of the caches, which one build has at a time; an empty one of its own for a build that mounts
/// none.
struct Caches {
    path: PathBuf,
    _lock: Option<File>,
    _own: Option<TempDir>,
}

impl Caches {
    fn open(store: &Path, steps: &[Step]) -> io::Result<Self> {
        let mounts = steps.iter().filter_map(|step| match &step.action {
            Action::Run(run) => Some(&run.mounts),
            _ => None,
        });
        if !mounts.flatten().any(|it| matches!(it.kind, MountKind::Cache { .. })) {
            let own = TempDir::new_in(store)?;
            let path = own.path().join("no-caches");
            File::create(&path)?.set_len(1 << 20)?;
            return Ok(Self { path, _lock: None, _own: Some(own) });
        }
        let path = store.join("caches.ext4");
        let lock = File::create(store.join("caches.lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let disk = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
        if disk.metadata()?.len() == 0 {
            disk.set_len(CACHES_BYTES)?;
        }
        Ok(Self { path, _lock: Some(lock), _own: None })
    }
}

/// Removes what a build that was killed left in the store.
///
/// # Errors
/// What the host says.
pub fn clean(store: &Path) -> io::Result<()> {
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(".tmp") && path.is_dir() {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}
