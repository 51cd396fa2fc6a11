//! The parts of the tests. A file in `tests/tests/` is a part by being there.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{host::variant::Variant, paths::Paths};

/// A line of this form among a file's first comments says where its tests run.
const HOSTS: &str = "//! hosts:";
/// Packages whose unit tests run on any Linux, by the name of their directory.
const PACKAGES: &[(&str, &str)] = &[
    ("snapshot", "rotifer-snapshot"),
    ("devices", "rotifer-devices"),
    ("vmm", "rotifer-vmm"),
    ("guest-agent", "rotifer-agent"),
    ("benches", "rotifer-benches"),
    ("xtask", "xtask"),
];

/// A part that can be asked for by name.
#[derive(Clone, Debug)]
pub struct Part {
    /// On the command line.
    pub name: String,
    /// How it is run.
    pub kind: Kind,
    /// It runs as a piece of another part unless it is asked for.
    pub is_in_another: bool,
}

/// What a part is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// `cargo fmt --check`
    Format,
    /// `cargo clippy` for this machine and for ARM64
    Clippy,
    /// Unit tests of all packages, on this machine
    Unit,
    /// Unit tests of one package, on this machine
    Package(&'static str),
    /// Unit tests of the code that exists on ARM64 only, on the host
    UnitArm64,
    /// A file of integration tests, on these hosts
    Integration(Vec<Variant>),
    /// Every fuzz target, for a bounded time
    Fuzz,
}

impl Part {
    fn new(name: &str, kind: Kind) -> Self {
        let is_in_another = matches!(kind, Kind::Package(_));
        Self { name: name.to_owned(), kind, is_in_another }
    }

    /// One line for a person.
    pub fn what(&self) -> String {
        match &self.kind {
            Kind::Format => "the formatting of all code".into(),
            Kind::Clippy => "clippy, for this machine and for ARM64".into(),
            Kind::Unit => "unit tests, on this machine".into(),
            Kind::Package(package) => format!("unit tests of {package}, on this machine"),
            Kind::UnitArm64 => "unit tests of the VMM, on an ARM64 host".into(),
            Kind::Integration(hosts) => {
                let names: Vec<&str> = hosts.iter().map(|host| host.name()).collect();
                format!("microVMs, on hosts of kind {}", names.join(", "))
            }
            Kind::Fuzz => "fuzz targets, for a bounded time".into(),
        }
    }
}

/// All parts in the order in which they run: what fails fast comes first.
pub fn find(paths: &Paths) -> Result<Vec<Part>> {
    let mut parts = vec![
        Part::new("fmt", Kind::Format),
        Part::new("clippy", Kind::Clippy),
        Part::new("unit", Kind::Unit),
    ];
    for (name, package) in PACKAGES {
        parts.push(Part::new(name, Kind::Package(package)));
    }
    parts.push(Part::new("unit-arm64", Kind::UnitArm64));
    let directory = paths.root.join("tests/tests");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot list {directory:?}"))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.sort();
    for path in files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        parts.push(Part::new(&name, Kind::Integration(hosts_of(&path)?)));
    }
    parts.push(Part::new("fuzz", Kind::Fuzz));
    Ok(parts)
}

fn hosts_of(path: &Path) -> Result<Vec<Variant>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path:?}"))?;
    parse_hosts(&text).with_context(|| format!("the hosts of {}", path.display()))
}

fn parse_hosts(text: &str) -> Result<Vec<Variant>> {
    let Some(line) = text.lines().find_map(|line| line.strip_prefix(HOSTS)) else {
        return Ok(vec![Variant::Gicv3]);
    };
    let mut hosts = Vec::new();
    for name in line.split(',').map(str::trim) {
        match Variant::from_str(name, false) {
            Ok(host) => hosts.push(host),
            Err(_) => bail!("there is no host of kind {name:?}"),
        }
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_on_which_hosts_it_runs() {
        let text = "//! Boots.\n//!\n//! hosts: gicv3, gicv2,16k\n\nuse x;\n";
        let hosts = [Variant::Gicv3, Variant::Gicv2, Variant::Pages16k];
        assert_eq!(parse_hosts(text).unwrap(), hosts);
    }

    #[test]
    fn a_file_that_says_nothing_runs_on_the_default_host() {
        assert_eq!(parse_hosts("use x;\n").unwrap(), [Variant::Gicv3]);
    }

    #[test]
    fn a_misspelt_host_is_refused() {
        let error = parse_hosts("//! hosts: gicv4\n").unwrap_err().to_string();
        assert!(error.contains("gicv4"), "{error}");
    }
}
