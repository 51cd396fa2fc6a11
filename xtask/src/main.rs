//! The project's own tool, started by `./x`.

mod disk;
mod host;
mod native;
mod paths;
mod runner;
mod step;

use std::{path::PathBuf, process::exit};

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
    /// Run an ARM64 program on the host, as cargo's runner does
    Runner {
        #[command(flatten)]
        which: host::Which,
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
        Command::Runner { which, program, arguments } => {
            runner::main(&paths, which.variant, &program, &arguments)
        }
    }
}
