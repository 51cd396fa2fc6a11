//! What a child does between `fork` and `execve` to become an unprivileged process tree.
//!
//! Everything here runs in the child of a program that may have threads, so it makes system calls
//! and nothing else: no allocation, no lock, no formatting.

use super::users::Identity;
use std::io;
use std::os::fd::RawFd;

/// The last capability of any kernel that the loop below tries; EINVAL ends it earlier.
const CAPABILITY_MAX: libc::c_ulong = 63;

/// Docker's default capabilities, by their numbers in `linux/capability.h`: CHOWN, DAC_OVERRIDE,
/// FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD,
/// AUDIT_WRITE, SETFCAP.
pub const DEFAULT_CAPABILITIES: u64 = bit(0)
    | bit(1)
    | bit(3)
    | bit(4)
    | bit(5)
    | bit(6)
    | bit(7)
    | bit(8)
    | bit(10)
    | bit(13)
    | bit(18)
    | bit(27)
    | bit(29)
    | bit(31);

const fn bit(capability: u32) -> u64 {
    1 << capability
}

/// The last real-time signal of Linux.
const SIGNAL_MAX: libc::c_int = 64;

/// Open files of a process: the limits that services usually get, not the agent's own.
const OPEN_FILES_SOFT: libc::rlim_t = 1024;
const OPEN_FILES_HARD: libc::rlim_t = 524_288;

/// What the child has to become.
#[derive(Debug, Clone)]
pub struct Transition {
    /// Numbers to take on; `None` leaves the credentials alone (an agent that is not PID 1).
    pub identity: Option<Identity>,
    /// Capabilities that stay in the bounding set.
    pub capabilities: u64,
    /// `cgroup.procs` of the group to join.
    pub cgroup_procs: Option<RawFd>,
    /// Whether standard input is a terminal to be controlled by.
    pub terminal: bool,
}

impl Transition {
    /// Becomes it. Called in the child only.
    ///
    /// # Errors
    /// The system call that failed, as its errno.
    pub fn apply(&self) -> io::Result<()> {
        reset_signals();
        // SAFETY: setsid takes nothing and touches no memory; a fresh child leads no group, so it
        // cannot fail.
        check(unsafe { libc::setsid() })?;
        if self.terminal {
            // SAFETY: TIOCSCTTY takes an integer; descriptor 0 is the terminal set up by the caller.
            check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })?;
        }
        if let Some(procs) = self.cgroup_procs {
            write_all(procs, b"0")?;
        }
        let Some(identity) = &self.identity else { return Ok(()) };
        reset_oom_score()?;
        let files = libc::rlimit { rlim_cur: OPEN_FILES_SOFT, rlim_max: OPEN_FILES_HARD };
        // SAFETY: the pointer is to a live, initialised rlimit.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files) })?;
        self.drop_capabilities()?;
        // SAFETY: the pointer and the length describe a live slice of gid_t, which is u32.
        check(unsafe { libc::setgroups(identity.groups.len(), identity.groups.as_ptr()) })?;
        // SAFETY: plain numbers. The group goes first: a user without privileges cannot set it.
        check(unsafe { libc::setresgid(identity.gid, identity.gid, identity.gid) })?;
        // SAFETY: plain numbers.
        check(unsafe { libc::setresuid(identity.uid, identity.uid, identity.uid) })
    }

    /// Takes the others out of the bounding set, so that no `execve` can bring them back.
    fn drop_capabilities(&self) -> io::Result<()> {
        for capability in 0..=CAPABILITY_MAX {
            if self.capabilities & (1 << capability) != 0 {
                continue;
            }
            // SAFETY: prctl with PR_CAPBSET_DROP takes one number and touches no memory.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EINVAL) => return Ok(()), // the kernel knows no further ones
                    _ => return Err(error),
                }
            }
        }
        Ok(())
    }
}

/// A signal that is ignored stays so across `execve`: whoever started the agent may have ignored
/// SIGINT, as shells do for what runs in the background, and control-C would then do nothing here.
fn reset_signals() {
    for number in 1..=SIGNAL_MAX {
        // SAFETY: plain numbers. It fails for SIGKILL, SIGSTOP and those that the C library keeps,
        // none of which can be ignored.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

/// The agent is never killed for want of memory, its children are ordinary.
fn reset_oom_score() -> io::Result<()> {
    // SAFETY: the path is a NUL-terminated constant.
    let file = unsafe { libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY) };
    check(file)?;
    let written = write_all(file, b"0");
    // SAFETY: the descriptor was opened above and is used no more.
    unsafe { libc::close(file) };
    written
}

fn write_all(file: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length describe a live slice.
    let written = unsafe { libc::write(file, bytes.as_ptr().cast(), bytes.len()) };
    match usize::try_from(written) {
        Ok(count) if count == bytes.len() => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_set_is_dockers_fourteen() {
        assert_eq!(DEFAULT_CAPABILITIES, 0xa804_25fb);
        assert_eq!(DEFAULT_CAPABILITIES.count_ones(), 14);
    }
}
