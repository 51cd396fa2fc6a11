//! `rotifer-vmm`: runs one microVM.
//!
//! It has C's `main` and not Rust's, whose start reads the process's memory map to find the stack's end, and gives each
//! thread a stack for signals: 0.2 ms of the 5 that a resume takes. What that start does beside is done here.

#![no_main]

use std::ffi::{c_char, c_int};

use rotifer_vmm::cli::{self, Command};
use rotifer_vmm::config::report;
use rotifer_vmm::outcome::WRONG_USAGE;
use rotifer_vmm::run;

// SAFETY: the C library calls a function of this name and type, once, and the library defines no other one.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    set_up_process();
    // Writes what is left of the standard output, too.
    std::process::exit(status().into());
}

fn status() -> u8 {
    let options = match cli::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(options)) => options,
        Ok(Command::Tool(tool)) => return tool.run(),
        Ok(Command::Fork(fork)) => return fork.run(),
        Ok(Command::Pager(pager)) => return pager.run(),
        Ok(Command::Help) => {
            print!("{}", cli::HELP);
            return 0;
        }
        Ok(Command::Version) => {
            println!("rotifer-vmm {}", env!("CARGO_PKG_VERSION"));
            return 0;
        }
        Err(error) => {
            eprintln!("rotifer-vmm: {}", report(&error));
            return WRONG_USAGE;
        }
    };
    match run::run(options) {
        Ok(outcome) => {
            tracing::info!("{}", outcome.text());
            outcome.status()
        }
        Err(error) => {
            eprintln!("rotifer-vmm: {}", report(&error));
            error.status()
        }
    }
}

/// What must be so before the first file is opened and the first thread begins.
fn set_up_process() {
    // SAFETY: nobody else runs yet. The calls take numbers, a string that lives for ever, and no function of ours.
    unsafe {
        // Who writes to a pipe that nobody reads gets an error, and the process goes on.
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        // A file that is opened must not become a standard stream that was closed, and get messages.
        for stream in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
            if libc::fcntl(stream, libc::F_GETFD) < 0 {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            }
        }
        // Without this the C library gives each thread a heap of its own when it first allocates: four
        // system calls and some pages each, on the way to the guest's first instruction. Threads of ours
        // allocate little, and never while a guest waits.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
