//! A guest that installs a package of Debian from the mirror that this machine uses, through the
//! machine's own uplink.

use std::env;
use std::fs;
use std::process::Stdio;

use rotifer_network::files::Name;
use rotifer_network::guest;
use rotifer_network::host::{Host, Options};
use rotifer_network::namespace;
use rotifer_network::policy::Policy;
use rotifer_tests::internet::{Process, await_until, network_command};
use rotifer_tests::{Artifacts, VmBuilder};
use serde_json::json;
use tempfile::TempDir;

use crate::probe::with_network;

/// Small, and of a small archive: it needs nothing but the C library.
const ARCHIVE: &str = "bookworm-security";
const PACKAGE: &str = "xzdec";

/// Removes what the test has made on this host, whether or not it has failed.
struct Cleanup<'a>(&'a Host);

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        let _the_test_has_failed_already = self.0.sweep(true);
    }
}

/// Where this machine has Debian's archives from, and what it tells apt about them.
fn mirror() -> (String, String) {
    let cache = env::var("ROTIFER_CACHE").expect("./x says where its cache is");
    let read = |name: &str| fs::read_to_string(format!("{cache}/apt/{name}")).expect("read it");
    let sources = read("sources.list");
    let line = sources.lines().find(|line| line.contains(ARCHIVE)).expect("the archive is there");
    let url = line.split_whitespace().find(|word| word.starts_with("http")).expect("it has a URL");
    (url.to_owned(), read("acquire.conf"))
}

#[test]
fn apt_installs_a_package_from_the_mirror_of_this_machine_and_reaches_nothing_else() {
    let (url, settings) = mirror();
    let domain = url.split('/').nth(2).and_then(|host| host.split(':').next()).unwrap();
    let directory = TempDir::new().unwrap();
    let root = directory.path().join("networks");
    let host = Host::open(&root).unwrap();
    let _cleanup = Cleanup(&host);
    let mut server =
        network_command(&Artifacts::network_program(), &root, &["serve", "--pool", "1"]);
    let _server = Process(server.stdin(Stdio::null()).spawn().unwrap());
    await_until("the pool is ready", || host.pool_size().unwrap() == 1);
    let name: Name = "guest".parse().unwrap();
    let policy = Policy::parse(&json!({ "allow": [domain] }).to_string()).unwrap();
    host.create(&name, &policy, Options::default()).unwrap();

    let disk = Artifacts::find().debian;
    let builder = VmBuilder::new().memory_mib(512).overlaid_drive("root", &disk);
    let builder = with_network(builder.boot_args("rotifer.root=/dev/vda rw"));
    let network = host.namespace(&name).unwrap();
    let start = || Ok::<_, namespace::Error>(builder.start());
    let mut vm = namespace::within(&network, start).unwrap();
    vm.wait_until_ready();
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    vm.shell(&format!(
        "echo 'deb [signed-by={keyring}] {url} {ARCHIVE} main' > /etc/apt/sources.list
         cat > /etc/apt/apt.conf.d/99host <<'END'\n{settings}\nEND"
    ));
    println!("{}", vm.shell("apt-get -q update 2>&1"));
    println!(
        "{}",
        vm.shell(&format!("DEBIAN_FRONTEND=noninteractive apt-get -qy install {PACKAGE} 2>&1"))
    );
    assert!(vm.shell(&format!("{PACKAGE} --version")).contains("liblzma"), "{}", vm.report());
    assert!(vm.shell(&format!("dpkg -s {PACKAGE}")).contains("Status: install ok installed"));
    let elsewhere = vm.shell(
        "python3 -c 'import socket; socket.create_connection((\"example.org\", 80))' 2>&1; true",
    );
    assert!(elsewhere.contains("name resolution"), "{elsewhere}");
    let gateway = guest::GATEWAY;
    assert_eq!(vm.shell("cat /etc/resolv.conf"), format!("nameserver {gateway}\n"));
    drop(vm);
}
