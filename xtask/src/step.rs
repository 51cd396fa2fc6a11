//! Running other programs, and saying what is going on meanwhile.

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// How often a long step says that it goes on.
const REMINDER: Duration = Duration::from_secs(20);

/// Announces a step that may take long, says now and then that it goes on, and how long it took.
pub fn step<T>(what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    say(&format!("{what} ..."));
    let (done, is_done) = mpsc::channel::<()>();
    let result = thread::scope(|scope| {
        scope.spawn(move || {
            while is_done.recv_timeout(REMINDER) == Err(RecvTimeoutError::Timeout) {
                say(&format!("{what}: {} s so far", start.elapsed().as_secs()));
            }
        });
        let result = action();
        drop(done);
        result
    });
    let result = result.with_context(|| format!("this step failed: {what}"))?;
    say(&format!("{what}: done in {:.1} s", start.elapsed().as_secs_f64()));
    Ok(result)
}

/// One line for the person who waits.
pub fn say(text: &str) {
    let _nobody_listens = writeln!(std::io::stderr(), "[rotifer] {text}");
}

/// Runs a program with our own streams; anything but success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("cannot run {shown}"))?;
    if !status.success() {
        bail!("{shown} failed ({status})");
    }
    Ok(())
}

/// Runs a program for its output; its error output is ours.
pub fn output_of(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!("{shown} failed ({})", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{shown} printed no text"))
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
