//! The end of the guest.

use crate::agent::{Agent, Shutdown, ShutdownMode};
use crate::app;
use crate::console::kernel_log;
use crate::limits::SHUTDOWN_GRACE_MS;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use std::rc::Rc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long killed processes have to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// The signals by which `poweroff` and `reboot` of busybox and others tell PID 1.
const SIGNALS: [(libc::c_int, ShutdownMode); 5] = [
    (libc::SIGTERM, ShutdownMode::Reboot),
    (libc::SIGINT, ShutdownMode::Reboot),
    (libc::SIGUSR1, ShutdownMode::Poweroff),
    (libc::SIGUSR2, ShutdownMode::Poweroff),
    (libc::SIGPWR, ShutdownMode::Poweroff),
];

/// Ends the guest when a process of it asks PID 1 to.
pub(super) fn obey_signals(agent: &Rc<Agent>) {
    for (number, mode) in SIGNALS {
        let Ok(mut signals) = signal(SignalKind::from_raw(number)) else { continue };
        let agent = agent.clone();
        tokio::task::spawn_local(async move {
            if signals.recv().await.is_some() {
                let grace = Duration::from_millis(SHUTDOWN_GRACE_MS);
                agent.request_shutdown(Shutdown { mode, grace });
            }
        });
    }
}

/// Asks the app to end, then kills every process but the agent.
pub(super) async fn end_processes(agent: &Agent, shutdown: Shutdown) {
    app::terminate(agent, shutdown.grace).await;
    // SAFETY: plain numbers; -1 means every process but PID 1, which this is. There may be none.
    unsafe { libc::kill(-1, libc::SIGKILL) };
    // A process that a broken disk holds in the kernel is not waited for.
    let _ = tokio::time::timeout(KILL_TIMEOUT, agent.reaper.all_gone()).await;
}

/// Brings the disks to rest and ends the machine.
pub(super) fn end(mode: ShutdownMode) -> ! {
    nix::unistd::sync();
    remount_read_only();
    let how = match mode {
        ShutdownMode::Poweroff => RebootMode::RB_POWER_OFF,
        ShutdownMode::Reboot => RebootMode::RB_AUTOBOOT,
    };
    // It returns only if it fails.
    let Err(error) = reboot(how);
    kernel_log(&format!("the machine cannot be ended: {error}"));
    // The end of PID 1 makes the kernel panic, which ends it too.
    std::process::abort()
}

/// Leaves the file systems on disks clean. The last mount goes first.
fn remount_read_only() {
    let table = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    for point in disk_mounts(&table).into_iter().rev() {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        if let Err(error) = mount(None::<&str>, point, None::<&str>, flags, None::<&str>) {
            kernel_log(&format!("{point} stays writable, its journal replays later: {error}"));
        }
    }
}

/// The mount points of block devices that are mounted read-write.
fn disk_mounts(table: &str) -> Vec<&str> {
    let mut points = Vec::new();
    for line in table.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(point)) = (fields.next(), fields.next()) else { continue };
        let read_write = fields.nth(1).is_some_and(|o| o.split(',').any(|option| option == "rw"));
        if device.starts_with("/dev/") && read_write {
            points.push(point);
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writable_disks_are_brought_to_rest() {
        let table = "rootfs / rootfs rw 0 0\n/dev/vda / ext4 rw,relatime 0 0\n\
                     proc /proc proc rw 0 0\n/dev/vdb /data ext4 ro,noload 0 0\n\
                     /dev/vdc /more xfs rw 0 0\nbroken\n";
        assert_eq!(disk_mounts(table), ["/", "/more"]);
    }
}
