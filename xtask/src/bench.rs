//! `./x bench`: benchmarks on the host, in real time or in counted instructions.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{
    cargo,
    host::{instance::Instance, variant::Variant},
    image::{self, Artifact},
    native,
    paths::Paths,
    runner::{self, Run},
    step::say,
};

/// The benchmark of the daemon; the others start VMMs only.
const CONTROL_PLANE: &str = "api";

/// Which benchmarks, and how.
#[derive(Debug, clap::Args)]
pub struct BenchArguments {
    /// Benchmarks, as `--list` shows them
    #[arg(required_unless_present = "list")]
    names: Vec<String>,
    /// Show the benchmarks
    #[arg(long)]
    list: bool,
    /// Measure in instructions, not in time: slower, but free of noise
    #[arg(long)]
    counted: bool,
    /// The kind of host
    #[arg(long, value_enum, env = "ROTIFER_HOST_VARIANT", conflicts_with = "counted")]
    variant: Option<Variant>,
    /// Write the results to this file; with several benchmarks, NAME is put before its extension
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the results into this file, likewise
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Another VMM with Firecracker's interface, measured in turns with ours
    #[arg(long, value_name = "PATH")]
    peer: Option<PathBuf>,
    /// Fewer rounds: enough to see that it works
    #[arg(long)]
    quick: bool,
    /// Measure only these ways of bringing a guest's memory back, such as `copy,shared`; with resume,
    /// suspend, clone and fault
    #[arg(long, value_name = "NAMES")]
    ways: Option<String>,
    /// Measure only guests of so many MiB, and no web app; with resume
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<String>,
}

/// Runs the benchmarks one after the other; the first failure ends it.
pub fn main(paths: &Paths, arguments: &BenchArguments) -> Result<i32> {
    let program = cargo::build(paths, "rotifer-benches", "rotifer-benches")?;
    let default = if arguments.counted { Variant::Counted } else { Variant::Gicv3 };
    let variant = arguments.variant.unwrap_or(default);
    if arguments.counted && native::is_arm64() {
        say("this machine cannot count instructions: measuring time");
    }
    let run = |words: Vec<String>| {
        runner::run(paths, &Run { variant, program: &program, arguments: &words, timeout: None })
    };
    if arguments.list {
        return run(vec!["--list".into()]);
    }
    image::make(paths, &image::ALL)?;
    if arguments.names.iter().any(|name| name == CONTROL_PLANE) {
        image::make(paths, &[Artifact::Build, Artifact::Rotifer])?;
    }
    let mut status = 0;
    for name in &arguments.names {
        status = run(words(name, arguments)?)?;
        if status != 0 {
            break;
        }
    }
    if variant == Variant::Counted && !native::is_arm64() {
        // Its clock leaps over idle time, so that it never rests.
        Instance::new(paths, variant)?.stop()?;
    }
    Ok(status)
}

fn words(name: &str, arguments: &BenchArguments) -> Result<Vec<String>> {
    let mut words = vec![name.to_owned()];
    let several = arguments.names.len() > 1;
    for (option, path) in [("--json", &arguments.json), ("--svg", &arguments.svg)] {
        if let Some(path) = path {
            let path = if several { with_name(path, name) } else { path.clone() };
            let path =
                std::path::absolute(&path).with_context(|| format!("cannot use {path:?}"))?;
            words.extend([option.to_owned(), path.to_string_lossy().into_owned()]);
        }
    }
    if let Some(peer) = &arguments.peer {
        let peer = peer.canonicalize().with_context(|| format!("there is no VMM at {peer:?}"))?;
        words.extend(["--peer".to_owned(), peer.to_string_lossy().into_owned()]);
    }
    for (option, value) in [("--ways", &arguments.ways), ("--memory-mib", &arguments.memory_mib)] {
        words.extend(value.iter().flat_map(|value| [option.to_owned(), value.clone()]));
    }
    if arguments.quick {
        words.push("--quick".to_owned());
    }
    Ok(words)
}

fn with_name(path: &std::path::Path, name: &str) -> PathBuf {
    let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
    path.with_extension(format!("{name}.{extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_benchmarks_write_several_files() {
        let path = with_name(std::path::Path::new("out/results.json"), "boot");
        assert_eq!(path, PathBuf::from("out/results.boot.json"));
    }
}
