//! The instructions of a stage, one after the other.

use super::{
    Action, BaseInfo, Inputs, Item, ItemContent, Key, Root, RunAction, Stage, Step, absolute, copy,
    flags, root_key, step_key,
};
use crate::dockerfile::{DockerfileError, Source, exec_words, flag, start_of};
use crate::expand;
use crate::image::ImageConfig;
use crate::limits::STAGE_SOURCES_MAX;
use parse_dockerfile::{
    AddInstruction, Command, CopyInstruction, Dockerfile, FromInstruction, HealthcheckArguments,
    Instruction, JsonOrStringArray, RunInstruction, Source as CopySource,
};
use rotifer_build_worker::protocol::{SCRIPT_FILE, Target};
use serde_json::json;
use std::collections::BTreeMap;

const PLATFORM: &str = "linux/arm64";
const SCRATCH: &str = "scratch";
const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// Arguments that are known without a declaration, where `FROM` is expanded.
const PLATFORM_ARGS: [(&str, &str); 8] = [
    ("TARGETPLATFORM", PLATFORM),
    ("TARGETOS", "linux"),
    ("TARGETARCH", "arm64"),
    ("TARGETVARIANT", ""),
    ("BUILDPLATFORM", PLATFORM),
    ("BUILDOS", "linux"),
    ("BUILDARCH", "arm64"),
    ("BUILDVARIANT", ""),
];

type Reason = String;

/// Plans all stages.
pub fn plan_all(
    source: &Source,
    parsed: &Dockerfile,
    inputs: &Inputs,
) -> Result<Vec<Stage>, DockerfileError> {
    let mut planner = Planner {
        source,
        inputs,
        globals: BTreeMap::new(),
        names: BTreeMap::new(),
        stages: Vec::new(),
        current: None,
    };
    for instruction in &parsed.instructions {
        let start = start_of(instruction);
        planner
            .take(instruction, start)
            .map_err(|reason| DockerfileError::new(source.line(start), reason))?;
    }
    planner.finish_stage();
    Ok(planner.stages)
}

struct Planner<'a> {
    source: &'a Source,
    inputs: &'a Inputs<'a>,
    /// Arguments declared before the first `FROM`.
    globals: BTreeMap<String, Option<String>>,
    /// Stages by their names, in lower case.
    names: BTreeMap<String, usize>,
    stages: Vec<Stage>,
    current: Option<Current>,
}

/// The stage that is being read.
struct Current {
    stage: Stage,
    /// Arguments in scope.
    args: BTreeMap<String, Option<String>>,
    /// Whether this stage has set a command: an entrypoint forgets an inherited one.
    has_own_cmd: bool,
}

impl Planner<'_> {
    fn take(&mut self, instruction: &Instruction, start: usize) -> Result<(), Reason> {
        match instruction {
            Instruction::From(from) => return self.from(from, start),
            Instruction::Arg(arg) => return self.arg(&arg.arguments.value),
            _ => {}
        }
        match instruction {
            Instruction::Env(it) => {
                for (name, value) in self.pairs(&it.arguments.value)? {
                    self.config()?.set_variable(&name, &value);
                }
            }
            Instruction::Label(it) => {
                let pairs = self.pairs(&it.arguments.value)?;
                self.config()?.labels.extend(pairs);
            }
            Instruction::Maintainer(it) => {
                let value = it.name.value.to_string();
                self.config()?.labels.insert("maintainer".into(), value);
            }
            Instruction::Workdir(it) => self.workdir(&it.arguments.value, start)?,
            Instruction::User(it) => {
                let user = self.expand(&it.arguments.value)?;
                if user.is_empty() {
                    return Err("USER is empty".into());
                }
                self.config()?.user = user;
            }
            Instruction::Expose(it) => {
                for word in &it.arguments {
                    self.expose(&word.value)?;
                }
            }
            Instruction::Stopsignal(it) => {
                let signal = self.expand(&it.arguments.value)?;
                self.config()?.stop_signal = signal;
            }
            Instruction::Volume(it) => self.volume(&it.arguments)?,
            Instruction::Shell(it) => {
                let words = it.arguments.iter().map(|word| word.value.to_string()).collect();
                self.config()?.shell = words;
            }
            Instruction::Cmd(it) => {
                let words = self.command(&it.arguments)?;
                self.config()?.cmd = words;
                self.current()?.has_own_cmd = true;
            }
            Instruction::Entrypoint(it) => {
                let words = self.command(&it.arguments)?;
                let current = self.current()?;
                current.stage.config.entrypoint = words;
                if !current.has_own_cmd {
                    current.stage.config.cmd.clear();
                }
            }
            Instruction::Healthcheck(it) => {
                let check = match &it.arguments {
                    HealthcheckArguments::None { .. } => json!({ "Test": ["NONE"] }),
                    HealthcheckArguments::Cmd { arguments, .. } => {
                        let words = self.command(arguments)?;
                        let words = [vec!["CMD".to_owned()], words].concat();
                        json!({ "Test": words })
                    }
                    _ => return Err("this form of HEALTHCHECK is not supported".into()),
                };
                self.config()?.healthcheck = Some(check);
            }
            Instruction::Run(it) => self.run(it, start)?,
            Instruction::Copy(it) => self.copy(it, start)?,
            Instruction::Add(it) => self.add(it, start)?,
            Instruction::Onbuild(_) => return Err("ONBUILD is not supported".into()),
            _ => return Err("this instruction is not supported".into()),
        }
        Ok(())
    }

    fn current(&mut self) -> Result<&mut Current, Reason> {
        self.current.as_mut().ok_or_else(|| "there is no FROM before it".into())
    }

    fn config(&mut self) -> Result<&mut ImageConfig, Reason> {
        Ok(&mut self.current()?.stage.config)
    }

    fn finish_stage(&mut self) {
        self.stages.extend(self.current.take().map(|current| current.stage));
    }

    fn from(&mut self, from: &FromInstruction, start: usize) -> Result<(), Reason> {
        self.finish_stage();
        flags::check(&from.options, &["platform"])?;
        let globals = |name: &str| {
            let automatic = PLATFORM_ARGS.iter().find(|(known, _)| *known == name);
            let automatic = automatic.map(|(_, value)| (*value).to_owned());
            self.globals.get(name).cloned().flatten().or(automatic)
        };
        let expand = |text: &str| expand::expand(text, self.source.escape, &globals);
        if let Some(platform) = flag(&from.options, "platform") {
            let platform = expand(platform)?;
            if !matches!(platform.as_str(), PLATFORM | "linux/arm64/v8" | "linux/aarch64") {
                return Err(format!("the platform {platform:?} is not supported; {PLATFORM} is"));
            }
        }
        let image = expand(&from.image.value)?;
        if image.is_empty() {
            return Err(format!("the image {:?} is empty; is an ARG missing?", from.image.value));
        }
        let (root, config) = self.root(&image)?;
        if !config.on_build.is_empty() {
            return Err(format!("{image} has ONBUILD triggers, which are not supported"));
        }
        let start_key = root_key(&root, &self.stages, self.inputs.disk_bytes);
        if let Some((_, name)) = &from.as_ {
            self.names.insert(name.value.to_ascii_lowercase(), self.stages.len());
        }
        let stage = Stage {
            line: self.source.line(start),
            title: self.source.title(start),
            start: root,
            start_key,
            steps: Vec::new(),
            config,
            is_needed: false,
        };
        self.current = Some(Current { stage, args: BTreeMap::new(), has_own_cmd: false });
        Ok(())
    }

    /// What a name stands for: nothing, an earlier stage, or an image.
    fn root(&self, name: &str) -> Result<(Root, ImageConfig), Reason> {
        if name == SCRATCH {
            return Ok((Root::Scratch, ImageConfig::default()));
        }
        let number = self.names.get(&name.to_ascii_lowercase()).copied();
        if let Some((number, stage)) =
            number.and_then(|number| Some((number, self.stages.get(number)?)))
        {
            return Ok((Root::Stage(number), stage.config.clone()));
        }
        let BaseInfo { digest, config } = self.inputs.bases.look_up(name)?;
        Ok((Root::Base { name: name.to_owned(), digest }, config))
    }

    fn arg(&mut self, text: &str) -> Result<(), Reason> {
        for word in expand::split_words(text, self.source.escape) {
            let (name, default) = match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(self.expand(value)?)),
                None => (word.clone(), None),
            };
            if name.is_empty() {
                return Err(format!("ARG {word:?} has no name"));
            }
            let given = self.inputs.args.get(&name).cloned();
            match &mut self.current {
                None => drop(self.globals.insert(name, given.or(default))),
                Some(current) => {
                    let automatic = PLATFORM_ARGS.iter().find(|(known, _)| *known == name);
                    let automatic = automatic.map(|(_, value)| (*value).to_owned());
                    let global = self.globals.get(&name).cloned().flatten();
                    let value = given.or(default).or(global).or(automatic);
                    current.args.insert(name, value);
                }
            }
        }
        Ok(())
    }

    /// Expands a word with what is in scope: variables go before arguments.
    fn expand(&self, text: &str) -> Result<String, Reason> {
        expand::expand(text, self.source.escape, &|name| self.look_up(name))
    }

    fn look_up(&self, name: &str) -> Option<String> {
        match &self.current {
            None => self.globals.get(name).cloned().flatten(),
            Some(current) => {
                let variable = current.stage.config.variable(name).map(str::to_owned);
                variable.or_else(|| current.args.get(name).cloned().flatten())
            }
        }
    }

    /// `a=b c="d e"`, or the old form `a b c`. All values see the variables from before.
    fn pairs(&self, text: &str) -> Result<Vec<(String, String)>, Reason> {
        let words = expand::split_words(text, self.source.escape);
        let first = words.first().ok_or("it has no arguments")?;
        if !first.contains('=') {
            let rest = text.trim_start().strip_prefix(first.as_str()).unwrap_or_default().trim();
            if rest.is_empty() {
                return Err(format!("{first:?} has no value"));
            }
            return Ok(vec![(self.expand(first)?, self.expand(rest)?)]);
        }
        let mut pairs = Vec::new();
        for word in words {
            let (name, value) =
                word.split_once('=').ok_or_else(|| format!("{word:?} is not NAME=value"))?;
            let name = self.expand(name)?;
            if name.is_empty() {
                return Err(format!("{word:?} has no name"));
            }
            pairs.push((name, self.expand(value)?));
        }
        Ok(pairs)
    }

    fn shell(&mut self) -> Result<Vec<String>, Reason> {
        let shell = self.config()?.shell.clone();
        Ok(if shell.is_empty() { DEFAULT_SHELL.map(Into::into).to_vec() } else { shell })
    }

    /// The words of `CMD` and `ENTRYPOINT`: a shell's variables are the shell's.
    fn command(&mut self, command: &Command) -> Result<Vec<String>, Reason> {
        if let Some(words) = exec_words(command) {
            return Ok(words);
        }
        let Command::Shell(text) = command else { return Err("an unknown form".into()) };
        let mut words = self.shell()?;
        words.push(self.source.join_lines(text.value));
        Ok(words)
    }

    fn expose(&mut self, word: &str) -> Result<(), Reason> {
        // One variable may hold several ports.
        for port in self.expand(word)?.split_whitespace() {
            let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
            let (low, high) = number.split_once('-').unwrap_or((number, number));
            let bad = || format!("EXPOSE {port:?} is not a port");
            let (low, high): (u16, u16) =
                (low.parse().map_err(|_| bad())?, high.parse().map_err(|_| bad())?);
            if low == 0 || high < low || !matches!(protocol, "tcp" | "udp" | "sctp") {
                return Err(bad());
            }
            for number in low..=high {
                self.config()?.exposed_ports.insert(format!("{number}/{protocol}"), json!({}));
            }
        }
        Ok(())
    }

    fn volume(&mut self, arguments: &JsonOrStringArray<'_, 1>) -> Result<(), Reason> {
        let words = match arguments {
            JsonOrStringArray::Json(words) => &words.value,
            JsonOrStringArray::String(words) => words,
        };
        for word in words {
            let path = self.expand(&word.value)?;
            if path.is_empty() {
                return Err("VOLUME is empty".into());
            }
            self.config()?.volumes.insert(path, json!({}));
        }
        Ok(())
    }

    fn workdir(&mut self, text: &str, start: usize) -> Result<(), Reason> {
        let text = self.expand(text)?;
        if text.is_empty() {
            return Err("WORKDIR is empty".into());
        }
        let config = self.config()?;
        let path = absolute(&config.working_dir, &text);
        config.working_dir = path.clone();
        let owner = Some(config.user.clone()).filter(|user| !user.is_empty());
        self.push(start, Action::MakeDirectory { path, owner }, None)
    }

    fn run(&mut self, run: &RunInstruction, start: usize) -> Result<(), Reason> {
        flags::check(&run.options, &["mount", "network", "security"])?;
        let network = match flag(&run.options, "network").unwrap_or("default") {
            "default" => true,
            "none" => false,
            other => return Err(format!("--network={other} is not supported")),
        };
        if let Some(security) = flag(&run.options, "security").filter(|it| *it != "sandbox") {
            return Err(format!("--security={security} is not supported"));
        }
        let directory = self.config()?.working_dir.clone();
        let mut mounts = Vec::new();
        for option in run.options.iter().filter(|option| option.name.value == "mount") {
            let text = option.value.as_ref().map_or("", |value| value.value.as_ref());
            mounts.push(flags::mount(&self.expand(text)?, &directory)?);
        }
        let (command, script) = self.run_command(run)?;
        let current = self.current()?;
        let set =
            current.args.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
        let mut env: BTreeMap<String, String> = set.collect();
        env.extend(current.stage.config.variables());
        let user = current.stage.config.user.clone();
        let action = RunAction { command, script, env, user, directory, mounts, network };
        self.push(start, Action::Run(action), None)
    }

    fn run_command(
        &mut self,
        run: &RunInstruction,
    ) -> Result<(Vec<String>, Option<String>), Reason> {
        let Some(document) = run.here_docs.first() else {
            return Ok((self.command(&run.arguments)?, None));
        };
        if let Command::Shell(rest) = &run.arguments
            && !rest.value.trim().is_empty()
        {
            return Err("words behind a here-document are not supported".into());
        }
        let text = document.value.to_string();
        if text.starts_with("#!") {
            return Ok((vec![SCRIPT_FILE.into()], Some(text)));
        }
        let mut words = self.shell()?;
        words.push(text);
        Ok((words, None))
    }

    fn copy(&mut self, copy: &CopyInstruction, start: usize) -> Result<(), Reason> {
        flags::check(&copy.options, &["from", "chown", "chmod", "link"])?;
        let (words, document) = self.sources(&copy.src)?;
        let target = self.target(&copy.options, &copy.dest.value)?;
        if let Some(from) = flag(&copy.options, "from") {
            if document.is_some() {
                return Err("a here-document comes from no image".into());
            }
            return self.copy_from(&self.expand(from)?, words, target, start);
        }
        self.copy_words(words, document, target, start)
    }

    fn add(&mut self, add: &AddInstruction, start: usize) -> Result<(), Reason> {
        flags::check(&add.options, &["chown", "chmod", "link"])?;
        let (words, document) = self.sources(&add.src)?;
        let target = self.target(&add.options, &add.dest.value)?;
        if let Some(url) =
            words.iter().find(|word| word.contains("://") || word.starts_with("git@"))
        {
            return Err(format!("ADD of {url:?} is not supported; fetch it with RUN"));
        }
        if words.len() != 1 || document.is_some() {
            return self.copy_words(words, document, target, start);
        }
        let selection = copy::select(self.inputs.context, &words)?;
        if let [item] = &selection.items[..]
            && matches!(item.content, ItemContent::File(..))
            && !selection.needs_directory
            && let Some(compression) = copy::archive_kind(self.inputs.context, &item.path)?
        {
            let target = Target { is_directory: true, ..target };
            let item = Item { name: String::new(), ..item.clone() };
            return self.push(start, Action::Extract { item, compression, target }, None);
        }
        self.copy_words(words, None, target, start)
    }

    /// The paths among the sources, and the here-document.
    fn sources(&self, sources: &[CopySource]) -> Result<(Vec<String>, Option<String>), Reason> {
        let (mut words, mut document) = (Vec::new(), None);
        for source in sources {
            match source {
                CopySource::Path(path) => words.push(self.expand(&path.value)?),
                CopySource::HereDoc(it) if document.is_none() => {
                    let look_up = |name: &str| self.look_up(name);
                    document = Some(match it.expand {
                        true => expand::expand_text(&it.value, self.source.escape, &look_up)?,
                        false => it.value.to_string(),
                    });
                }
                _ => return Err("more than one here-document is not supported".into()),
            }
        }
        Ok((words, document))
    }

    fn target(&mut self, options: &[parse_dockerfile::Flag], to: &str) -> Result<Target, Reason> {
        let to = self.expand(to)?;
        if to.is_empty() {
            return Err("the destination is empty".into());
        }
        let is_directory = to.ends_with('/') || to == "." || to.ends_with("/.");
        let path = absolute(&self.config()?.working_dir, &to);
        let option = |name| flag(options, name).map(|text| self.expand(text)).transpose();
        let owner = option("chown")?;
        let mode = option("chmod")?.map(|text| flags::permissions(&text)).transpose()?;
        match option("link")?.as_deref() {
            // What is copied is the same either way.
            None | Some("" | "true" | "false") => {}
            Some(other) => return Err(format!("--link={other} is neither true nor false")),
        }
        Ok(Target { path, is_directory, owner, mode })
    }

    fn copy_words(
        &mut self,
        words: Vec<String>,
        document: Option<String>,
        mut target: Target,
        start: usize,
    ) -> Result<(), Reason> {
        if let Some(text) = document {
            if !words.is_empty() || target.is_directory {
                return Err("a here-document is copied alone, to the name of a file".into());
            }
            return self.push(start, Action::Write { text, target }, None);
        }
        let selection = copy::select(self.inputs.context, &words)?;
        if selection.source_count > 1 && !target.is_directory {
            return Err(format!(
                "{} sources cannot go to one file: the destination has to end with a slash",
                selection.source_count
            ));
        }
        target.is_directory |= selection.needs_directory;
        // What the archive's maker was on another machine means nothing here.
        target.owner.get_or_insert_with(|| "0:0".into());
        self.push(start, Action::CopyItems { items: selection.items, target }, None)
    }

    fn copy_from(
        &mut self,
        name: &str,
        sources: Vec<String>,
        mut target: Target,
        start: usize,
    ) -> Result<(), Reason> {
        let number = name.parse::<usize>().ok().filter(|number| *number < self.stages.len());
        let root = match number {
            Some(number) => Root::Stage(number),
            None => self.root(name)?.0,
        };
        if sources.len() > 1 && !target.is_directory {
            return Err("several sources need a destination that ends with a slash".into());
        }
        target.is_directory |= sources.len() > 1;
        let key = root_key(&root, &self.stages, self.inputs.disk_bytes);
        let action = Action::CopyFrom { root, sources, target };
        self.push(start, action, Some(key))?;
        if self.current()?.stage.copied_roots().len() > STAGE_SOURCES_MAX {
            return Err(format!("the stage copies from more than {STAGE_SOURCES_MAX} others"));
        }
        Ok(())
    }

    fn push(&mut self, start: usize, action: Action, from: Option<Key>) -> Result<(), Reason> {
        let (line, title) = (self.source.line(start), self.source.title(start));
        let stage = &mut self.current()?.stage;
        let key = step_key(stage.key(), &action, from.as_ref());
        stage.steps.push(Step { line, title, action, key });
        Ok(())
    }
}
