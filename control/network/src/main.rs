//! `rotifer-network`: networks for microVMs, by hand or for a test. See docs/networks.md.

use std::{
    io::{self, Write},
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use rotifer_network::{
    chain,
    drops::Drops,
    files::{Name, ROOT},
    guest,
    host::{Host, Network, Options},
    namespace,
    policy::{Policy, Verdicts},
    serve,
};

/// Networks for microVMs: a namespace each, with a tap, a way out and an egress policy.
#[derive(Debug, Parser)]
#[command(name = "rotifer-network", version)]
struct Cli {
    /// Where networks are written down
    #[arg(long, global = true, value_name = "DIR", default_value = ROOT)]
    root: PathBuf,
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a network
    Create {
        /// a-z, 0-9 and -, at most 63
        name: Name,
        #[command(flatten)]
        policy: PolicyArgument,
        /// A user id that may open the tap without other rights
        #[arg(long, value_name = "UID")]
        tap_user: Option<u32>,
        /// A process with which the network ends (`serve` and `sweep` see to it)
        #[arg(long, value_name = "PID")]
        owner: Option<i32>,
    },
    /// Make a network, run a command in it, and remove it when the command has ended
    Run {
        /// a-z, 0-9 and -, at most 63
        name: Name,
        #[command(flatten)]
        policy: PolicyArgument,
        /// The command, after --
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a command in a network
    Exec {
        /// Of a network
        name: Name,
        /// Run it as this user
        #[arg(long)]
        uid: Option<u32>,
        /// Run it as this group
        #[arg(long)]
        gid: Option<u32>,
        /// The command, after --
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Put another policy in place, at once and for open connections too; or show it
    Policy {
        /// Of a network
        name: Name,
        /// internet, none, or a file of JSON; shows the present policy if left out
        policy: Option<String>,
    },
    /// Show networks
    Show {
        /// Only this one
        name: Option<Name>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a guest was refused
    Drops {
        /// Of a network
        name: Name,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a network
    Delete {
        /// Of a network
        name: Name,
    },
    /// Remove what crashes left behind, and networks whose owner has ended
    Sweep {
        /// Every network, the pool and the host's rules too
        #[arg(long)]
        all: bool,
    },
    /// Show how many namespaces are ready, or make more ready
    Pool {
        /// Fill it up to this many
        #[arg(long, value_name = "COUNT")]
        fill: Option<usize>,
    },
    /// Answer guests' questions for names, and keep a pool ready
    Serve {
        /// A resolver to ask in place of those of /etc/resolv.conf
        #[arg(long, value_name = "ADDRESS:PORT")]
        upstream: Vec<SocketAddr>,
        /// How many namespaces to keep ready
        #[arg(long, value_name = "COUNT", default_value_t = 0)]
        pool: usize,
    },
    /// Say whether this host can have networks, and what it lacks
    Doctor,
}

#[derive(Debug, clap::Args)]
struct PolicyArgument {
    /// What the guest may reach: internet, none, or a file of JSON
    #[arg(long, default_value = "internet")]
    policy: String,
}

impl PolicyArgument {
    fn read(&self) -> Result<Policy> {
        read_policy(&self.policy)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match act(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rotifer-network: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn act(cli: Cli) -> Result<ExitCode> {
    let host = Host::open(&cli.root)?;
    match cli.command {
        Action::Create { name, policy, tap_user, owner } => {
            host.create(&name, &policy.read()?, Options { tap_user, owner_pid: owner })?;
        }
        Action::Run { name, policy, command } => {
            return run(&host, &name, &policy.read()?, &command);
        }
        Action::Exec { name, uid, gid, command } => {
            let namespace = host.namespace(&name)?;
            namespace::enter(&namespace)?;
            let mut command = prepare(&command)?;
            gid.map(|gid| command.gid(gid));
            uid.map(|uid| command.uid(uid));
            return Err(command.exec()).context(format!("cannot run {:?}", command.get_program()));
        }
        Action::Policy { name, policy: Some(policy) } => {
            host.set_policy(&name, &read_policy(&policy)?)?;
        }
        Action::Policy { name, policy: None } => {
            print(&serde_json::to_string(&host.record(&name)?.policy)?)?;
        }
        Action::Show { name, json } => {
            let networks = match name {
                Some(name) => vec![host.network(&name)?],
                None => host.networks()?,
            };
            print(&if json { serde_json::to_string_pretty(&networks)? } else { table(&networks) })?;
        }
        Action::Drops { name, json } => {
            let drops = host.drops(&name)?;
            print(&if json { serde_json::to_string_pretty(&drops)? } else { listing(&drops) })?;
        }
        Action::Delete { name } => host.delete(&name)?,
        Action::Sweep { all } => {
            let swept = host.sweep(all)?;
            print(&serde_json::to_string(&swept)?)?;
            if !swept.failures.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Action::Pool { fill } => {
            while host.pool_size()? < fill.unwrap_or(0) {
                host.add_to_pool(&Policy::internet())?;
            }
            print(&host.pool_size()?.to_string())?;
        }
        Action::Serve { upstream, pool } => {
            log();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let options = serve::Options {
                upstreams: upstream,
                pool_size: pool,
                pool_policy: Policy::internet(),
            };
            runtime.block_on(serve::run(host, options))?;
        }
        Action::Doctor => return doctor(&host),
    }
    Ok(ExitCode::SUCCESS)
}

/// For whoever reads the standard error; `RUST_LOG` says how much.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
}

fn run(host: &Host, name: &Name, policy: &Policy, command: &[String]) -> Result<ExitCode> {
    let own = i32::try_from(std::process::id()).context("our process number")?;
    host.create(name, policy, Options { owner_pid: Some(own), ..Options::default() })?;
    let status =
        prepare(command).and_then(|mut command| Ok(host.start(name, &mut command)?.wait()?));
    host.delete(name)?;
    let code = status?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn prepare(words: &[String]) -> Result<Command> {
    let Some((program, arguments)) = words.split_first() else { bail!("there is no command") };
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

fn read_policy(text: &str) -> Result<Policy> {
    match text {
        "none" => Ok(Policy::none()),
        "internet" => Ok(Policy::internet()),
        path => {
            let json = std::fs::read_to_string(path).with_context(|| {
                format!("cannot read the policy {path:?}: it is internet, none, or a file")
            })?;
            Policy::parse(&json).with_context(|| format!("cannot use the policy {path:?}"))
        }
    }
}

fn table(networks: &[Network]) -> String {
    let mut text = format!("{:<24} {:<12} {:<16} POLICY", "NAME", "INTERFACE", "ADDRESS");
    for network in networks {
        let allowed: Vec<String> =
            network.policy.allow.iter().take(4).map(ToString::to_string).collect();
        let more = network.policy.allow.len().saturating_sub(allowed.len());
        let policy = if allowed.is_empty() { "none".into() } else { allowed.join(" ") };
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let address = network.address.to_string();
        text += &format!(
            "\n{:<24} {:<12} {address:<16} {policy}{more}",
            network.name, network.interface
        );
    }
    text
}

fn listing(drops: &Drops) -> String {
    let mut text = String::new();
    for (what, count) in [
        ("refused by the policy", drops.policy),
        ("from outside, unasked", drops.unasked),
        ("invalid", drops.invalid),
        ("with a false sender", drops.spoofed),
        ("neither IPv4 nor ARP", drops.not_ipv4),
    ] {
        text += &format!("{what:<24} {:>8} packets {:>10} bytes\n", count.packets, count.bytes);
    }
    for destination in &drops.destinations {
        text += &format!(
            "{}:{}/{} {} packets, {} s ago\n",
            destination.address,
            destination.port,
            destination.protocol,
            destination.count.packets,
            destination.idle_ms / 1000
        );
    }
    text.trim_end().to_owned()
}

fn doctor(host: &Host) -> Result<ExitCode> {
    if let Err(error) = host.try_out() {
        print(&format!("this host can have no networks: {}", chain(&error)))?;
        return Ok(ExitCode::FAILURE);
    }
    let verdicts: Verdicts = host.verdicts(&Policy::internet())?;
    let first = verdicts.addresses.iter().next();
    let mac = guest::mac_text(guest::MAC);
    print(&format!(
        "this host can have networks\nguests are {}/{} with MAC {mac} on {}, their router and \
         resolver is {}{}",
        guest::ADDRESS,
        guest::PREFIX,
        guest::TAP,
        guest::GATEWAY,
        if first.is_none() { "; no public address is left" } else { "" }
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").context("cannot write to the output")
}
