//! The AWS CLI, boto3 and gRPC, for the control plane's journeys: in the cache, from PyPI or from wherever this
//! machine's pip is configured to look.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{
    paths::{Paths, digest},
    step::{output_of, run, step},
};

const REQUIREMENTS: &str = "control/tests/python/requirements.txt";
/// There when everything is.
const COMPLETE: &str = ".complete";

/// A Python environment with what the journeys require; made if there is none of these versions.
pub fn environment(paths: &Paths) -> Result<PathBuf> {
    let requirements = paths.root.join(REQUIREMENTS);
    let bytes = fs::read(&requirements).with_context(|| format!("cannot read {requirements:?}"))?;
    let environment = paths.cache.join(format!("python-{}", digest(&bytes)));
    if environment.join(COMPLETE).exists() {
        return Ok(environment);
    }
    step("installing the AWS CLI, boto3 and gRPC", || {
        let mut venv = Command::new("/usr/bin/python3");
        output_of(venv.args(["-m", "venv", "--clear"]).arg(&environment))?;
        let mut pip = Command::new(environment.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        run(pip.arg("--requirement").arg(&requirements)).context(
            "pip cannot install them: is there a network, and an index in pip's configuration?",
        )?;
        let marker = environment.join(COMPLETE);
        fs::write(&marker, "").with_context(|| format!("cannot write {marker:?}"))
    })?;
    Ok(environment)
}
