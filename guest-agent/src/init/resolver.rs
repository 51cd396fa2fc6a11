//! Name servers. The kernel sets address and routes by itself (`ip=` on its command line), and
//! keeps the name servers that are given there in `/proc/net/pnp`, in the form of a resolv.conf.

use nix::mount::{MsFlags, mount};
use std::fs::{self, OpenOptions};
use std::io;

const FROM_KERNEL: &str = "/proc/net/pnp";
const OURS: &str = "/run/resolv.conf";
const EVERYBODYS: &str = "/etc/resolv.conf";

/// Puts the kernel's name servers, if it was given any, in place of the disk's. The disk itself is
/// not changed, apart from an empty file on one that has none: another machine of it has others.
pub(super) fn set_name_servers() -> io::Result<()> {
    // A kernel without IP configuration has no such file.
    let Some(text) = fs::read_to_string(FROM_KERNEL).ok().and_then(|text| name_servers(&text))
    else {
        return Ok(());
    };
    fs::write(OURS, text)?;
    if !fs::exists(EVERYBODYS)? {
        OpenOptions::new().write(true).create(true).truncate(false).open(EVERYBODYS)?;
    }
    Ok(mount(Some(OURS), EVERYBODYS, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// The lines of `text` that a resolver needs; none if there is no name server among them.
fn name_servers(text: &str) -> Option<String> {
    let is_wanted = |line: &&str| {
        matches!(line.split_whitespace().next(), Some("nameserver" | "domain" | "search"))
    };
    let lines: String = text.lines().filter(is_wanted).flat_map(|line| [line, "\n"]).collect();
    lines.contains("nameserver").then_some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_was_given_is_what_a_resolver_reads() {
        let text = "#MANUAL\ndomain example.org\nnameserver 10.0.0.53\nbootserver 0.0.0.0\n";
        assert_eq!(name_servers(text).unwrap(), "domain example.org\nnameserver 10.0.0.53\n");
    }

    #[test]
    fn without_a_name_server_the_disks_file_stays() {
        assert_eq!(name_servers("#MANUAL\nbootserver 0.0.0.0\n"), None);
        assert_eq!(name_servers(""), None);
    }
}
