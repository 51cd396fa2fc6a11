//! The rest of what PID 1 owes its guest: streams, host name, loopback, limits, control groups.

use super::{InitError, resolver};
use crate::console::kernel_log;
use crate::process::spawn::{CgroupFiles, open_without_control};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::path::Path;
use std::sync::Arc;

const HOSTNAME_DEFAULT: &str = "rotifer";
/// The kernel's limit, `__NEW_UTS_LEN`.
const HOSTNAME_MAX_BYTES: usize = 64;
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Descriptors for connections, pipes and files at their limits, with room to spare.
const AGENT_OPEN_FILES: u64 = 4096;
/// Never killed for want of memory.
const OOM_SCORE_NEVER: &str = "-1000";

/// Without a console the kernel starts PID 1 without open files; the first ones opened would then
/// become standard streams of its children.
pub(super) fn open_standard_streams() -> Result<(), InitError> {
    loop {
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(|source| InitError::System { attempt: "open /dev/null", source })?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        let _stays_open = null.into_raw_fd();
    }
}

pub(super) fn command_line() -> Result<String, InitError> {
    let bytes = fs::read("/proc/cmdline")
        .map_err(|source| InitError::System { attempt: "read the kernel command line", source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Kernel settings of a guest that mostly waits: no timer of the kernel wakes it for statistics or
/// for memory that might be compacted.
const SETTINGS: [(&str, &str); 2] =
    [("/proc/sys/vm/stat_interval", "3600"), ("/proc/sys/vm/compaction_proactiveness", "0")];
/// Whether RCU hurries instead of waiting for the next ticks.
const RCU_EXPEDITED: &str = "/sys/kernel/rcu_expedited";

/// Has RCU hurry while the guest is prepared: each mount and each control group waits for it, and
/// there is no other work yet that hurrying could disturb.
pub(super) fn hurry(on: bool) {
    // A kernel that cannot hurry boots more slowly, that is all.
    let _ = fs::write(RCU_EXPEDITED, if on { "1" } else { "0" });
}

/// What can go wrong here makes a poorer guest, but a guest.
pub(super) fn settle(hostname: Option<&str>) {
    let tell = |attempt: &str, result: io::Result<()>| {
        if let Err(error) = result {
            kernel_log(&format!("cannot {attempt}: {error}"));
        }
    };
    tell("set the host name", set_hostname(hostname));
    tell("bring up the loopback interface", bring_up_loopback());
    tell("set the name servers", resolver::set_name_servers());
    tell("protect the agent", fs::write("/proc/self/oom_score_adj", OOM_SCORE_NEVER));
    tell("raise the limit of open files", raise_open_files());
    for (path, value) in SETTINGS {
        tell(&format!("write {value} to {path}"), fs::write(path, value));
    }
}

fn set_hostname(hostname: Option<&str>) -> io::Result<()> {
    let file = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let name = hostname.or_else(|| file.split_whitespace().next()).unwrap_or(HOSTNAME_DEFAULT);
    let cut = name.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = cut.take_while(|end| *end <= HOSTNAME_MAX_BYTES).last().unwrap_or(0);
    Ok(nix::unistd::sethostname(name.get(..end).unwrap_or(HOSTNAME_DEFAULT))?)
}

/// The kernel gives the loopback interface its addresses when it comes up.
fn bring_up_loopback() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an ifreq is plain bytes, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq; the pointer is to a live one.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn raise_open_files() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: AGENT_OPEN_FILES, rlim_max: 524_288 };
    // SAFETY: the pointer is to a live, initialised rlimit.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// One group for the app and one for commands of the API; `None`, told, if the kernel has none.
pub(super) fn make_cgroups() -> Option<CgroupFiles> {
    let make = |name: &str| -> io::Result<Arc<File>> {
        let group = Path::new(CGROUP_ROOT).join(name);
        fs::create_dir_all(&group)?;
        Ok(Arc::new(OpenOptions::new().write(true).open(group.join("cgroup.procs"))?))
    };
    match make("app").and_then(|app| Ok(CgroupFiles { app, exec: make("exec")? })) {
        Ok(groups) => Some(groups),
        Err(error) => {
            kernel_log(&format!("cannot make control groups: {error}"));
            None
        }
    }
}

/// The terminal behind `/dev/console`, which itself cannot control a session.
pub(super) fn open_console_terminal() -> Option<File> {
    let active = fs::read_to_string("/sys/class/tty/console/active").ok()?;
    let name = active.split_whitespace().next_back()?;
    open_without_control(&Path::new("/dev").join(name)).ok()
}
