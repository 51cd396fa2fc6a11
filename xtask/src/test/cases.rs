//! The parts of the tests. A file in `tests/tests/` is a part by being there.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{host::variant::Variant, paths::Paths};

/// Where the tests of a file run: on one host; or on several, one after the other, each of which runs
/// the tests of its stop and finds what the ones before it left.
pub type Route = Vec<Variant>;

/// A line of this form among a file's first comments says where its tests run: on each of the routes
/// between its commas, `gicv3, gicv2 -> 16k`.
const HOSTS: &str = "//! hosts:";
const ARROW: &str = " -> ";
/// The package whose journeys use the AWS CLI and boto3.
pub const CONTROL: &str = "rotifer-control";
/// Packages whose unit tests run on any Linux, by the name of their directory.
const PACKAGES: &[(&str, &str)] = &[
    ("snapshot", "rotifer-snapshot"),
    ("devices", "rotifer-devices"),
    ("vmm", "rotifer-vmm"),
    ("guest-agent", "rotifer-agent"),
    ("control/network", "rotifer-network"),
    ("control", CONTROL),
    ("control/build", "rotifer-build"),
    ("control/build/worker", "rotifer-build-worker"),
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
    /// A file of integration tests, on each of these routes
    Integration(Vec<Route>),
    /// The control plane with microVMs on the host, and AWS's clients on this machine
    Journey,
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
            Kind::Integration(routes) => {
                let names: Vec<String> = routes.iter().map(|route| name_of(route)).collect();
                format!("microVMs, on hosts of kind {}", names.join(", "))
            }
            Kind::Journey => {
                "the control plane on a gicv3 host, AWS's clients on this machine".into()
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
        parts.push(Part::new(&name, Kind::Integration(routes_of(&path)?)));
    }
    parts.push(Part::new("journey", Kind::Journey));
    parts.push(Part::new("fuzz", Kind::Fuzz));
    Ok(parts)
}

/// A route as it is written in the files.
pub fn name_of(route: &[Variant]) -> String {
    let names: Vec<&str> = route.iter().map(|host| host.name()).collect();
    names.join(ARROW)
}

fn routes_of(path: &Path) -> Result<Vec<Route>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path:?}"))?;
    parse_routes(&text).with_context(|| format!("the hosts of {}", path.display()))
}

fn parse_routes(text: &str) -> Result<Vec<Route>> {
    let Some(line) = text.lines().find_map(|line| line.strip_prefix(HOSTS)) else {
        return Ok(vec![vec![Variant::Gicv3]]);
    };
    let host = |name: &str| match Variant::from_str(name.trim(), false) {
        Ok(host) => Ok(host),
        Err(_) => bail!("there is no host of kind {:?}", name.trim()),
    };
    line.split(',').map(|route| route.split(ARROW.trim()).map(host).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_on_which_hosts_it_runs() {
        let text = "//! Boots.\n//!\n//! hosts: gicv3, gicv2,16k\n\nuse x;\n";
        let hosts = [Variant::Gicv3, Variant::Gicv2, Variant::Pages16k];
        assert_eq!(parse_routes(text).unwrap(), hosts.map(|host| vec![host]));
    }

    #[test]
    fn a_file_can_ask_for_several_hosts_one_after_the_other() {
        let routes = parse_routes("//! hosts: gicv3 -> 16k, sve\n").unwrap();
        assert_eq!(routes, [vec![Variant::Gicv3, Variant::Pages16k], vec![Variant::Sve]]);
        assert_eq!(name_of(&routes[0]), "gicv3 -> 16k");
    }

    #[test]
    fn a_file_that_says_nothing_runs_on_the_default_host() {
        assert_eq!(parse_routes("use x;\n").unwrap(), [vec![Variant::Gicv3]]);
    }

    #[test]
    fn a_misspelt_host_is_refused() {
        let error = parse_routes("//! hosts: gicv3 -> gicv4\n").unwrap_err().to_string();
        assert!(error.contains("gicv4"), "{error}");
    }
}
