//! The terminal on standard input in raw mode, so that keys such as ^C reach the guest, and back
//! again however the process ends.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

/// As the terminal was found. Set once: a process has one standard input.
static FOUND: OnceLock<Termios> = OnceLock::new();

/// The terminal in raw mode until this is dropped. A panic restores it as well.
#[must_use = "the terminal is restored as soon as this is dropped"]
pub struct Raw(());

impl Raw {
    /// Switches the terminal on standard input. None without a terminal, or where it belongs to
    /// another process group, which changing it would disturb.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !in_foreground(&stdin) {
            return Ok(None);
        }
        let found = tcgetattr(&stdin)?;
        let mut raw = found.clone();
        raw.make_raw();
        // Our own messages end their lines with a line feed only.
        raw.output_modes = found.output_modes;
        if FOUND.set(found).is_ok() {
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                hook(panic);
            }));
        }
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether `file` is a terminal that this process may read and change.
pub fn in_foreground(file: &(impl AsFd + IsTerminal)) -> bool {
    file.is_terminal() && tcgetpgrp(file).is_ok_and(|group| group == getpgrp())
}

/// Puts the terminal back as it was found, for a process that ends without dropping [`Raw`].
pub fn restore() {
    if let Some(found) = FOUND.get() {
        // There is nobody left to tell of a failure.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, found);
    }
}
