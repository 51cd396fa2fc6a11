//! `./x host`: the emulated ARM64 host, and on an ARM64 machine the machine itself.

pub mod artifacts;
pub mod client;
pub mod instance;
pub mod modules;
pub mod qemu;
pub mod qmp;
pub mod variant;

use std::{env, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use host_init::message::Job;

use self::{client::Input, instance::Instance, variant::Variant};
use crate::{native, paths::Paths, step::say};

/// What can be done with the host.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Start it, from a saved state where there is one
    Start(Which),
    /// Run a command on it, starting it first if needed
    Exec(Exec),
    /// Run a command on a host that is started for it and stopped after it
    Run(Exec),
    /// Open a terminal on it
    Shell(Which),
    /// End it
    Stop(Stop),
    /// Whether it runs; exit status 3 if not
    Status(Which),
    /// List the variants and which of them run
    List,
    /// Make a TCP port of it reachable on this machine's loopback; prints HOST:PORT
    Forward(Forward),
    /// Show what its console printed
    Log(Which),
}

/// Which host is meant.
#[derive(Debug, Args)]
pub struct Which {
    /// The kind of machine
    #[arg(long, value_enum, env = "ROTIFER_HOST_VARIANT", default_value = "gicv3")]
    pub variant: Variant,
}

/// A command for the host.
#[derive(Debug, Args)]
pub struct Exec {
    #[command(flatten)]
    which: Which,
    /// End the command after so many seconds, with status 124
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Give the command a terminal
    #[arg(long, short = 't')]
    terminal: bool,
    /// Do not pass our input on
    #[arg(long, short = 'n')]
    no_input: bool,
    /// Kill what the command leaves running in the background
    #[arg(long)]
    kill_leftovers: bool,
    /// Set a variable for the command
    #[arg(long, short = 'e', value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// One word is run by a shell; several are a program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// What to end.
#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    which: Which,
    /// Every variant
    #[arg(long)]
    all: bool,
}

/// What to forward.
#[derive(Debug, Args)]
pub struct Forward {
    #[command(flatten)]
    which: Which,
    /// The TCP port on the emulated host
    port: u16,
}

const NOT_RUNNING: i32 = 3;

/// Runs one of the commands; the result is our exit status.
pub fn main(command: HostCommand, paths: &Paths) -> Result<i32> {
    if native::is_arm64() {
        return on_this_machine(command);
    }
    match command {
        HostCommand::Start(which) => {
            Instance::new(paths, which.variant)?.connect()?;
            Ok(0)
        }
        HostCommand::Exec(exec) => {
            let instance = Instance::new(paths, exec.which.variant)?;
            run_in(&instance, &exec)
        }
        HostCommand::Run(exec) => {
            let instance = Instance::new(paths, exec.which.variant)?;
            let was_running = instance.is_running();
            let status = run_in(&instance, &exec);
            if !was_running {
                instance.stop()?;
            }
            status
        }
        HostCommand::Shell(which) => shell(&Instance::new(paths, which.variant)?),
        HostCommand::Stop(stop) => {
            let one = [stop.which.variant];
            for variant in if stop.all { Variant::value_variants() } else { &one } {
                if Instance::new(paths, *variant)?.stop()? {
                    say(&format!("the emulated {} host is stopped", variant.name()));
                }
            }
            Ok(0)
        }
        HostCommand::Status(which) => {
            let running = Instance::new(paths, which.variant)?.is_running();
            println!("{} {}", which.variant.name(), if running { "running" } else { "stopped" });
            Ok(if running { 0 } else { NOT_RUNNING })
        }
        HostCommand::List => list(paths),
        HostCommand::Forward(forward) => {
            println!(
                "{}",
                forward_port(&Instance::new(paths, forward.which.variant)?, forward.port)?
            );
            Ok(0)
        }
        HostCommand::Log(which) => {
            println!("{}", Instance::new(paths, which.variant)?.console_tail());
            Ok(0)
        }
    }
}

fn list(paths: &Paths) -> Result<i32> {
    for variant in Variant::value_variants() {
        let state =
            if Instance::new(paths, *variant)?.is_running() { "running" } else { "stopped" };
        let help = variant.to_possible_value().and_then(|value| value.get_help().cloned());
        println!("{:<10} {state:<8} {}", variant.name(), help.unwrap_or_default());
    }
    Ok(0)
}

fn run_in(instance: &Instance, exec: &Exec) -> Result<i32> {
    let mut job = job(words(&exec.command), false)?;
    job.kill_leftovers = exec.kill_leftovers;
    for pair in &exec.env {
        let (name, value) = pair.split_once('=').with_context(|| format!("no = in -e {pair}"))?;
        job.environment.push((name.to_owned(), value.to_owned()));
    }
    if exec.terminal {
        job.terminal = Some(client::terminal_size().context("-t wants a terminal as input")?);
    }
    let input = if exec.no_input { Input::Nothing } else { Input::Ours };
    instance.connect()?.run(job, input, exec.timeout.map(Duration::from_secs))
}

fn shell(instance: &Instance) -> Result<i32> {
    let mut job = job(vec!["/bin/sh".into(), "-l".into()], false)?;
    job.terminal = Some(client::terminal_size().context("a shell wants a terminal as input")?);
    job.environment.push(("PS1".into(), format!("{}:\\w# ", instance.variant.name())));
    instance.connect()?.run(job, Input::Ours, None)
}

/// One word is a shell's command line, as with ssh.
fn words(command: &[String]) -> Vec<String> {
    match command {
        [line] => vec!["/bin/sh".into(), "-c".into(), line.clone()],
        words => words.to_vec(),
    }
}

/// A job with the directory and the environment that it would have here.
pub fn job(argv: Vec<String>, kill_leftovers: bool) -> Result<Job> {
    let directory = env::current_dir().context("cannot tell the current directory")?;
    let passed = |name: &str| {
        ["ROTIFER_", "RUST_", "CARGO_", "TERM"].iter().any(|prefix| name.starts_with(prefix))
    };
    let environment = env::vars().filter(|(name, _)| passed(name)).collect();
    let directory = directory.to_string_lossy().into_owned();
    Ok(Job { argv, environment, directory, terminal: None, kill_leftovers })
}

/// Asks QEMU to listen on a free loopback port for a port of the machine.
fn forward_port(instance: &Instance, port: u16) -> Result<String> {
    instance.connect().map(drop)?;
    let free = std::net::TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .context("no free loopback port")?;
    let answer = qmp::Qmp::connect(&instance.socket())?
        .monitor(&format!("hostfwd_add net tcp:127.0.0.1:{}-:{port}", free.port()))?;
    if !answer.is_empty() {
        bail!("QEMU cannot forward port {port}: {answer}");
    }
    Ok(free.to_string())
}

/// An ARM64 machine is its own host: there is nothing to start or to stop.
fn on_this_machine(command: HostCommand) -> Result<i32> {
    match command {
        HostCommand::Exec(exec) | HostCommand::Run(exec) => native::run(&words(&exec.command), &[]),
        HostCommand::Shell(_) => {
            let shell = env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into());
            native::run(&[shell], &[])
        }
        HostCommand::Forward(forward) => {
            println!("127.0.0.1:{}", forward.port);
            Ok(0)
        }
        HostCommand::Start(_) | HostCommand::Status(_) | HostCommand::List => {
            native::require_kvm()?;
            println!("this machine is the host: it has ARM64 and /dev/kvm");
            Ok(0)
        }
        HostCommand::Stop(_) | HostCommand::Log(_) => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_is_for_the_shell_and_several_are_not() {
        assert_eq!(words(&["echo $HOME".into()]), ["/bin/sh", "-c", "echo $HOME"]);
        assert_eq!(words(&["echo".into(), "$HOME".into()]), ["echo", "$HOME"]);
    }
}
