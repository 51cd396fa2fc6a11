//! A guest that does on its network what it is asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use rotifer_network::guest;
use rotifer_tests::{Vm, VmBuilder};
use serde_json::json;

const PROGRAM: &str = include_str!("../../guests/probe.py");
const PATH: &str = "/tmp/probe.py";
const ADDRESS: &str = "localhost:7000";

/// Words for the guest kernel that set up its network, and start no app but ours.
pub fn boot_args() -> String {
    let (address, gateway) = (guest::ADDRESS, guest::GATEWAY);
    format!("ip={address}::{gateway}:255.255.255.252::eth0:off:{gateway} rotifer.shell")
}

/// With a network, where there is one.
pub fn with_network(builder: VmBuilder) -> VmBuilder {
    builder.boot_args(&boot_args()).interface(guest::TAP, &guest::mac_text(guest::MAC))
}

/// Such a guest.
pub fn builder() -> VmBuilder {
    with_network(VmBuilder::new().memory_mib(256).debian())
}

/// Starts the program in a guest that boots.
pub fn start(vm: &mut Vm) {
    let agent = vm.agent();
    let length = u64::try_from(PROGRAM.len()).unwrap();
    agent.put_file(Path::new(PATH), "mode=644", PROGRAM.as_bytes(), length).unwrap();
    // Nobody else may listen on low ports.
    let app = json!({ "command": ["/usr/bin/python3", PATH], "capabilities": "all" });
    agent.start_app(&app).unwrap();
    let log = agent.logs(0, true).unwrap();
    let mut lines = BufReader::new(log).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("listening")), "{}", vm.report());
}

/// What the program answers.
pub fn ask(vm: &Vm, question: &str) -> String {
    let tunnel = vm.agent_client().tunnel(ADDRESS);
    let mut tunnel = tunnel.unwrap_or_else(|error| panic!("{error}\n{}", vm.report()));
    tunnel.write_all(format!("{question}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    tunnel.read_to_string(&mut answer).unwrap();
    answer
}
