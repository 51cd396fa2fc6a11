//! An ARM64 machine with KVM runs everything itself.

use std::{fs::OpenOptions, io::ErrorKind, os::unix::process::ExitStatusExt, process::Command};

use anyhow::{Context, Result, bail};

const KVM: &str = "/dev/kvm";

/// Whether this machine needs no emulated host.
pub fn is_arm64() -> bool {
    cfg!(target_arch = "aarch64")
}

/// Fails, with the remedy, when this machine's KVM cannot be used.
pub fn require_kvm() -> Result<()> {
    let Err(error) = OpenOptions::new().read(true).write(true).open(KVM) else { return Ok(()) };
    match error.kind() {
        ErrorKind::NotFound => bail!(
            "this machine has no {KVM}: use a bare-metal instance or a Raspberry Pi, or enable \
             nested virtualization, and load the kernel's kvm support"
        ),
        ErrorKind::PermissionDenied => bail!(
            "{KVM} may not be opened by this user: run `sudo usermod -aG kvm $USER` and log in again"
        ),
        _ => Err(error).context(format!("cannot open {KVM}")),
    }
}

/// Runs the command here; the result is its exit status as a shell has it.
pub fn run(words: &[String], variables: &[(String, String)]) -> Result<i32> {
    require_kvm()?;
    let (program, arguments) = words.split_first().context("no command was given")?;
    let status = Command::new(program)
        .args(arguments)
        .envs(variables.iter().cloned())
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}
