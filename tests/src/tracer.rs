//! Another process at every effect that it has on files: stop it there, or let the call fail.

use std::fs;
use std::io;
use std::mem::size_of;
use std::path::{Path, PathBuf};

use libc::{c_int, c_long, c_void, pid_t};

/// What happens at the chosen effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// SIGKILL, before the call does anything.
    Kill,
    /// The disk is full: the call fails with ENOSPC, and so do all later ones that need room.
    FullDisk,
}

/// How the process went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// The effect came, and the trouble with it.
    Trouble,
    /// There were so many effects and no more before the process answered on a socket.
    Answer {
        /// Their number.
        effects: usize,
    },
}

/// The registers that a system call is made with (`struct user_pt_regs` of arm64).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Registers {
    x: [u64; 31],
    sp: u64,
    pc: u64,
    pstate: u64,
}

/// `NT_ARM_SYSTEM_CALL`: the number of the call that is about to be made.
const NT_ARM_SYSTEM_CALL: c_int = 0x404;
/// A stop at a system call, with PTRACE_O_TRACESYSGOOD.
const SYSTEM_CALL_STOP: c_int = libc::SIGTRAP | 0x80;

/// Lets the main thread of a process run until it answers on a socket, and counts what it does to
/// files of `directory`: creating, writing, syncing, renaming, removing. At effect number `at`,
/// counted from 0, comes the trouble. `ready` is called when nothing can be missed any more. The
/// process is free again afterwards.
///
/// # Panics
/// If the process cannot be traced, or ends for another reason.
pub fn trace(
    process: u32,
    directory: &Path,
    at: usize,
    trouble: Trouble,
    ready: impl FnOnce(),
) -> Met {
    let tracer = Tracer { thread: process as pid_t, directory: directory.into() };
    tracer.attach();
    ready();
    let mut effects = 0;
    let mut is_full = false;
    loop {
        if tracer.next_stop().is_none() {
            panic!("the process ended after {effects} effects, before {at}");
        }
        let registers = tracer.registers();
        let call = Call::of(registers.x[8] as c_long);
        if call == Call::Other || !tracer.concerns(call, &registers) {
            if matches!(call, Call::Write) && tracer.is_socket(registers.x[0]) {
                tracer.detach();
                return match is_full {
                    true => Met::Trouble,
                    false => Met::Answer { effects },
                };
            }
            tracer.finish_call(None);
            continue;
        }
        let is_now = effects == at;
        effects += 1;
        match trouble {
            Trouble::Kill if is_now => {
                // SAFETY: a signal to a process that we trace, so that its number is still its own.
                unsafe { libc::kill(tracer.thread, libc::SIGKILL) };
                return Met::Trouble;
            }
            Trouble::FullDisk if is_now || (is_full && call.needs_room()) => {
                is_full = true;
                tracer.finish_call(Some(libc::ENOSPC));
            }
            _ => tracer.finish_call(None),
        }
    }
}

/// What a system call does to files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Open,
    Write,
    Sync,
    /// Renaming, removing.
    Name,
    Other,
}

impl Call {
    fn of(number: c_long) -> Self {
        match number {
            libc::SYS_openat => Self::Open,
            libc::SYS_write
            | libc::SYS_pwrite64
            | libc::SYS_writev
            | libc::SYS_pwritev
            | libc::SYS_sendto
            | libc::SYS_sendmsg
            | libc::SYS_ftruncate
            | libc::SYS_fallocate => Self::Write,
            libc::SYS_fsync | libc::SYS_fdatasync => Self::Sync,
            libc::SYS_renameat | libc::SYS_renameat2 | libc::SYS_unlinkat | libc::SYS_linkat => {
                Self::Name
            }
            _ => Self::Other,
        }
    }

    fn needs_room(self) -> bool {
        matches!(self, Self::Open | Self::Write)
    }
}

struct Tracer {
    thread: pid_t,
    directory: PathBuf,
}

impl Tracer {
    fn attach(&self) {
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
        self.request(libc::PTRACE_SEIZE, 0, options as usize);
        self.request(libc::PTRACE_INTERRUPT, 0, 0);
        self.wait().expect("the process was there a moment ago");
    }

    fn detach(&self) {
        self.request(libc::PTRACE_DETACH, 0, 0);
    }

    /// Lets it run to the beginning of its next system call; none if it ended.
    fn next_stop(&self) -> Option<()> {
        loop {
            self.request(libc::PTRACE_SYSCALL, 0, 0);
            if self.wait()? == SYSTEM_CALL_STOP {
                return Some(());
            }
        }
    }

    /// Lets the call that it is about to make happen, or fail with this.
    fn finish_call(&self, failure: Option<c_int>) {
        if failure.is_some() {
            // There is no such call.
            self.set(NT_ARM_SYSTEM_CALL, &mut -1);
        }
        self.next_stop().expect("it stops behind the call");
        if let Some(error) = failure {
            let mut registers = self.registers();
            registers.x[0] = -i64::from(error) as u64;
            self.set(libc::NT_PRSTATUS, &mut registers);
        }
    }

    /// Whether the call is an effect on the directory.
    fn concerns(&self, call: Call, registers: &Registers) -> bool {
        match call {
            Call::Open => {
                let creates = registers.x[2] as c_int & libc::O_CREAT != 0;
                creates && self.path_at(registers.x[1]).starts_with(&self.directory)
            }
            Call::Name => self.path_at(registers.x[1]).starts_with(&self.directory),
            Call::Write | Call::Sync => {
                self.file(registers.x[0]).is_some_and(|path| path.starts_with(&self.directory))
            }
            Call::Other => false,
        }
    }

    fn is_socket(&self, descriptor: u64) -> bool {
        self.file(descriptor).is_some_and(|path| path.to_string_lossy().starts_with("socket:"))
    }

    fn file(&self, descriptor: u64) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/fd/{descriptor}", self.thread)).ok()
    }

    /// The path that its memory has there.
    fn path_at(&self, address: u64) -> PathBuf {
        use std::os::unix::fs::FileExt;
        let memory = fs::File::open(format!("/proc/{}/mem", self.thread)).expect("open its memory");
        let mut bytes = Vec::new();
        let mut byte = [0];
        while memory.read_at(&mut byte, address + bytes.len() as u64).is_ok_and(|it| it == 1)
            && byte != [0]
            && bytes.len() < libc::PATH_MAX as usize
        {
            bytes.push(byte[0]);
        }
        String::from_utf8_lossy(&bytes).into_owned().into()
    }

    fn registers(&self) -> Registers {
        let mut registers = Registers::default();
        let mut place = io_vec(&mut registers);
        let address = &raw mut place as usize;
        self.request(libc::PTRACE_GETREGSET, libc::NT_PRSTATUS as usize, address);
        registers
    }

    fn set<T>(&self, kind: c_int, value: &mut T) {
        let mut place = io_vec(value);
        self.request(libc::PTRACE_SETREGSET, kind as usize, &raw mut place as usize);
    }

    fn request(&self, request: libc::c_uint, address: usize, data: usize) {
        // SAFETY: the requests that have the kernel write to our memory are given structures that
        // live across the call, with their length.
        let result = unsafe { libc::ptrace(request, self.thread, address, data) };
        let error = io::Error::last_os_error();
        assert_ne!(result, -1, "ptrace request {request:#x}: {error}");
    }

    /// The signal of its next stop; none if it ended.
    fn wait(&self) -> Option<c_int> {
        let mut status = 0;
        // SAFETY: waits for a thread that we trace; the status is ours.
        let thread = unsafe { libc::waitpid(self.thread, &raw mut status, libc::__WALL) };
        assert_eq!(thread, self.thread, "wait for a stop: {}", io::Error::last_os_error());
        libc::WIFSTOPPED(status).then(|| libc::WSTOPSIG(status))
    }
}

fn io_vec<T>(value: &mut T) -> libc::iovec {
    libc::iovec { iov_base: (&raw mut *value).cast::<c_void>(), iov_len: size_of::<T>() }
}
