//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::guest::Load;

/// Measures a VMM, alone or in turns with another one
#[derive(Debug, Clone, Parser)]
#[command(name = "rotifer-benches")]
pub struct Arguments {
    /// The benchmark; see --list
    #[arg(value_name = "NAME", required_unless_present = "list")]
    name: Option<String>,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the results into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Another VMM with Firecracker's command line and configuration, measured in turns with ours
    #[arg(long, value_name = "PATH")]
    pub peer: Option<PathBuf>,
    /// Fewer rounds and less data: enough to see that it works, too little for figures
    #[arg(long)]
    pub quick: bool,
    /// Measure only these ways of bringing a guest's memory back, such as `copy,shared`; with resume,
    /// suspend, clone and fault
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub ways: Vec<String>,
    /// Measure only guests of so many MiB, and no web app; with resume
    #[arg(long, value_name = "MIB", value_delimiter = ',')]
    pub memory_mib: Vec<u64>,
    /// List the benchmarks
    #[arg(long)]
    list: bool,
}

/// What was asked for.
#[derive(Debug)]
pub enum Command {
    /// Say which benchmarks there are.
    List,
    /// Run one.
    Measure(Arguments),
    /// Make load: this is the copy of us inside a guest.
    Guest(Load),
}

#[derive(Debug, Parser)]
#[command(name = "rotifer-benches guest")]
struct GuestArguments {
    #[command(subcommand)]
    load: Load,
}

impl Arguments {
    /// What our own arguments ask for; on a wrong one this ends the process with status 2.
    pub fn command() -> Command {
        let mut words: Vec<_> = std::env::args_os().collect();
        if words.get(1).is_some_and(|word| word == "guest") {
            words.remove(1);
            return Command::Guest(GuestArguments::parse_from(words).load);
        }
        let arguments = Self::parse_from(words);
        if arguments.list { Command::List } else { Command::Measure(arguments) }
    }

    /// The benchmark's name.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_needed_unless_the_list_is_wanted() {
        assert!(Arguments::try_parse_from(["rotifer-benches"]).is_err());
        assert!(Arguments::try_parse_from(["rotifer-benches", "--list"]).unwrap().list);
        let words = ["rotifer-benches", "boot", "--peer", "firecracker", "--json", "b", "--quick"];
        let arguments = Arguments::try_parse_from(words).unwrap();
        assert_eq!(arguments.name(), "boot");
        assert_eq!(arguments.peer, Some("firecracker".into()));
        assert!(arguments.quick);
    }

    #[test]
    fn the_load_of_a_guest_is_described_by_words() {
        let words = ["x", "block", "/dev/vda", "--operation", "read", "--order", "random"];
        let more = ["--block-bytes", "4096", "--in-flight", "16", "--count", "100"];
        let parsed = GuestArguments::try_parse_from(words.iter().chain(&more)).unwrap();
        let Load::Block(load) = parsed.load else { panic!("not a block load") };
        assert_eq!((load.block_bytes, load.in_flight, load.count), (4096, 16, 100));
    }
}
