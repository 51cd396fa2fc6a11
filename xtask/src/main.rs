//! The project's own tool, started by `./x`.

mod archive;
mod bench;
mod cargo;
mod debian;
mod demo;
mod disk;
mod doctor;
mod host;
mod image;
mod native;
mod paths;
mod python;
mod runner;
mod step;
mod test;

use std::{fs, io::ErrorKind, path::PathBuf, process::exit, time::Duration};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};

use self::{host::HostCommand, paths::Paths, runner::Run};

/// Rotifer's development tool.
#[derive(Debug, Parser)]
#[command(name = "x", bin_name = "./x", disable_help_subcommand = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The emulated ARM64 host: start it, run commands on it, stop it
    #[command(subcommand)]
    Host(HostCommand),
    /// Run a web app in a microVM, then the guide to Lambda MicroVMs with the AWS CLI
    Demo(host::Which),
    /// Run benchmarks on the host
    Bench(bench::BenchArguments),
    /// Format all code
    Fmt,
    /// Run clippy as the tests do, for this machine and for ARM64
    Clippy,
    /// Say what this machine has and lacks
    Doctor,
    /// Stop the hosts and remove what they keep: saved states, disks, staged programs
    Clean {
        /// And everything else in the cache: toolchain, kernels, images
        #[arg(long)]
        all: bool,
    },
    /// Run the tests, or parts of them
    Test(test::TestArguments),
    /// Make what guests are made of, in target/artifacts: VMM, kernel, initramfs, root disk
    Image {
        /// Only these
        parts: Vec<image::Artifact>,
    },
    /// Build the guest kernel, or find it in the cache, and print its path
    Kernel,
    /// Run an ARM64 program on the host, as cargo's runner does
    Runner {
        #[command(flatten)]
        which: host::Which,
        /// End the program after so many seconds, with status 124
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// The program
        program: PathBuf,
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// The exit status when this tool fails, not what it runs.
const FAILED: i32 = 125;

fn main() {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(status) => exit(status),
        Err(error) => {
            step::say(&format!("error: {error:#}"));
            exit(FAILED);
        }
    }
}

fn run(command: Command) -> Result<i32> {
    let paths = Paths::find()?;
    match command {
        Command::Host(command) => host::main(command, &paths),
        Command::Image { parts } => {
            image::make(&paths, if parts.is_empty() { &image::ALL } else { &parts })?;
            println!("{}", image::directory(&paths).display());
            Ok(0)
        }
        Command::Kernel => {
            println!("{}", image::kernel(&paths)?.display());
            Ok(0)
        }
        Command::Runner { which, timeout, program, arguments } => {
            let timeout = timeout.map(Duration::from_secs);
            let (variant, program, arguments) = (which.variant, &program, &arguments);
            runner::run(&paths, &Run { variant, program, arguments, timeout })
        }
        Command::Demo(which) => demo::main(&paths, which.variant),
        Command::Bench(arguments) => bench::main(&paths, &arguments),
        Command::Doctor => doctor::main(&paths),
        Command::Clean { all } => clean(&paths, all),
        Command::Fmt => {
            let mut cargo = paths.cargo();
            step::run(cargo.args(["fmt", "--all"])).map(|()| 0)
        }
        Command::Clippy => test::main(&paths, &test::TestArguments::of(&["clippy"])),
        Command::Test(arguments) => test::main(&paths, &arguments),
    }
}

/// Hosts first, since they use what is removed.
fn clean(paths: &Paths, all: bool) -> Result<i32> {
    for variant in host::variant::Variant::value_variants() {
        host::instance::Instance::new(paths, *variant)?.stop()?;
    }
    let directory = if all { paths.cache.clone() } else { paths.cache.join("host") };
    step::say(&format!("removing {}", directory.display()));
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {directory:?}"))
        }
        _ => Ok(0),
    }
}
