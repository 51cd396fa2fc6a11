//! `rotifer-build`: image builds by hand, and the base images of a host.

use anyhow::{Context as _, Result};
use rotifer_build::base::{self, Store};
use rotifer_build::cli::{self, Command, HELP, Invocation, SETTINGS_VARIABLE};
use rotifer_build::network::Network;
use rotifer_build::{BuildRequest, Built, Event, Failure, ReasonCode, Settings, directory};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// The archive, the Dockerfile or a command of it failed.
const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
/// The host failed.
const EXIT_HOST: u8 = 3;

fn main() -> ExitCode {
    let invocation = match cli::parse(env::args_os().skip(1)) {
        Ok(invocation) => invocation,
        Err(error) => {
            eprintln!("rotifer-build: {error}; see --help");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match run(&invocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = error.downcast_ref::<Failure>();
            let code = failure.map_or(ReasonCode::InternalPlatformError, Failure::code);
            if invocation.json {
                let line = failure.and_then(Failure::line);
                let text = format!("{error:#}");
                say(
                    &json!({ "event": "failed", "code": code.as_str(), "line": line, "text": text }),
                );
            } else if failure.is_some() {
                eprintln!("rotifer-build: {}: {error:#}", code.as_str());
            } else {
                eprintln!("rotifer-build: {error:#}");
            }
            let is_hosts = code == ReasonCode::InternalPlatformError;
            ExitCode::from(if is_hosts { EXIT_HOST } else { EXIT_FAILED })
        }
    }
}

fn say(line: &Value) {
    println!("{line}");
}

fn run(invocation: &Invocation) -> Result<()> {
    match &invocation.command {
        Command::Help => {
            print!("{HELP}");
            Ok(())
        }
        Command::Build { source, disk, args, no_cache } => {
            let (disk, args, no_cache) = (disk.clone(), args.clone(), *no_cache);
            let request = BuildRequest { disk, args, no_cache, ..BuildRequest::default() };
            build(&settings(invocation)?, source, request, invocation.json)
        }
        Command::BaseAdd { name, from, packages } => {
            let store = store(invocation)?;
            let base = match from {
                Some(from) => base::pull::add(&store, name, from, &mut |line| eprintln!("{line}"))?,
                None => base::debian::make(&store, name, packages)?,
            };
            show(&base, invocation.json);
            Ok(())
        }
        Command::BaseList => {
            store(invocation)?.list()?.iter().for_each(|base| show(base, invocation.json));
            Ok(())
        }
        Command::Network => {
            println!("{}", serde_json::to_string_pretty(&Network::detect())?);
            Ok(())
        }
    }
}

fn settings(invocation: &Invocation) -> Result<Settings> {
    let named = invocation.settings.clone();
    let file = named.or_else(|| env::var_os(SETTINGS_VARIABLE).map(Into::into));
    let file = file.with_context(|| format!("--settings is missing, and ${SETTINGS_VARIABLE}"))?;
    Ok(Settings::read(&file)?)
}

fn store(invocation: &Invocation) -> Result<Store> {
    let (directory, aliases) = match &invocation.store {
        Some(directory) => (directory.clone(), BTreeMap::new()),
        None => {
            let settings = settings(invocation).context("no --store says where base images are")?;
            (settings.store, settings.aliases)
        }
    };
    Ok(Store::open(&directory, aliases)?)
}

fn show(base: &base::Base, json: bool) {
    if json {
        let count = base.layers.len();
        say(&json!({ "name": base.name, "digest": base.digest(), "layers": count }));
    } else {
        println!("{} {} {} layers", base.name, base.digest(), base.layers.len());
    }
}

fn build(settings: &Settings, source: &Path, mut request: BuildRequest, json: bool) -> Result<()> {
    let packed = if source.is_dir() { Some(directory::pack(source)?) } else { None };
    request.archive = packed.as_ref().map_or(source, |zip| zip.path()).to_path_buf();
    let built = rotifer_build::build(settings, &request, &mut |event| match (json, &event) {
        (true, Event::Step { number, count, title, is_cached }) => say(&json!({
            "event": "step", "number": number, "count": count, "title": title, "cached": is_cached,
        })),
        (true, Event::Line(line)) => say(&json!({ "event": "line", "text": line })),
        (false, Event::Step { .. }) => println!("{event}"),
        (false, Event::Line(line)) => println!("    {line}"),
    })?;
    report(&built, json)
}

fn report(built: &Built, json: bool) -> Result<()> {
    let mut config = built.disk.clone().into_os_string();
    config.push(".json");
    let oci = built.config.to_oci();
    fs::write(&config, serde_json::to_string_pretty(&oci)?)
        .with_context(|| format!("cannot write {}", config.display()))?;
    if json {
        say(&json!({
            "event": "built", "disk": built.disk, "disk_bytes": built.disk_bytes,
            "stored_bytes": built.stored_bytes, "done": built.done_count,
            "cached": built.cached_count, "image": oci,
        }));
    } else {
        let (done, cached) = (built.done_count, built.cached_count);
        println!("{}: {done} steps done, {cached} cached", built.disk.display());
    }
    Ok(())
}
