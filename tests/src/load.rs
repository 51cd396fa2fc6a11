//! A guest whose CPU, memory and disk are busy, and which notices if any of them loses or changes a
//! bit: the program `soak_load`, in an initramfs with nothing but the agent.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use serde_json::json;

use crate::{Vm, VmBuilder};

/// How large its disk is, at least.
pub const LOAD_DISK_BYTES: u64 = 1 << 20;
const PROGRAM: &str = "/load";
const ADDRESS: &str = "localhost:7000";

/// How much of its data the load looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// What it works on meanwhile.
    AtSome,
    /// All of it.
    AtAll,
}

/// What the guest looks like from inside.
#[derive(Debug, Clone, Copy)]
pub struct LoadedGuest {
    /// Memory that is available.
    pub available_kib: u64,
    /// Resident memory of the agent.
    pub agent_kib: u64,
    /// Open files of the agent.
    pub agent_fds: u64,
}

/// Starts such a guest; its first disk is the load's. `program` is the path of `soak_load`.
///
/// # Panics
/// If the load does not start.
pub fn start_load(builder: &VmBuilder, program: &str) -> Vm {
    let mut vm = builder.start();
    let agent = vm.agent();
    let file = File::open(program).expect("open the load's program");
    let length = file.metadata().expect("measure the load's program").len();
    agent.put_file(Path::new(PROGRAM), "mode=755", file, length).expect("upload the load");
    // It looks at the agent, which only who may do everything can.
    let app = json!({ "command": [PROGRAM, "/dev/vda"], "capabilities": "all" });
    agent.start_app(&app).expect("start the load");
    let log = agent.logs(0, true).expect("follow the load's log");
    let mut lines = BufReader::new(log).lines().map(|line| line.expect("read the load's log"));
    assert!(lines.any(|line| line.contains("listening")), "{}", vm.report());
    vm
}

/// Waits until the load has gone on, and has found its data right.
///
/// # Panics
/// If it has not; what was wrong is shown.
pub fn ask_load(vm: &Vm, look: Look) -> LoadedGuest {
    let tunnel = vm.agent_client().tunnel(ADDRESS);
    let mut tunnel = tunnel.unwrap_or_else(|error| panic!("{error}\n{}", vm.report()));
    let question: &[u8] = match look {
        Look::AtSome => b"some\n",
        Look::AtAll => b"all\n",
    };
    tunnel.write_all(question).expect("ask the load");
    let mut answer = String::new();
    tunnel.read_to_string(&mut answer).expect("read the load's answer");
    let numbers: Vec<u64> = answer.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [available_kib, agent_kib, agent_fds] = numbers[..] else {
        panic!("the load: {answer:?}\n{}", vm.report())
    };
    LoadedGuest { available_kib, agent_kib, agent_fds }
}
