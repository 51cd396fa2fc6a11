//! What has to be known about a host to read its figures.

use std::collections::BTreeSet;
use std::env;
use std::fmt;
use std::fs;

use serde::Serialize;

/// Set by `./x bench --counted`: the host's clock counts instructions.
const COUNTED_VARIABLE: &str = "ROTIFER_HOST_COUNTED";

/// The machine that the benchmark ran on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Linux's release.
    pub kernel: String,
    /// The architecture that the benchmark was built for.
    pub architecture: &'static str,
    /// The kinds of CPU.
    pub cpu: String,
    /// How many CPUs.
    pub cpu_count: usize,
    /// The size of a page.
    pub page_bytes: usize,
    /// QEMU's machine, not a real one: seconds mean little, ratios more.
    pub emulated: bool,
    /// A nanosecond is an instruction: caches, TLBs and idle waits cost nothing.
    pub counted: bool,
}

impl Host {
    /// The one we run on.
    pub fn find() -> Self {
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            architecture: env::consts::ARCH,
            cpu: cpu_names(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cpu_count: std::thread::available_parallelism().map_or(1, usize::from),
            page_bytes: rustix::param::page_size(),
            emulated: is_emulated(),
            counted: env::var_os(COUNTED_VARIABLE).is_some_and(|value| value == "1"),
        }
    }

    /// What a nanosecond of this host is.
    pub fn time(&self) -> &'static str {
        match (self.counted, self.emulated) {
            (true, _) => "time counts instructions, 1 ns each; only ratios mean anything",
            (false, true) => "emulated: seconds depend on the machine below, only ratios count",
            (false, false) => "real time",
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, architecture, cpu, cpu_count, page_bytes, .. } = self;
        let kib = page_bytes / 1024;
        write!(formatter, "Linux {kernel} {architecture}, {cpu_count} x {cpu}, {kib} KiB pages; ")?;
        formatter.write_str(self.time())
    }
}

/// QEMU's board for virtual machines, by its device tree. Such a board under KVM would be called
/// emulated as well, which errs on the side of not trusting its seconds.
fn is_emulated() -> bool {
    fs::read("/proc/device-tree/compatible")
        .is_ok_and(|names| names.split(|byte| *byte == 0).any(|name| name == b"linux,dummy-virt"))
}

fn cpu_names(cpuinfo: &str) -> String {
    let value = |line: &str, key: &str| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    };
    let mut names = BTreeSet::new();
    let mut implementer = String::new();
    for line in cpuinfo.lines() {
        if let Some(name) = value(line, "model name") {
            names.insert(name);
        } else if let Some(code) = value(line, "CPU implementer") {
            implementer = code;
        } else if let Some(part) = value(line, "CPU part") {
            names.insert(arm_name(&implementer, &part));
        }
    }
    match names.len() {
        0 => "unknown CPU".into(),
        _ => names.into_iter().collect::<Vec<_>>().join(" and "),
    }
}

/// MIDR_EL1's implementer and part number, as the manuals of the cores give them.
fn arm_name(implementer: &str, part: &str) -> String {
    let known = match (implementer, part) {
        ("0x00", "0x051") => "QEMU max",
        ("0x41", "0xd07") => "Cortex-A57",
        ("0x41", "0xd08") => "Cortex-A72",
        ("0x41", "0xd0b") => "Cortex-A76",
        ("0x41", "0xd0c") => "Neoverse-N1",
        ("0x41", "0xd40") => "Neoverse-V1",
        ("0x41", "0xd49") => "Neoverse-N2",
        ("0x41", "0xd4f") => "Neoverse-V2",
        ("0xc0", "0xac3") => "Ampere-1",
        _ => return format!("CPU {implementer}:{part}"),
    };
    known.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Host {
        /// An emulated one.
        pub fn example() -> Self {
            Self {
                kernel: "6.12.95".into(),
                architecture: "aarch64",
                cpu: "Cortex-A76".into(),
                cpu_count: 1,
                page_bytes: 16384,
                emulated: true,
                counted: true,
            }
        }
    }

    #[test]
    fn arm_cores_are_named_once_per_kind() {
        let one = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n";
        assert_eq!(cpu_names(&one.repeat(4)), "Cortex-A76");
        let strange = "CPU implementer\t: 0x61\nCPU part\t: 0x022\n";
        assert_eq!(cpu_names(&(one.to_owned() + strange)), "CPU 0x61:0x022 and Cortex-A76");
    }

    #[test]
    fn a_file_that_says_nothing_is_an_unknown_cpu() {
        assert_eq!(cpu_names("processor : 0\n"), "unknown CPU");
    }

    #[test]
    fn counted_time_is_said_to_be_counted() {
        let text = Host::example().to_string();
        assert!(text.contains("16 KiB pages") && text.contains("counts instructions"), "{text}");
        let real = Host { counted: false, emulated: false, ..Host::example() };
        assert_eq!(real.time(), "real time");
    }
}
