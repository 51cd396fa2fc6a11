//! Starting QEMU: from a saved state when there is one, else by booting, which then saves one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use host_init::message::PORT_COUNT;
use serde_json::json;

use super::{
    artifacts::Artifacts,
    client::Connection,
    instance::{BOOT_TIMEOUT, Instance},
    qmp::Qmp,
};
use crate::{
    paths::{Paths, digest},
    step::{output_of, say},
};

const MEMORY: &str = "4G";
const SAVE_TIMEOUT: Duration = Duration::from_secs(300);

/// Starts the machine of an instance that does not run.
pub fn start(instance: &Instance, paths: &Paths) -> Result<()> {
    let begin = Instant::now();
    let artifacts = Artifacts::prepare(paths, instance.variant.machine().pages)?;
    let saved = saved_state(instance, paths, &artifacts)?;
    let name = instance.variant.name();
    if saved.exists() {
        match launch(instance, &artifacts, Some(&saved)).and_then(|()| await_commands(instance)) {
            Ok(()) => {
                let seconds = begin.elapsed().as_secs_f64();
                say(&format!(
                    "the emulated {name} host runs, from its saved state, after {seconds:.1} s"
                ));
                return Ok(());
            }
            Err(error) => {
                say(&format!("the saved state does not work ({error:#}); booting instead"));
                instance.kill();
                fs::remove_file(&saved).with_context(|| format!("cannot remove {saved:?}"))?;
            }
        }
    }
    say(&format!("booting the emulated {name} host ({}) ...", artifacts.kernel_package));
    launch(instance, &artifacts, None)?;
    await_boot(instance)?;
    if let Err(error) = save(instance, &saved) {
        say(&format!("the next start has to boot, too: {error:#}"));
    }
    await_commands(instance)?;
    say(&format!("the emulated {name} host runs after {:.1} s", begin.elapsed().as_secs_f64()));
    Ok(())
}

/// The file for the state of exactly this machine; states of other machines are removed.
fn saved_state(instance: &Instance, paths: &Paths, artifacts: &Artifacts) -> Result<PathBuf> {
    let version = output_of(artifacts.qemu_command().arg("--version"))?;
    let identity = format!(
        "{version} {} {:?} {} {PORT_COUNT} {:?}",
        artifacts.kernel_package,
        artifacts.initramfs,
        MEMORY,
        instance.variant.machine()
    );
    let prefix = format!("saved-{}.", instance.variant.name());
    let wanted = format!("{prefix}{}", digest(identity.as_bytes()));
    let host = paths.cache.join("host");
    for entry in fs::read_dir(&host).with_context(|| format!("cannot list {host:?}"))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && name != wanted {
            let _another_start_may_have = fs::remove_file(entry.path());
        }
    }
    Ok(host.join(wanted))
}

fn launch(instance: &Instance, artifacts: &Artifacts, saved: Option<&Path>) -> Result<()> {
    for name in ["console", "qemu.log"] {
        let _not_there_at_first = fs::remove_file(instance.directory.join(name));
    }
    let mut command = artifacts.qemu_command();
    machine_arguments(&mut command, instance, artifacts);
    if let Some(saved) = saved {
        command.arg("-incoming").arg(format!("file:{}", saved.display()));
    }
    let output = command.output().context("cannot run QEMU")?;
    if !output.status.success() {
        bail!("QEMU does not start: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn machine_arguments(command: &mut Command, instance: &Instance, artifacts: &Artifacts) {
    let machine = instance.variant.machine();
    command.current_dir(&instance.directory);
    command.args(["-name", &format!("rotifer-{}", instance.variant.name())]);
    command.args(["-M", &format!("virt,virtualization=on,gic-version={}", machine.gic)]);
    command.args(["-cpu", machine.cpu]).args(machine.accel);
    command.args(["-smp", &machine.cpu_count.to_string(), "-m", MEMORY]);
    command.args(["-nodefaults", "-display", "none", "-no-reboot", "-daemonize"]);
    command.args(["-D", "qemu.log", "-serial", "file:console"]);
    command.args(["-qmp", "unix:qmp,server=on,wait=off"]);
    command.arg("-kernel").arg(&artifacts.kernel).arg("-initrd").arg(&artifacts.initramfs);
    command.args(["-append", "console=ttyAMA0 rdinit=/init panic=-1 quiet"]);
    command.args(["-device", &format!("virtio-serial-pci,max_ports={}", PORT_COUNT + 1)]);
    for number in 1..=PORT_COUNT {
        let socket = format!("socket,id=port{number},path=port-{number},server=on,wait=off");
        let port = format!("virtserialport,nr={number},chardev=port{number},name=rotifer.{number}");
        command.args(["-chardev", &socket, "-device", &port]);
    }
    for share in instance.shares() {
        let (tag, path) = (share.tag, share.path.replace(',', ",,"));
        let fsdev = format!("local,id={tag},path={path},security_model=none,multidevs=remap");
        let device = format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}");
        command.args(["-fsdev", &fsdev, "-device", &device]);
    }
    // Without a format layer, which a machine whose state is saved does not let go of.
    let disk = "driver=file,node-name=disk,filename=disk.ext4,discard=unmap";
    command.args(["-blockdev", disk]);
    command.args(["-device", "virtio-blk-pci,drive=disk"]);
    command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
    command.args(["-device", "virtio-rng-pci"]);
}

/// Waits until the machine is up without attaching anything of this machine to it.
fn await_boot(instance: &Instance) -> Result<()> {
    Connection::await_server(&instance.directory, BOOT_TIMEOUT)
}

/// The first contact, which mounts the shares and the disk.
fn await_commands(instance: &Instance) -> Result<()> {
    Connection::open(&instance.directory, &instance.shares(), BOOT_TIMEOUT).map(drop)
}

/// The state appears under its name only when it is whole. The machine goes on afterwards.
fn save(instance: &Instance, saved: &Path) -> Result<()> {
    let begin = Instant::now();
    let partial = PathBuf::from(format!("{}.partial", saved.display()));
    let mut qmp = Qmp::connect(&instance.socket())?;
    // Not stopped before: the file would hold a stopped machine, which stays so when loaded.
    let result = qmp.save(&partial, SAVE_TIMEOUT);
    qmp.ask("cont", json!({}))?;
    result?;
    fs::rename(&partial, saved).with_context(|| format!("cannot name {saved:?}"))?;
    let megabytes = fs::metadata(saved).map(|data| data.len() >> 20).unwrap_or(0);
    let seconds = begin.elapsed().as_secs_f64();
    say(&format!(
        "saved the booted machine ({megabytes} MiB, {seconds:.1} s): later starts load it"
    ));
    Ok(())
}
