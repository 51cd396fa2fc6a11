//! The smaller sections: `machine-config`, `vsock`, `entropy`, `serial`.

use std::os::unix::ffi::OsStrExt;

use super::drive::refuse_rate_limiter;
use super::file::{Occupant, occupant};
use super::plan::{Console, VsockPlan};
use super::{Entropy, Error, HugePages, MachineConfig, MachineConfigPatch, Serial, Vsock};

/// The most vCPUs. A GICv2 allows 8, which is known only when the machine is assembled.
pub const VCPUS_MAX: u64 = 16;
/// The most guest memory, in MiB.
pub const MEMORY_MIB_MAX: u64 = 32 << 10;
/// The first guest address; 0 to 2 are the hypervisor's, the loopback's and the host's.
pub const GUEST_CID_MIN: u64 = 3;
/// `VMADDR_CID_ANY` is nobody's address.
pub const GUEST_CID_MAX: u64 = u32::MAX as u64 - 1;
/// The longest Unix socket path, without its closing NUL (`sun_path` has 108 bytes).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The longest suffix the vsock device adds for a connection that the guest opens.
const PORT_SUFFIX: &str = "_4294967295";

impl MachineConfig {
    /// Checks the section.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !(1..=VCPUS_MAX).contains(&self.vcpu_count) {
            return Err(Error::invalid(
                "machine-config.vcpu_count",
                self.vcpu_count,
                format!("a machine has 1 to {VCPUS_MAX} vCPUs"),
                "choose a number in this range",
            ));
        }
        if !(1..=MEMORY_MIB_MAX).contains(&self.mem_size_mib) {
            return Err(Error::invalid(
                "machine-config.mem_size_mib",
                self.mem_size_mib,
                format!("a machine has 1 to {MEMORY_MIB_MAX} MiB of memory"),
                "choose a number in this range",
            ));
        }
        let refuse = |field: &str, reason, remedy| {
            Err(Error::Unsupported { path: format!("machine-config.{field}"), reason, remedy })
        };
        if self.smt {
            return refuse("smt", "ARM64 has no simultaneous multithreading", "use false");
        }
        if self.cpu_template.as_deref().is_some_and(|name| name != "None") {
            return refuse(
                "cpu_template",
                "there are no CPU templates; guests see the host's CPU",
                "use \"None\" or leave the key out",
            );
        }
        if self.huge_pages != HugePages::None {
            return refuse(
                "huge_pages",
                "guest memory is backed by the host's base pages only, so far",
                "use \"None\" or leave the key out",
            );
        }
        Ok(())
    }

    /// The section with a patch applied, not checked.
    pub fn patched(&self, patch: &MachineConfigPatch) -> Self {
        Self {
            vcpu_count: patch.vcpu_count.unwrap_or(self.vcpu_count),
            mem_size_mib: patch.mem_size_mib.unwrap_or(self.mem_size_mib),
            smt: patch.smt.unwrap_or(self.smt),
            cpu_template: patch.cpu_template.clone().or_else(|| self.cpu_template.clone()),
            track_dirty_pages: patch.track_dirty_pages.unwrap_or(self.track_dirty_pages),
            huge_pages: patch.huge_pages.unwrap_or(self.huge_pages),
        }
    }
}

impl Vsock {
    /// Checks the section and that the socket can be made. A dead socket in its place is no
    /// obstacle: whoever binds the path replaces it.
    pub(super) fn plan(&self) -> Result<VsockPlan, Error> {
        const PATH: &str = "vsock.uds_path";
        let plan = self.check()?;
        let parent = plan.uds_path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let (reason, remedy) = if parent.is_some_and(|parent| !parent.is_dir()) {
            ("there is no such directory", "create it or choose another path")
        } else {
            match occupant(&plan.uds_path) {
                Ok(Occupant::Nobody | Occupant::Dead) => return Ok(plan),
                Ok(Occupant::Live) => {
                    ("another live process has this socket", "stop it or choose another path")
                }
                Ok(Occupant::NotASocket) => {
                    ("a file that is not a socket is there", "remove it or choose another path")
                }
                Err(source) => {
                    return Err(Error::File {
                        path: PATH.into(),
                        file: plan.uds_path,
                        attempt: "look for a socket at",
                        source,
                    });
                }
            }
        };
        Err(Error::invalid(PATH, plan.uds_path.display(), reason, remedy))
    }

    /// Checks the section by itself.
    pub(crate) fn check(&self) -> Result<VsockPlan, Error> {
        if !(GUEST_CID_MIN..=GUEST_CID_MAX).contains(&self.guest_cid) {
            return Err(Error::invalid(
                "vsock.guest_cid",
                self.guest_cid,
                format!("a guest's CID is {GUEST_CID_MIN} to {GUEST_CID_MAX}"),
                "choose a number in this range",
            ));
        }
        let guest_cid = u32::try_from(self.guest_cid).expect("GUEST_CID_MAX fits");
        let path = self.uds_path.as_os_str().as_bytes();
        let path_bytes_max = SOCKET_PATH_BYTES_MAX - PORT_SUFFIX.len();
        let reason = match path.len() {
            0 => "a Unix socket needs a path".into(),
            _ if path.contains(&0) => "a path cannot contain NUL".into(),
            length if length > path_bytes_max => format!(
                "the path has {length} bytes and at most {path_bytes_max} are possible: a Unix \
                 socket's path has {SOCKET_PATH_BYTES_MAX}, of which `{PORT_SUFFIX}` is kept for \
                 the connections a guest opens"
            ),
            _ => return Ok(VsockPlan { guest_cid, uds_path: self.uds_path.clone() }),
        };
        Err(Error::invalid("vsock.uds_path", self.uds_path.display(), reason, "use a short path"))
    }
}

impl Entropy {
    /// Checks the section.
    pub(crate) fn check(&self) -> Result<(), Error> {
        refuse_rate_limiter(self.rate_limiter.as_ref(), "entropy.rate_limiter".into())
    }
}

impl Serial {
    /// Checks the section; the file is created when the machine is.
    pub(crate) fn check(&self) -> Result<Console, Error> {
        if self.rate_limiter.is_some() {
            return Err(Error::Unsupported {
                path: "serial.rate_limiter".into(),
                reason: "only network interfaces have rate limiters yet",
                remedy: "leave the key out",
            });
        }
        match &self.serial_out_path {
            None => Ok(Console::Stdio),
            Some(path) if path.as_os_str().is_empty() => Err(Error::invalid(
                "serial.serial_out_path",
                "",
                "a file needs a path",
                "leave the key out for standard output",
            )),
            Some(path) if path.is_dir() => Err(Error::invalid(
                "serial.serial_out_path",
                path.display(),
                "a directory",
                "give a file or a FIFO",
            )),
            Some(path) => Ok(Console::File(path.clone())),
        }
    }
}
