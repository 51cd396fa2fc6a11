//! `rotifer-build-worker`: what acts inside the build machine. The builder puts it there and asks it on
//! its standard input; it is of no use to people.

fn main() {
    std::process::exit(rotifer_build_worker::main());
}
