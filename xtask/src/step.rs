//! Running other programs, and saying what is going on meanwhile.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// Announces a step that may take long; says how long it took.
pub fn step<T>(what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    say(&format!("{what} ..."));
    let result = action().with_context(|| format!("this step failed: {what}"))?;
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
