//! `./x demo`: a microVM runs a real web app and answers.

use anyhow::Result;

use crate::{
    cargo,
    host::variant::Variant,
    image, native,
    paths::Paths,
    runner::{self, Run},
    step::say,
};

const CONFIG: &str = "examples/web-app.json";

/// Makes everything, then runs the demonstration on the host.
pub fn main(paths: &Paths, variant: Variant) -> Result<i32> {
    if native::is_arm64() {
        native::require_kvm()?;
    } else {
        say("this is no ARM64 machine: the microVM will run on an emulated one, many times slower");
    }
    image::make(paths, &image::ALL)?;
    let program = cargo::build(paths, "rotifer-demo", "rotifer-demo")?;
    std::env::set_current_dir(&paths.root)?;
    let vmm = image::directory(paths).join("rotifer-vmm").to_string_lossy().into_owned();
    let arguments = vec![vmm, CONFIG.to_owned()];
    say(&format!("starting rotifer-vmm --config-file {CONFIG}"));
    runner::run(paths, &Run { variant, program: &program, arguments: &arguments, timeout: None })
}
