//! What `/proc` says about a process.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, bail};

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Pages that are present, shared or not.
    pub resident_kib: u64,
    /// The same, each page divided by the number of processes that map it.
    pub proportional_kib: u64,
    /// Pages that nobody else has: stacks, heap, written data.
    pub private_kib: u64,
}

/// What the CPUs did for a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuUse {
    /// Time on a CPU, guest time included, of all threads.
    pub running_ns: u64,
    /// How often a thread was put on a CPU.
    pub slices: u64,
}

impl Footprint {
    /// Of a process without its guest's RAM.
    ///
    /// # Errors
    /// The process has ended, or has no mapping that could be guest RAM.
    pub fn beyond_guest_ram(process: u32, guest_ram_bytes: u64) -> Result<Self> {
        let path = format!("/proc/{process}/smaps");
        let smaps = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let mappings = parse(&smaps)?;
        let ram = guest_ram(&mappings, guest_ram_bytes).with_context(|| {
            format!("{path} has no mappings of {guest_ram_bytes} bytes that could be guest RAM")
        })?;
        let (before, after) = (mappings.get(..ram.start), mappings.get(ram.end..));
        Ok(total(before.into_iter().chain(after).flatten()))
    }

    /// Of a process that has no guest.
    ///
    /// # Errors
    /// The process has ended.
    pub fn all(process: u32) -> Result<Self> {
        let path = format!("/proc/{process}/smaps");
        let smaps = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(total(parse(&smaps)?.iter()))
    }
}

impl CpuUse {
    /// Since the threads of a process were made.
    ///
    /// # Errors
    /// The process has ended, or the kernel keeps no such account.
    pub fn of(process: u32) -> Result<Self> {
        let tasks = format!("/proc/{process}/task");
        let mut sum = Self::default();
        for task in fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))? {
            let path = task.with_context(|| format!("cannot read {tasks}"))?.path();
            let path = path.join("schedstat");
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let task = Self::parse(&text)
                .with_context(|| format!("{} is not as expected: {text:?}", path.display()))?;
            sum.running_ns += task.running_ns;
            sum.slices += task.slices;
        }
        Ok(sum)
    }

    /// What was used since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            running_ns: self.running_ns.saturating_sub(earlier.running_ns),
            slices: self.slices.saturating_sub(earlier.slices),
        }
    }

    /// Running time, waiting time, number of slices (Documentation/scheduler/sched-stats.rst).
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace().map(str::parse);
        let running_ns = numbers.next()?.ok()?;
        let slices = numbers.nth(1)?.ok()?;
        Some(Self { running_ns, slices })
    }
}

/// KiB as MiB.
#[expect(clippy::cast_precision_loss, reason = "memory is far below 2^52 KiB")]
pub fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// How much memory the host can still give, in KiB.
///
/// # Errors
/// The kernel does not tell.
pub fn available_kib() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
    number.context("/proc/meminfo does not tell how much memory is available")
}

#[derive(Debug, Clone, Copy, Default)]
struct Mapping {
    start: u64,
    end: u64,
    footprint: Footprint,
}

/// Which mappings are guest RAM: neighbours without a gap, since advice for a part of it makes
/// several of one; of all that are large enough together, the smallest.
fn guest_ram(mappings: &[Mapping], ram_bytes: u64) -> Option<Range<usize>> {
    let candidates = (0..mappings.len()).filter_map(|first| {
        let start = mappings[first].start;
        let mut end = start;
        for (index, mapping) in mappings.iter().enumerate().skip(first) {
            if mapping.start != end {
                return None;
            }
            end = mapping.end;
            if end - start >= ram_bytes {
                return Some((end - start, first..index + 1));
            }
        }
        None
    });
    candidates.min_by_key(|(bytes, _)| *bytes).map(|(_, range)| range)
}

fn total<'a>(mappings: impl Iterator<Item = &'a Mapping>) -> Footprint {
    mappings.fold(Footprint::default(), |sum, Mapping { footprint, .. }| Footprint {
        resident_kib: sum.resident_kib + footprint.resident_kib,
        proportional_kib: sum.proportional_kib + footprint.proportional_kib,
        private_kib: sum.private_kib + footprint.private_kib,
    })
}

/// Each mapping has a line with its addresses, then lines `Name: value`.
fn parse(smaps: &str) -> Result<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        if let Some(Range { start, end }) = addresses(line) {
            mappings.push(Mapping { start, end, ..Mapping::default() });
            continue;
        }
        let (Some(mapping), Some((name, value))) = (mappings.last_mut(), line.split_once(':'))
        else {
            bail!("smaps has a line that belongs to no mapping: {line:?}");
        };
        let footprint = &mut mapping.footprint;
        let field = match name {
            "Rss" => &mut footprint.resident_kib,
            "Pss" => &mut footprint.proportional_kib,
            "Private_Clean" | "Private_Dirty" => &mut footprint.private_kib,
            _ => continue,
        };
        let number = value.trim().strip_suffix(" kB").and_then(|kib| kib.parse::<u64>().ok());
        *field += number.with_context(|| format!("smaps has no number in {line:?}"))?;
    }
    Ok(mappings)
}

/// `start-end`, in hexadecimal, at the beginning of a mapping's first line.
fn addresses(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    let range = address(start)?..address(end)?;
    (range.start <= range.end).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00600000 r-xp 00000000 00:01 5      /run/rotifer-vmm
Size:               2048 kB
Rss:                1000 kB
Pss:                 500 kB
Pss_Dirty:             0 kB
Private_Clean:         8 kB
Private_Dirty:         0 kB
VmFlags: rd ex mr mw me
ffff80000000-ffff88000000 rw-p 00000000 00:00 0
Rss:              131072 kB
Pss:              131072 kB
Private_Clean:         0 kB
Private_Dirty:    131072 kB
ffff90000000-ffff90021000 rw-p 00000000 00:00 0 [heap]
Rss:                 100 kB
Pss:                 100 kB
Private_Clean:         2 kB
Private_Dirty:        90 kB
";

    #[test]
    fn guest_ram_is_not_the_vmms_memory() {
        let mappings = parse(SMAPS).unwrap();
        let ram = guest_ram(&mappings, 128 << 20).unwrap();
        assert_eq!(ram, 1..2);
        let others = [&mappings[..ram.start], &mappings[ram.end..]].concat();
        let expected = Footprint { resident_kib: 1100, proportional_kib: 600, private_kib: 100 };
        assert_eq!(total(others.iter()), expected);
    }

    #[test]
    fn guest_ram_of_several_mappings_ends_at_a_gap_and_is_no_larger_than_needed() {
        let mapping = |(start, end)| Mapping { start, end, ..Mapping::default() };
        let mappings = [(0, 1), (2, 3), (3, 5), (5, 13), (13, 14), (20, 40)].map(mapping);
        assert_eq!(guest_ram(&mappings, 10), Some(2..4));
        assert_eq!(guest_ram(&mappings, 11), Some(1..4));
        assert_eq!(guest_ram(&mappings, 15), Some(5..6));
        assert_eq!(guest_ram(&mappings, 21), None);
    }

    #[test]
    fn a_process_without_guest_ram_is_no_vmm() {
        let error = Footprint::beyond_guest_ram(std::process::id(), 1 << 46).unwrap_err();
        assert!(error.to_string().contains("could be guest RAM"), "{error}");
        assert!(Footprint::all(std::process::id()).unwrap().resident_kib > 0);
    }

    #[test]
    fn smaps_that_make_no_sense_are_refused() {
        assert!(parse("Rss: 1 kB\n").is_err());
        assert!(parse("0-1000 r\nRss: many kB\n").is_err());
    }

    #[test]
    fn cpu_use_is_running_time_and_slices() {
        let expected = CpuUse { running_ns: 1500, slices: 7 };
        assert_eq!(CpuUse::parse("1500 20 7\n"), Some(expected));
        assert_eq!(CpuUse::parse("1500 20\n"), None);
        assert_eq!(CpuUse::parse(""), None);
    }

    #[test]
    fn the_host_tells_how_much_memory_it_has_left() {
        assert!(available_kib().unwrap() > 0);
    }

    #[test]
    fn our_own_cpu_use_grows() {
        let before = CpuUse::of(std::process::id()).unwrap();
        let after = CpuUse::of(std::process::id()).unwrap();
        assert!(after.running_ns >= before.running_ns);
        assert_eq!(before.since(after).slices, 0);
    }
}
