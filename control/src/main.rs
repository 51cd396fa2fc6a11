//! `rotifer`: the daemon, and what its users need on the command line.

use std::process::ExitCode;

use rotifer_control::cli::{self, Command};
use rotifer_control::{commands, report, serve};

/// The exit status for a command line that is refused.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let result: Result<(), Box<dyn std::error::Error>> =
        match cli::parse(std::env::args_os().skip(1)) {
            Ok(Command::Help) => {
                print!("{}", cli::HELP);
                return ExitCode::SUCCESS;
            }
            Ok(Command::Version) => {
                println!("rotifer {}", env!("CARGO_PKG_VERSION"));
                return ExitCode::SUCCESS;
            }
            Ok(Command::Serve(options)) => serve::run(&options).map_err(Into::into),
            Ok(Command::Env { state }) => serve::print_env(&state).map_err(Into::into),
            Ok(Command::Ask(request)) => commands::run(&request).map_err(Into::into),
            Err(error) => {
                eprintln!("rotifer: {}", report(&error));
                return WRONG_USAGE.into();
            }
        };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rotifer: {}", report(&*error));
            ExitCode::FAILURE
        }
    }
}
