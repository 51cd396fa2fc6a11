//! Drives a build: what the cache has is taken from it, and the rest is done in build machines.

use crate::archive::Context;
use crate::base::pull::Supply;
use crate::base::{BaseError, Store};
use crate::caches::Caches;
use crate::cancel::{Cancel, Why};
use crate::disks::{self, Cache};
use crate::failure::{Failure, StepError, host};
use crate::image::ImageConfig;
use crate::limits::LOG_MAX_BYTES;
use crate::machine::{Drives, Machine, ROOT};
use crate::plan::{
    Action, Inputs, Key, Plan, Root, RunAction, Stage, Step, make_directory, root_key,
};
use crate::settings::Settings;
use crate::tarball;
use crate::workspace::{self, Workspace};
use rotifer_agent::logs::LineSplitter;
use rotifer_build_worker::protocol::{
    Compression, CopyBetween, MountKind, Pack, Request, Run, Target, Unpack,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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

/// As a line of a log.
impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Step { number, count, title, is_cached } => {
                let cached = if *is_cached { "CACHED " } else { "" };
                write!(f, "[{number}/{count}] {cached}{title}")
            }
            Event::Line(line) => f.write_str(line),
        }
    }
}

/// Hears what a build says, each line as it comes.
pub type Log<'a> = &'a mut dyn FnMut(Event);

/// What is to be built.
#[derive(Debug, Clone, Default)]
pub struct BuildRequest {
    /// The zip.
    pub archive: PathBuf,
    /// Where the root disk goes. What was there is replaced when the new one is whole; until then it
    /// grows beside it, with `.partial` at the end of its name.
    pub disk: PathBuf,
    /// The size of the root disk, if it is another one than that of the settings.
    pub disk_bytes: Option<u64>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Whether results of earlier builds are not to be used.
    pub no_cache: bool,
    /// Ends it before its time.
    pub cancel: Cancel,
}

/// A build that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The root disk: ext4, from which a machine boots with `rotifer.root=/dev/vda
    /// rotifer.rootfstype=ext4 rw`.
    pub disk: PathBuf,
    /// How large it is for the machine.
    pub disk_bytes: u64,
    /// What it takes on the host.
    pub stored_bytes: u64,
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
    /// Opens the store and the cache, and removes what builds that were killed have left.
    ///
    /// # Errors
    /// What the host says.
    pub fn new(settings: Settings) -> Result<Self, Failure> {
        let store = Store::open(&settings.store, settings.aliases.clone())
            .map_err(host("open the store of base images"))?;
        let cache = Cache::open(settings.store.join("steps"), settings.cache_bytes)
            .map_err(host("open the cache"))?;
        workspace::sweep(&settings.store).map_err(host("remove what old builds have left"))?;
        Ok(Self { settings, store, cache })
    }

    /// Builds an image.
    ///
    /// # Errors
    /// Why it failed, with the line of the Dockerfile if it is one's fault.
    pub fn build(&self, request: &BuildRequest, log: Log) -> Result<Built, Failure> {
        let limit = self.settings.build_timeout();
        let _going = request.cancel.begin(limit);
        let result = self.build_uncanceled(request, log);
        match request.cancel.why() {
            Some(Why::Asked) => Err(Failure::Canceled),
            Some(Why::Timeout) => Err(Failure::Timeout { limit }),
            None => result,
        }
    }

    fn build_uncanceled(&self, request: &BuildRequest, log: Log) -> Result<Built, Failure> {
        let context = Context::open(&request.archive)?;
        let disk_bytes = request.disk_bytes.unwrap_or(self.settings.disk_bytes);
        let bases = Supply {
            store: &self.store,
            registries: &self.settings.registries,
            bytes_max: self.settings.base_bytes,
            cancel: &request.cancel,
            log: RefCell::new(log),
        };
        let inputs = Inputs { context: &context, bases: &bases, args: &request.args, disk_bytes };
        let plan = Plan::new(&context.dockerfile()?, &inputs)?;
        let log = bases.log.into_inner();
        let work =
            Workspace::new(&self.settings.store).map_err(host("make a directory for the build"))?;
        let mut build = Build {
            builder: self,
            request,
            disk_bytes,
            context: &context,
            plan: &plan,
            work: &work,
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
        let disk = request.disk.clone();
        disks::copy(&build.disk(&key), &disk).map_err(host("write the root disk"))?;
        let stored = fs::metadata(&disk).map_err(host("look at the root disk"))?;
        let stored_bytes = stored.blocks() * disks::STAT_BLOCK_BYTES;
        let cached_count = count - done_count;
        Ok(Built { disk, disk_bytes, stored_bytes, config, done_count, cached_count, key })
    }
}

/// A build that goes on.
struct Build<'a> {
    builder: &'a Builder,
    request: &'a BuildRequest,
    disk_bytes: u64,
    context: &'a Context,
    plan: &'a Plan,
    /// Disks that this build has made or taken, by their keys.
    work: &'a Workspace,
    number: usize,
    done_count: usize,
    said_bytes: usize,
    log: Log<'a>,
}

impl Build<'_> {
    fn disk(&self, key: &str) -> PathBuf {
        self.work.join(&format!("{key}.ext4"))
    }

    fn say_step(&mut self, title: &str, is_cached: bool) {
        self.number += 1;
        self.done_count += usize::from(!is_cached);
        let count = self.plan.step_count();
        (self.log)(Event::Step { number: self.number, count, title, is_cached });
    }

    /// Takes a disk from the cache; whether it was there.
    fn take(&self, key: &str) -> Result<bool, Failure> {
        let disk = self.disk(key);
        if disk.exists() {
            return Ok(true);
        }
        self.builder.cache.take(key, &disk).map_err(host("look into the cache"))
    }

    /// Does what of a stage is not there yet; its disk is in the working directory then.
    fn stage(&mut self, stage: &Stage) -> Result<(), Failure> {
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
    ) -> Result<(), Failure> {
        let disk = self.work.join("stage.ext4");
        match from {
            Some(key) => disks::copy(&self.disk(key), &disk).map_err(host("copy a disk"))?,
            None => disks::make_empty(&disk, self.disk_bytes).map_err(host("make a disk"))?,
        }
        let steps = stage.steps.get(known_count.saturating_sub(1)..).unwrap_or_default();
        let roots = stage.copied_roots();
        let mut sources = Vec::new();
        for root in &roots {
            sources.push(self.source(root)?);
        }
        let caches = self.caches(steps)?;
        let drives = Drives { stage: &disk, caches: &caches.path, sources: &sources };
        let network =
            steps.iter().any(|step| matches!(&step.action, Action::Run(run) if run.network));
        let machine = self.machine(&drives, network)?;
        if known_count == 0 {
            self.say_step(&stage.title, false);
            self.start_root(&machine, &stage.start).map_err(|source| Failure::Step {
                line: stage.line,
                title: stage.title.clone(),
                source,
            })?;
            self.keep(&disk, &stage.start_key)?;
        }
        machine.mount().map_err(host("mount the disk"))?;
        for (index, step) in steps.iter().enumerate() {
            self.say_step(&step.title, false);
            self.step(&machine, step, &roots)?;
            let is_last = index + 1 == steps.len();
            if is_last || matches!(step.action, Action::Run(_)) {
                machine.unmount().map_err(host("unmount the disk"))?;
                self.keep(&disk, &step.key)?;
                if !is_last {
                    machine.mount().map_err(host("mount the disk"))?;
                }
            }
        }
        machine.unmount_caches().map_err(host("unmount the caches"))?;
        Ok(())
    }

    /// Keeps what the disk is now, as the result of a step. It is not mounted.
    fn keep(&self, disk: &Path, key: &Key) -> Result<(), Failure> {
        let copy = self.work.join("copy.ext4");
        disks::copy(disk, &copy).map_err(host("copy a step's result"))?;
        self.builder.cache.put(key, &copy).map_err(host("keep a step's result"))?;
        self.take(key).map(drop)
    }

    fn caches(&self, steps: &[Step]) -> Result<Caches, Failure> {
        let (store, cancel) = (&self.builder.settings.store, &self.request.cancel);
        Caches::open(store, self.work.path(), steps, cancel)
            .map_err(host("open the disk of the caches"))
    }

    fn machine(&self, drives: &Drives, network: bool) -> Result<Machine, Failure> {
        let cancel = &self.request.cancel;
        Machine::start(&self.builder.settings, drives, network, self.work.path(), cancel)
            .map_err(host("start a build machine"))
    }

    /// The disk of a root that is copied from.
    fn source(&mut self, root: &Root) -> Result<PathBuf, Failure> {
        let key = root_key(root, &self.plan.stages, self.disk_bytes);
        if !self.take(&key)? {
            // A stage was built before; an image may be used for nothing else.
            let disk = self.work.join("image.ext4");
            disks::make_empty(&disk, self.disk_bytes).map_err(host("make a disk"))?;
            let caches = self.caches(&[])?;
            let drives = Drives { stage: &disk, caches: &caches.path, sources: &[] };
            let machine = self.machine(&drives, false)?;
            self.start_root(&machine, root).map_err(host("unpack an image"))?;
            self.keep(&disk, &key)?;
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

    fn step(&mut self, machine: &Machine, step: &Step, roots: &[&Root]) -> Result<(), Failure> {
        let failed = |source: StepError| Failure::Step {
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
                return Err(Failure::Command { line: step.line, title: step.title.clone(), code });
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
