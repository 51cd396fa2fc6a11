//! Builds the bare-metal guests in `guests/`: flat arm64 Images, next to nothing in them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=guests");
    // They are guests of ARM64 machines only; on others there is nothing to run them.
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("aarch64") {
        let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        build("hostile", &out_dir);
    }
}

fn build(name: &str, out_dir: &Path) {
    let linker = env::var("RUSTC_LINKER").unwrap_or_else(|_| "gcc".into());
    // aarch64-linux-gnu-gcc comes with aarch64-linux-gnu-objcopy, gcc with objcopy.
    let objcopy = linker.strip_suffix("gcc").map_or("objcopy".into(), |p| format!("{p}objcopy"));
    let elf = out_dir.join(format!("{name}.elf"));
    let image = out_dir.join(format!("{name}.image"));
    let link_args = format!(
        "-nostartfiles -nostdlib -static -Wl,-T,guests/{name}.ld -Wl,--build-id=none \
         -Wl,--no-warn-rwx-segments"
    );
    run(Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"))
        .args(["--edition", "2024", "--crate-type", "bin", "--crate-name", name])
        .args(["--target", &env::var("TARGET").expect("cargo sets TARGET")])
        .args(["-C", "panic=abort", "-C", "opt-level=2", "-C", "relocation-model=static"])
        .args(["-C", "default-linker-libraries=no", "-C", &format!("linker={linker}")])
        .args(["-C", &format!("link-args={link_args}")])
        .arg(format!("guests/{name}.rs"))
        .arg("-o")
        .arg(&elf));
    run(Command::new(objcopy).args(["-O", "binary"]).arg(&elf).arg(&image));
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
