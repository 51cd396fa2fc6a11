//! What the kernel and the machine give.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::SystemTime;

use kvm_ioctls::Kvm;
use rustix::mm::{UserfaultfdFlags, userfaultfd as new_userfaultfd};

use super::Finding;

const KVM: &str = "/dev/kvm";
/// The one that there has been since Linux 2.6.22.
const KVM_API_VERSION: i32 = 12;
const USERFAULTFD: &str = "/dev/userfaultfd";
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const TUN: &str = "/dev/net/tun";
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
/// A microVM of the class that images have unless they say otherwise.
const MEMORY_MIB_MIN: u64 = 2048;

pub fn architecture() -> Finding {
    match std::env::consts::ARCH {
        "aarch64" => Finding::ok("architecture", "ARM64"),
        other => Finding::error(
            "architecture",
            format!("this host is {other}, and microVMs are ARM64"),
            "run the daemon on an ARM64 host; without one it serves all of the API but microVMs",
        ),
    }
}

pub fn kvm() -> Finding {
    let check = "kvm";
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open(KVM) {
        let remedy = match error.kind() {
            ErrorKind::NotFound => {
                "use a machine, or an instance type, whose hypervisor mode (EL2) is the host's, and a \
                 kernel with CONFIG_KVM"
            }
            ErrorKind::PermissionDenied => {
                "let the daemon's user have it: usermod --append --groups kvm USER, and log in again"
            }
            _ => "the kernel's log (dmesg) may say why KVM does not work",
        };
        return Finding::error(check, format!("cannot open {KVM}: {error}"), remedy);
    }
    match Kvm::new() {
        Ok(kvm) if kvm.get_api_version() == KVM_API_VERSION => {
            Finding::ok(check, format!("{KVM} opens; its API is of version {KVM_API_VERSION}"))
        }
        Ok(kvm) => {
            let text = format!("KVM's API is of version {}", kvm.get_api_version());
            Finding::error(check, text, format!("version {KVM_API_VERSION} is needed"))
        }
        Err(error) => {
            let text = format!("{KVM} opens and does not work: {error}");
            Finding::error(check, text, "the kernel's log (dmesg) may say why")
        }
    }
}

pub fn userfaultfd() -> Finding {
    let check = "userfaultfd";
    let file = fs::OpenOptions::new().read(true).write(true).open(USERFAULTFD);
    if file.is_ok() {
        return Finding::ok(check, format!("{USERFAULTFD} opens"));
    }
    // SAFETY: nothing is registered with it, so no memory is touched; it is closed at once.
    match unsafe { new_userfaultfd(UserfaultfdFlags::CLOEXEC) } {
        Ok(_) => Finding::ok(check, "the system call is allowed"),
        Err(error) => Finding::error(
            check,
            format!("memory cannot be loaded as it is touched: {error}"),
            format!(
                "run as root, or let the daemon's user open {USERFAULTFD} (Linux 6.1), or: \
                 sysctl --write vm.unprivileged_userfaultfd=1"
            ),
        ),
    }
}

pub fn huge_pages() -> Finding {
    let check = "huge pages";
    let remedy = format!("echo advise > {HUGE_PAGES}");
    match fs::read_to_string(HUGE_PAGES) {
        Ok(setting) => match chosen(&setting) {
            Some(word @ ("never" | "deny")) => Finding::warning(
                check,
                format!(
                    "shared memory has none ({word}): microVMs of one image start and run slower"
                ),
                remedy,
            ),
            Some(word) => Finding::ok(check, format!("shared memory may have them ({word})")),
            None => Finding::warning(check, format!("{HUGE_PAGES} is not understood"), remedy),
        },
        Err(error) => Finding::warning(
            check,
            format!("cannot read {HUGE_PAGES}: {error}"),
            "a kernel with CONFIG_TRANSPARENT_HUGEPAGE makes microVMs of one image faster",
        ),
    }
}

/// The word in brackets.
fn chosen(setting: &str) -> Option<&str> {
    setting.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

pub fn memory() -> Finding {
    let check = "memory";
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_mib(&text));
    match available {
        Some(mib) if mib >= MEMORY_MIB_MIN => {
            Finding::ok(check, format!("{mib} MiB are available"))
        }
        Some(mib) => Finding::warning(
            check,
            format!(
                "{mib} MiB are available; a microVM has {MEMORY_MIB_MIN} MiB unless its image says less"
            ),
            "end what needs memory, or make smaller images: rotifer build --memory MIB",
        ),
        None => Finding::warning(check, "cannot be found out", "mount /proc"),
    }
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib >> 10)
}

pub fn clock() -> Finding {
    let check = "clock";
    // A kernel, a binary: neither is from the future.
    let built = std::env::current_exe().and_then(fs::metadata).and_then(|it| it.modified());
    if built.is_ok_and(|built| SystemTime::now() < built) {
        let text = "it is earlier than when this program was installed";
        return Finding::error(check, text, "set it: certificates and signatures have times");
    }
    if is_synchronised() {
        return Finding::ok(check, "it is synchronised");
    }
    Finding::warning(
        check,
        "nobody keeps it right: requests of clients that are 5 minutes off are refused, and guests have \
         this host's time",
        "run chrony or systemd-timesyncd",
    )
}

fn is_synchronised() -> bool {
    // SAFETY: all zeroes are a request that only reads, and the kernel writes within the struct.
    let state = unsafe {
        let mut request: libc::timex = std::mem::zeroed();
        libc::adjtimex(&raw mut request)
    };
    (0..libc::TIME_ERROR).contains(&state)
}

/// Nothing is tried out here: that changes the host (`rotifer-network doctor` does it).
pub fn networks() -> Finding {
    let check = "networks";
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let has = |number: u32| capabilities(&status).is_some_and(|all| all & (1 << number) != 0);
    if !(has(CAP_NET_ADMIN) && has(CAP_SYS_ADMIN)) {
        return Finding::warning(
            check,
            "microVMs have none without CAP_NET_ADMIN and CAP_SYS_ADMIN",
            "run as root, or with these; docs/networks.md says more",
        );
    }
    match fs::OpenOptions::new().read(true).write(true).open(TUN) {
        Ok(_) => Finding::ok(check, "the rights are there; `rotifer-network doctor` tries one out"),
        Err(error) => Finding::warning(
            check,
            format!("microVMs have none: cannot open {TUN}: {error}"),
            "modprobe tun",
        ),
    }
}

/// Those that this process may use.
fn capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Whether a file can be read, and run if need be.
pub fn readable(path: &Path, is_program: bool) -> io::Result<()> {
    let metadata = File::open(path)?.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    if is_program {
        rustix::fs::access(path, rustix::fs::Access::EXEC_OK)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        assert_eq!(chosen("always within_size [advise] never deny force\n"), Some("advise"));
        assert_eq!(chosen("nothing"), None);
        let meminfo = "MemTotal:  8000000 kB\nMemAvailable:    4096000 kB\n";
        assert_eq!(available_mib(meminfo), Some(4000));
        assert_eq!(available_mib("MemAvailable: many"), None);
        assert_eq!(capabilities("Name:\tx\nCapEff:\t0000000000201000\n"), Some(1 << 12 | 1 << 21));
    }
}
