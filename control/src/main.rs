//! `rotifer`: the daemon, and what its users need on the command line.

use std::io::Write;
use std::process::ExitCode;

use rotifer_control::cli::{self, Command};
use rotifer_control::{bases, commands, doctor, report, serve};

/// The exit status for a command line that is refused.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let mut failure = ExitCode::FAILURE;
    let result: Result<ExitCode, Box<dyn std::error::Error>> =
        match cli::parse(std::env::args_os().skip(1)) {
            Ok(Command::Help) => {
                return print(&cli::table::help());
            }
            Ok(Command::Version) => {
                return print(&format!("rotifer {}\n", env!("CARGO_PKG_VERSION")));
            }
            Ok(Command::Completions(shell)) => {
                return print(&shell.script());
            }
            Ok(Command::Doctor(wish)) => doctor::run(&wish).map_err(Into::into),
            Ok(Command::Base(wish)) => done(bases::run(&wish)),
            Ok(Command::Serve(options)) => done(serve::run(&options)),
            Ok(Command::Env { state }) => done(serve::print_env(&state)),
            Ok(Command::Ask(request)) => {
                failure = request.what.failure();
                commands::run(&request).map_err(Into::into)
            }
            Err(error) => {
                eprintln!("rotifer: {}", report(&error));
                return WRONG_USAGE.into();
            }
        };
    match result {
        Ok(status) => status,
        Err(error) => {
            eprintln!("rotifer: {}", report(&*error));
            failure
        }
    }
}

/// Who does not want to read it all may go.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn done<E: std::error::Error + 'static>(
    result: Result<(), E>,
) -> Result<ExitCode, Box<dyn std::error::Error>> {
    result.map(|()| ExitCode::SUCCESS).map_err(Into::into)
}
