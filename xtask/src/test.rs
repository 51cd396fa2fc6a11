//! `./x test`: every test there is, or some parts of it.

mod cases;
mod count;
mod fuzz;
mod integration;
pub mod journey;
mod unit;

use std::time::Instant;

use anyhow::{Result, bail};

use self::{cases::Part, count::Count};
use crate::{host::variant::Variant, paths::Paths, step::say};

/// Which tests, and how.
#[derive(Debug, clap::Args)]
pub struct TestArguments {
    /// Parts, as `--list` shows them; all if none is given
    parts: Vec<String>,
    /// Show the parts and run nothing
    #[arg(long)]
    list: bool,
    /// Only on this kind of host, also for parts that do not ask for it
    #[arg(long, value_enum)]
    host: Option<Variant>,
    /// Only tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// How long each fuzz target runs
    #[arg(long, value_name = "SECONDS", default_value_t = fuzz::SECONDS)]
    fuzz_seconds: u64,
}

impl TestArguments {
    /// These parts, with every default.
    pub fn of(parts: &[&str]) -> Self {
        Self {
            parts: parts.iter().map(|&part| part.to_owned()).collect(),
            list: false,
            host: None,
            filter: None,
            fuzz_seconds: fuzz::SECONDS,
        }
    }
}

/// Runs the parts; our exit status is 1 if anything failed.
pub fn main(paths: &Paths, arguments: &TestArguments) -> Result<i32> {
    let all = cases::find(paths)?;
    if arguments.list {
        for part in &all {
            println!("{:<14} {}", part.name, part.what());
        }
        return Ok(0);
    }
    let wanted = select(all, &arguments.parts)?;
    let begin = Instant::now();
    let mut results = Vec::new();
    for part in &wanted {
        let started = Instant::now();
        say(&format!("test {}: {}", part.name, part.what()));
        // A part that cannot even run is a failure, and no reason to leave the others out.
        let count = run(paths, part, arguments).unwrap_or_else(|error| {
            say(&format!("test {}: {error:#}", part.name));
            Count::one_failure()
        });
        say(&format!("test {}: {count}, {:.0} s", part.name, started.elapsed().as_secs_f64()));
        results.push((part.name.clone(), count));
    }
    Ok(summarise(&results, begin))
}

fn run(paths: &Paths, part: &Part, arguments: &TestArguments) -> Result<Count> {
    match &part.kind {
        cases::Kind::Format => unit::format(paths),
        cases::Kind::Clippy => unit::clippy(paths),
        cases::Kind::Unit => unit::all(paths, arguments.filter.as_deref()),
        cases::Kind::Package(package) => unit::package(paths, package, arguments.filter.as_deref()),
        cases::Kind::UnitArm64 => integration::unit(paths, arguments),
        cases::Kind::Integration(routes) => integration::run(paths, &part.name, routes, arguments),
        cases::Kind::Journey => journey::run(paths, arguments),
        cases::Kind::Fuzz => fuzz::run_all(paths, arguments.fuzz_seconds),
    }
}

fn select(all: Vec<Part>, names: &[String]) -> Result<Vec<Part>> {
    if names.is_empty() {
        return Ok(all.into_iter().filter(|part| !part.is_in_another).collect());
    }
    let mut wanted = Vec::new();
    for name in names {
        match all.iter().find(|part| part.name == *name) {
            Some(part) => wanted.push(part.clone()),
            None => {
                let known: Vec<&str> = all.iter().map(|part| part.name.as_str()).collect();
                bail!("there is no part {name} of the tests; there are: {}", known.join(", "));
            }
        }
    }
    Ok(wanted)
}

fn summarise(results: &[(String, Count)], begin: Instant) -> i32 {
    let total: Count = results.iter().map(|(_, count)| *count).sum();
    println!();
    for (name, count) in results {
        println!("{:<4} {name:<14} {count}", if count.failed == 0 { "ok" } else { "FAIL" });
    }
    println!("{:.0} s in all", begin.elapsed().as_secs_f64());
    println!("{} passed, {} failed", total.passed, total.failed);
    i32::from(total.failed > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, is_in_another: bool) -> Part {
        Part { name: name.into(), kind: cases::Kind::Unit, is_in_another }
    }

    fn names(parts: &[Part]) -> Vec<&str> {
        parts.iter().map(|part| part.name.as_str()).collect()
    }

    #[test]
    fn without_names_each_test_runs_once() {
        let parts = vec![part("unit", false), part("devices", true)];
        assert_eq!(names(&select(parts, &[]).unwrap()), ["unit"]);
    }

    #[test]
    fn a_part_of_another_can_be_asked_for() {
        let parts = vec![part("unit", false), part("devices", true)];
        assert_eq!(names(&select(parts, &["devices".into()]).unwrap()), ["devices"]);
    }

    #[test]
    fn an_unknown_part_is_refused_with_the_known_ones() {
        let error = select(vec![part("unit", false)], &["bot".into()]).unwrap_err().to_string();
        assert!(error.contains("no part bot") && error.contains("unit"), "{error}");
    }
}
