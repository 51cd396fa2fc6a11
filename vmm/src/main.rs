//! `rotifer-vmm`: runs one microVM.

use std::process::ExitCode;

use rotifer_vmm::cli::{self, Command};
use rotifer_vmm::config::report;
use rotifer_vmm::outcome::WRONG_USAGE;
use rotifer_vmm::run;

fn main() -> ExitCode {
    let options = match cli::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(options)) => options,
        Ok(Command::Tool(tool)) => return tool.run().into(),
        Ok(Command::Fork(fork)) => return fork.run().into(),
        Ok(Command::Pager(pager)) => return pager.run().into(),
        Ok(Command::Help) => {
            print!("{}", cli::HELP);
            return ExitCode::SUCCESS;
        }
        Ok(Command::Version) => {
            println!("rotifer-vmm {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("rotifer-vmm: {}", report(&error));
            return WRONG_USAGE.into();
        }
    };
    share_one_heap();
    match run::run(options) {
        Ok(outcome) => {
            tracing::info!("{}", outcome.text());
            outcome.into()
        }
        Err(error) => {
            eprintln!("rotifer-vmm: {}", report(&error));
            error.status().into()
        }
    }
}

/// Without this the C library gives each thread a heap of its own when it first allocates: four system
/// calls and some pages each, on the way to the guest's first instruction. Threads of ours allocate
/// little, and never while a guest waits.
fn share_one_heap() {
    // SAFETY: the call takes two numbers, and no other thread exists that could allocate meanwhile.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
