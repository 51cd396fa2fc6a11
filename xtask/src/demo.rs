//! `./x demo`: a microVM runs a real web app and answers; then the guide to Lambda MicroVMs, with the AWS CLI.

use anyhow::Result;

use crate::{
    cargo,
    host::variant::Variant,
    image, native,
    paths::Paths,
    runner::{self, Run},
    step,
    test::journey,
};

const CONFIG: &str = "examples/web-app.json";
const GUIDE: &str = "guide.py";
/// What the guide's image is built from, from one demonstration to the next.
const STORE: &str = "demo-store";

/// Makes everything, then runs the demonstrations on the host.
pub fn main(paths: &Paths, variant: Variant) -> Result<i32> {
    if native::is_arm64() {
        native::require_kvm()?;
    } else {
        step::say("this is no ARM64 machine: microVMs run on an emulated one, many times slower");
    }
    journey::prepare(paths)?;
    let program = cargo::build(paths, "rotifer-demo", "rotifer-demo")?;
    std::env::set_current_dir(&paths.root)?;
    let vmm = image::directory(paths).join("rotifer-vmm").to_string_lossy().into_owned();
    let arguments = vec![vmm, CONFIG.to_owned()];
    step::say(&format!("1 of 2, the VMM alone: rotifer-vmm --config-file {CONFIG}"));
    let status = runner::run(
        paths,
        &Run { variant, program: &program, arguments: &arguments, timeout: None },
    )?;
    if status != 0 {
        return Ok(status);
    }
    step::say("2 of 2, the control plane: a daemon on the host, and the AWS CLI here");
    let mut guide = journey::script(paths, variant, GUIDE)?;
    step::run(guide.args(["--kept-store", STORE])).map(|()| 0)
}
