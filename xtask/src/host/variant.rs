//! The kinds of ARM64 machine that are emulated.

/// One machine to test on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Variant {
    /// GICv3, 4 KiB pages, no SVE: the fast default.
    #[value(name = "gicv3")]
    Gicv3,
    /// GICv2 and Cortex-A76, as in a Raspberry Pi 5 with a 4 KiB kernel.
    #[value(name = "gicv2")]
    Gicv2,
    /// GICv3 and 16 KiB pages.
    #[value(name = "16k")]
    Pages16k,
    /// GICv2, Cortex-A76 and 16 KiB pages: a Raspberry Pi 5 as it comes.
    #[value(name = "gicv2-16k")]
    Gicv2Pages16k,
    /// GICv3 with SVE and pointer authentication, as in Graviton 3 and 4.
    #[value(name = "sve")]
    Sve,
    /// GICv3, one CPU, and a clock that counts instructions: noise-free ratios.
    #[value(name = "counted")]
    Counted,
}

/// Which of Debian's kernels the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// `linux-image-*-arm64`
    FourKib,
    /// `linux-image-*-arm64-16k`
    SixteenKib,
}

/// What QEMU is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Generation of the interrupt controller.
    pub gic: u8,
    /// `-cpu`
    pub cpu: &'static str,
    /// `-accel` and what belongs to it.
    pub accel: &'static [&'static str],
    /// `-smp`
    pub cpu_count: u8,
    /// Page size of the kernel.
    pub pages: Pages,
}

/// Everything the emulator has but what is slow to emulate.
const FAST_CPU: &str = "max,pauth=off,sve=off,sme=off,lpa2=off";
const SVE_CPU: &str = "max,pauth-impdef=on,sme=off,lpa2=off";
const PI_CPU: &str = "cortex-a76";
const PARALLEL: &[&str] = &["-accel", "tcg,thread=multi,tb-size=512"];
/// One nanosecond of the machine's time is one instruction.
const COUNTED: &[&str] =
    &["-accel", "tcg,thread=single,tb-size=512", "-icount", "shift=0,sleep=off"];

impl Variant {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gicv3 => "gicv3",
            Self::Gicv2 => "gicv2",
            Self::Pages16k => "16k",
            Self::Gicv2Pages16k => "gicv2-16k",
            Self::Sve => "sve",
            Self::Counted => "counted",
        }
    }

    /// The machine of this variant.
    pub fn machine(self) -> Machine {
        let default =
            Machine { gic: 3, cpu: FAST_CPU, accel: PARALLEL, cpu_count: 2, pages: Pages::FourKib };
        match self {
            Self::Gicv3 => default,
            Self::Gicv2 => Machine { gic: 2, cpu: PI_CPU, ..default },
            Self::Pages16k => Machine { pages: Pages::SixteenKib, ..default },
            Self::Gicv2Pages16k => {
                Machine { gic: 2, cpu: PI_CPU, pages: Pages::SixteenKib, ..default }
            }
            Self::Sve => Machine { cpu: SVE_CPU, ..default },
            Self::Counted => Machine { accel: COUNTED, cpu_count: 1, ..default },
        }
    }
}

impl Pages {
    /// Part of file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::FourKib => "4k",
            Self::SixteenKib => "16k",
        }
    }

    /// Matches the names of the kernel packages that will do.
    pub fn package_pattern(self) -> &'static str {
        match self {
            Self::FourKib => r"^linux-image-6\.12\.[0-9]+\+deb12-arm64$",
            Self::SixteenKib => r"^linux-image-6\.12\.[0-9]+\+deb12-arm64-16k$",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_variant_has_its_own_name_and_machine() {
        let variants = Variant::value_variants();
        for (index, one) in variants.iter().enumerate() {
            assert_eq!(Variant::from_str(one.name(), false), Ok(*one));
            for other in &variants[index + 1..] {
                assert_ne!(one.machine(), other.machine());
            }
        }
    }
}
