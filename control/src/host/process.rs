//! Processes that outlive the daemon: found again, watched and ended through pidfds, which are never
//! another process's.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;

use super::networks::Network;

/// The option by which a VMM is found again: it names a socket in the VMM's own directory.
pub const SOCKET_OPTION: &str = "--api-sock";

/// What the VMM calls the threads that run its machine's processors.
const VCPU_THREAD: &str = "vcpu-";

/// A process, which may have ended.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Starts a program that goes on when the daemon ends, in a process group of its own. What it says
    /// goes to `messages`; a guest's console goes nowhere, since a guest could fill the disk with it. Its
    /// network is the host's, unless it has one of its own.
    pub fn start(
        mut command: Command,
        input: Stdio,
        messages: &Path,
        network: Option<&Network>,
    ) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(messages)?;
        command.stdin(input).stdout(Stdio::null()).stderr(file).process_group(0);
        let mut child = match network {
            Some(network) => network.spawn(&mut command).map_err(io::Error::other)?,
            None => command.spawn()?,
        };
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let process = Self::of(pid.ok_or(io::ErrorKind::NotFound)?)?;
        // Nobody else takes note of its end while this daemon lives.
        tokio::spawn(async move { child.wait().await });
        Ok(process)
    }

    fn of(pid: Pid) -> io::Result<Self> {
        let fd = pidfd_open(pid, PidfdFlags::empty())?;
        // SAFETY: an `OwnedFd` is open for as long as it lives, and is always the same descriptor; nobody
        // takes it out of the `AsyncFd`.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self { pid, fd: fd.map_err(|refused| refused.into_parts().1)? })
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        // A pidfd stays readable; one that cannot be waited for is none of a living process.
        let _end = self.fd.readable().await;
    }

    /// Asks the kernel to end it. One that has ended stays so.
    pub fn kill(&self) {
        let _it_has_ended = pidfd_send_signal(self.fd.get_ref(), Signal::KILL);
    }

    /// Ends it, and waits until it is gone.
    pub async fn end(&self) {
        self.kill();
        self.ended().await;
    }

    /// Processor time of the threads that run a guest, since the process began.
    pub fn guest_time(&self) -> io::Result<Duration> {
        let mut ticks = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid.as_raw_nonzero()))? {
            let stat = fs::read_to_string(thread?.path().join("stat"));
            // Another thread may have ended meanwhile; a guest's do not before the process.
            ticks += stat.map_or(0, |stat| ticks_of(&stat));
        }
        // Only now it is known that it was this process which was looked at.
        if !self.is_alive() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Duration::from_millis(ticks * 1000 / clock_ticks_per_second()))
    }

    fn is_alive(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut fds = [PollFd::new(self.fd.get_ref(), PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(0))
    }
}

/// All processes whose socket is somewhere in this directory, with the directory of the socket. One that
/// an earlier daemon started and had no time to take note of is among them.
pub fn find(directory: &Path) -> io::Result<Vec<(PathBuf, Process)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|text| Pid::from_raw(text.parse().ok()?));
        // In this order: what is read is of the process that the pidfd is for, if it still lives then.
        let Some(process) = pid.and_then(|pid| Process::of(pid).ok()) else { continue };
        let Ok(words) = fs::read(entry.path().join("cmdline")) else { continue };
        let home = socket_of(&words).and_then(Path::parent).filter(|it| it.starts_with(directory));
        if let Some(home) = home.filter(|_| process.is_alive()) {
            found.push((home.to_path_buf(), process));
        }
    }
    Ok(found)
}

/// The ticks of a thread that runs a vCPU, from its line in `/proc` (proc_pid_stat(5)); 0 of others.
fn ticks_of(stat: &str) -> u64 {
    // A name may have anything in it, a parenthesis too.
    let Some((head, rest)) = stat.rsplit_once(") ") else { return 0 };
    if !head.split_once(" (").is_some_and(|(_, name)| name.starts_with(VCPU_THREAD)) {
        return 0;
    }
    // utime and stime: the fields 14 and 15, of which the third is the first here.
    rest.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

fn socket_of(words: &[u8]) -> Option<&Path> {
    let mut words = words.split(|byte| *byte == 0);
    words.find(|word| *word == SOCKET_OPTION.as_bytes())?;
    words.next().map(|word| Path::new(OsStr::from_bytes(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_process_is_found_by_its_socket_and_its_end_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("one/api.sock");
        let mut command = Command::new("/bin/sh");
        // The shell's own arguments, as a VMM has them; it waits until it is killed.
        command.args(["-c", "read never < \"$0\""]);
        let fifo = directory.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        command.arg(&fifo).arg(SOCKET_OPTION).arg(&socket);
        let process =
            Process::start(command, Stdio::null(), &directory.path().join("log"), None).unwrap();
        // Opened when the shell has opened it: only then the kernel is sure to tell its arguments.
        let _open = File::options().write(true).open(&fifo).unwrap();
        let found = find(directory.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, directory.path().join("one"));
        assert!(find(&directory.path().join("two")).unwrap().is_empty());
        // It has no guest, and is not taken for one that had.
        assert_eq!(process.guest_time().unwrap(), Duration::ZERO);
        process.kill();
        tokio::time::timeout(DEADLINE, found[0].1.ended()).await.unwrap();
        process.guest_time().unwrap_err();
        assert!(find(directory.path()).unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_time_of_a_guest_is_that_of_the_threads_which_run_its_processors() {
        let own = Process::of(rustix::process::getpid()).unwrap();
        let (done, all) = std::sync::mpsc::channel();
        let work = |name: &str, least: Duration| {
            let done = done.clone();
            let work = move || {
                let clock = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
                while Duration::try_from(clock()).unwrap() < least {}
                done.send(()).unwrap();
                // It is looked at before it is gone.
                std::thread::park();
            };
            std::thread::Builder::new().name(name.into()).spawn(work).unwrap()
        };
        let (one, tenth) = (Duration::from_secs(1), Duration::from_millis(100));
        let threads = [work("vcpu-0", tenth * 3), work("vcpu-1", tenth), work("io", one)];
        threads.iter().for_each(|_| all.recv_timeout(DEADLINE).unwrap());
        let time = own.guest_time().unwrap();
        threads.iter().for_each(|thread| thread.thread().unpark());
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // The kernel rounds each of four numbers down to a tick.
        assert!(time >= tenth * 4 - 4 * Duration::from_millis(10), "{time:?}");
        assert!(time < one, "{time:?}");
    }

    #[test]
    fn a_threads_name_cannot_make_its_line_mean_something_else() {
        let line = |name: &str| format!("7 ({name}) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0");
        assert_eq!(ticks_of(&line("vcpu-0")), 42);
        assert_eq!(ticks_of(&line("vcpu-0) R 9 (x")), 42);
        for other in ["io", "a (vcpu-0", ""] {
            assert_eq!(ticks_of(&line(other)), 0, "{other}");
        }
        assert_eq!(ticks_of("vcpu-0"), 0);
    }
}
