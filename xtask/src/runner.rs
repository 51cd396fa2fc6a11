//! The cargo runner: runs a binary for ARM64 where it can run.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    host::{self, client::Input, instance::Instance, variant::Variant},
    image, native,
    paths::{Paths, digest},
};

/// Staged programs that nobody has used for so long are removed.
const STAGED_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A program to run.
#[derive(Debug)]
pub struct Run<'a> {
    /// On which kind of emulated host, if this machine needs one.
    pub variant: Variant,
    /// Built for ARM64.
    pub program: &'a Path,
    /// What it is told.
    pub arguments: &'a [String],
    /// After which it is ended.
    pub timeout: Option<Duration>,
}

/// Runs a program on the host, or here if this is an ARM64 machine; the result is its status.
pub fn run(paths: &Paths, run: &Run) -> Result<i32> {
    let program = run
        .program
        .canonicalize()
        .with_context(|| format!("no program to run at {:?}", run.program))?;
    if native::is_arm64() {
        let mut words = vec![program.to_string_lossy().into_owned()];
        words.extend(run.arguments.iter().cloned());
        return native::run(&words, &variables(paths));
    }
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let staged = stage(paths, &program)?;
    let input = if host::client::terminal_size().is_some() { Input::Nothing } else { Input::Ours };
    let mut job = host::job(staged_command(&staged, &name, run.arguments), true)?;
    job.environment.extend(variables(paths));
    if run.variant == Variant::Counted {
        // Benchmarks say what their time means; the machine itself does not know.
        job.environment.push(("ROTIFER_HOST_COUNTED".to_owned(), "1".to_owned()));
    }
    Instance::new(paths, run.variant)?.connect()?.run(job, input, run.timeout)
}

/// What programs find their files by, unless the caller says otherwise.
fn variables(paths: &Paths) -> Vec<(String, String)> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut variables = vec![("ROTIFER_CACHE".to_owned(), text(&paths.cache))];
    if env::var_os("ROTIFER_ARTIFACTS").is_none() {
        variables.push(("ROTIFER_ARTIFACTS".to_owned(), text(&image::directory(paths))));
    }
    variables
}

/// A copy in the cache, which the host sees, named by what it is, without debug sections.
fn stage(paths: &Paths, program: &Path) -> Result<PathBuf> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {program:?}"))?;
    let directory = paths.cache.join("host/programs");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {directory:?}"))?;
    let staged = directory.join(digest(&bytes));
    if staged.exists() {
        return Ok(staged);
    }
    remove_old(&directory);
    let partial = directory.join(format!("partial-{}", std::process::id()));
    let mut strip = Command::new("aarch64-linux-gnu-strip");
    strip.arg("--strip-debug").arg("-o").arg(&partial).arg(program);
    if !strip.output().is_ok_and(|output| output.status.success()) {
        fs::write(&partial, &bytes).with_context(|| format!("cannot write {partial:?}"))?;
    }
    fs::rename(&partial, &staged).with_context(|| format!("cannot name {staged:?}"))?;
    Ok(staged)
}

fn remove_old(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let used = entry.metadata().and_then(|data| data.modified()).ok();
        if used.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > STAGED_AGE_MAX) {
            let _another_may_have = fs::remove_file(entry.path());
        }
    }
}

/// Copies a program into the memory of the host, once, and runs it there: executing it from 9p
/// would page it in slowly. The copy of an older version is removed.
fn staged_command(staged: &Path, name: &str, arguments: &[String]) -> Vec<String> {
    let script = "d=/run/bin/$2; p=$d/$3; if [ ! -x \"$p\" ]; then rm -rf \"$d\"; mkdir -p \"$d\"; \
                  cp \"$1\" \"$p.$$\" && chmod 755 \"$p.$$\" && mv \"$p.$$\" \"$p\" || exit 126; fi; \
                  shift 3; exec \"$p\" \"$@\"";
    let digest = staged.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let source = staged.to_string_lossy().into_owned();
    let words = ["/bin/sh", "-c", script, "run", &source, name, &digest];
    words.into_iter().map(str::to_owned).chain(arguments.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_arguments_are_not_seen_by_the_shell() {
        let arguments = ["a b".to_owned(), "$(x)".to_owned()];
        let words = staged_command(Path::new("/cache/digest"), "test", &arguments);
        assert_eq!(words.get(4..7).unwrap(), ["/cache/digest", "test", "digest"]);
        assert_eq!(words.get(7..).unwrap(), arguments);
    }
}
