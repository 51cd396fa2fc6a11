//! The agent lies in the memory of every guest: the release is linked without symbols, by the linker
//! itself, because the profile's `strip` is not obeyed by every compiler that builds for another
//! architecture.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo:rustc-link-arg-bins=-Wl,--strip-all");
    }
}
