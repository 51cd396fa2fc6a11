//! The project's own tool, started by `./x`.

mod archive;
mod cargo;
mod debian;
mod disk;
mod host;
mod image;
mod native;
mod paths;
mod runner;
mod step;
mod test;

use std::{path::PathBuf, process::exit, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand};

use self::{host::HostCommand, paths::Paths};

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
            runner::main(&paths, which.variant, &program, &arguments, timeout)
        }
        Command::Test(arguments) => test::main(&paths, &arguments),
    }
}
