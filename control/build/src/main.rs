//! `rotifer-build`: image builds by hand, and the base images of a host.

use anyhow::{Context as _, Result, bail};
use lexopt::prelude::*;
use rotifer_build::base::{self, Store};
use rotifer_build::builder::{BuildRequest, Builder, Event};
use rotifer_build::network::Network;
use rotifer_build::settings::Settings;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

const USAGE: &str = "\
rotifer-build: root disks from zips with a Dockerfile, without a Docker engine (docs/image-builds.md)

  rotifer-build build --settings FILE [--build-arg NAME=VALUE]... [--no-cache] ARCHIVE DISK
  rotifer-build base add --store DIRECTORY [--from PATH | --packages A,B,...] NAME
  rotifer-build base list --store DIRECTORY
  rotifer-build network

build    the image of a zip; its configuration goes beside the disk, with .json behind the name
base     the base images of this host: from Debian's packages, or with --from an OCI layout or a docker save
network  what this machine's own configuration says about mirrors and certificates, for `network_file`
";

/// Everything that can be on the command line.
#[derive(Default)]
struct Arguments {
    words: Vec<String>,
    settings: Option<PathBuf>,
    store: Option<PathBuf>,
    from: Option<PathBuf>,
    packages: Vec<String>,
    args: BTreeMap<String, String>,
    no_cache: bool,
}

fn parse() -> Result<Option<Arguments>> {
    let mut arguments = Arguments::default();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(None),
            Long("settings") => arguments.settings = Some(parser.value()?.into()),
            Long("store") => arguments.store = Some(parser.value()?.into()),
            Long("from") => arguments.from = Some(parser.value()?.into()),
            Long("packages") => {
                let list = parser.value()?.string()?;
                arguments.packages.extend(list.split(',').map(str::to_owned));
            }
            Long("build-arg") => {
                let text = parser.value()?.string()?;
                let (name, value) =
                    text.split_once('=').with_context(|| format!("{text:?} is not NAME=VALUE"))?;
                arguments.args.insert(name.into(), value.into());
            }
            Long("no-cache") => arguments.no_cache = true,
            Value(word) => arguments.words.push(word.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(arguments))
}

fn main() -> Result<()> {
    let Some(arguments) = parse()? else {
        print!("{USAGE}");
        return Ok(());
    };
    let words: Vec<&str> = arguments.words.iter().map(String::as_str).collect();
    match words[..] {
        ["build", archive, disk] => build(&arguments, archive.into(), disk.into()),
        ["base", "add", name] => add(&arguments, name),
        ["base", "list"] => {
            for base in store(&arguments)?.list()? {
                println!("{} {} {} layers", base.name, base.digest(), base.layers.len());
            }
            Ok(())
        }
        ["network"] => {
            println!("{}", serde_json::to_string_pretty(&Network::detect())?);
            Ok(())
        }
        _ => bail!("{USAGE}"),
    }
}

fn build(arguments: &Arguments, archive: PathBuf, disk: PathBuf) -> Result<()> {
    let file = arguments.settings.as_ref().context("--settings FILE is missing")?;
    let builder = Builder::new(Settings::read(file)?)?;
    let (args, no_cache) = (arguments.args.clone(), arguments.no_cache);
    let request = BuildRequest { archive, disk, args, no_cache, ..BuildRequest::default() };
    let result = builder.build(&request, &mut |event| match event {
        Event::Step { .. } => println!("{event}"),
        Event::Line(line) => println!("    {line}"),
    });
    let built = result.map_err(|error| {
        let code = error.code().as_str();
        anyhow::Error::new(error).context(code)
    })?;
    let mut config = request.disk.clone().into_os_string();
    config.push(".json");
    let text = serde_json::to_string_pretty(&built.config.to_oci())?;
    fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
    println!(
        "{} ({} steps, {} cached)",
        request.disk.display(),
        built.done_count,
        built.cached_count
    );
    Ok(())
}

fn store(arguments: &Arguments) -> Result<Store> {
    let directory = arguments.store.as_ref().context("--store DIRECTORY is missing")?;
    Ok(Store::open(directory, BTreeMap::new())?)
}

fn add(arguments: &Arguments, name: &str) -> Result<()> {
    let store = store(arguments)?;
    let base = match &arguments.from {
        Some(_) if !arguments.packages.is_empty() => {
            bail!("--from and --packages exclude each other")
        }
        Some(path) => base::import::import(&store, name, path)?,
        None => base::debian::make(&store, name, &arguments.packages)?,
    };
    println!("{} {}", base.name, base.digest());
    Ok(())
}
