//! What is left of networks on the host, whoever was killed, and what is put right.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{NfTablesMessage, TableAttribute, TableMessage};
use rotifer_network::files::Name;
use rotifer_network::host::Options;
use rotifer_network::netlink;
use rotifer_network::policy::Policy;
use rotifer_tests::internet::{Internet, Process, await_until, rule_set, traces};

/// Rules that are none of ours, in place of those of a host's administrator.
fn add_others_table() {
    let message = TableMessage { attributes: vec![TableAttribute::Name("others".into())] };
    change_rules(NLM_F_CREATE, NfTablesMessage::NewTable(message), NetfilterProtoFamily::Inet);
}

/// As `nft flush ruleset` does it; `table` removes only that one.
fn remove_tables(table: Option<&str>) {
    let attributes = table.map(|name| TableAttribute::Name(name.into())).into_iter().collect();
    let family = match table {
        Some(_) => NetfilterProtoFamily::Inet,
        None => NetfilterProtoFamily::Unspec,
    };
    change_rules(0, NfTablesMessage::DeleteTable(TableMessage { attributes }), family);
}

fn change_rules(flags: u16, message: NfTablesMessage, family: NetfilterProtoFamily) {
    let mut socket = netlink::Socket::netfilter().unwrap();
    socket.transaction("change the rules", vec![(flags, family, message.into())]).unwrap();
}

/// Runs it until then; whether it had come to its end. The moment is no wait for anything: it is what
/// varies.
fn is_done_before(mut command: Command, moment: Duration) -> bool {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut child = Process(child);
    thread::sleep(moment);
    matches!(child.0.try_wait(), Ok(Some(status)) if status.success())
}

#[test]
fn nothing_is_left_of_networks_whose_makers_were_killed() {
    const CYCLES: usize = 500;
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    const AT_ONCE: usize = NAMES.len();
    let internet = Internet::new();
    add_others_table();
    let before = traces(&internet);
    let started = Instant::now();
    assert!(internet.command(&["create", "a"]).status().unwrap().success());
    let whole = started.elapsed();
    assert!(internet.command(&["delete", "a"]).status().unwrap().success());
    let (mut random, mut whole_count) = (0x2545_f491_4f6c_dd1d_u64, 0);
    for round in 0..CYCLES / AT_ONCE {
        whole_count += thread::scope(|scope| {
            let begin = |index: usize| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let moment = whole.mul_f64((random % 1000) as f64 / 800.0);
                let name = NAMES[index];
                let command = internet.command(&match (round + index) % 4 {
                    0 | 1 => vec!["create", name, "--policy", "internet"],
                    2 => vec!["delete", name],
                    _ => vec!["pool", "--fill", "1"],
                });
                scope.spawn(move || is_done_before(command, moment))
            };
            let begun: Vec<_> = (0..AT_ONCE).map(begin).collect();
            begun.into_iter().map(|it| usize::from(it.join().unwrap())).sum::<usize>()
        });
        if round % 2 == 0 {
            assert!(internet.command(&["sweep"]).stdout(Stdio::null()).status().unwrap().success());
        }
    }
    println!("{CYCLES} cycles, of which {whole_count} came to their end: {:?}", started.elapsed());
    assert!(whole_count > 0, "every one was killed: this tried only half of it");
    // What was killed did no harm: a network can be had.
    internet.host.sweep(true).unwrap();
    internet.create("a", "{}");
    let swept = internet.host.sweep(true).unwrap();
    assert_eq!((swept.networks, swept.failures), (vec!["a".to_owned()], Vec::new()));
    assert_eq!(traces(&internet), before);
}

#[test]
fn what_cannot_be_put_right_is_reported_and_keeps_nothing_from_it() {
    let internet = Internet::new();
    let broken = internet.create("broken", "{}");
    let kept = internet.create("kept", "{}");
    let mut owner = Command::new("sleep").arg("1000").spawn().unwrap();
    let options = Options { owner_pid: owner.id().try_into().ok(), ..Options::default() };
    let left: Name = "left".parse().unwrap();
    internet.host.create(&left, &Policy::none(), options).unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    internet.within(&broken, || remove_tables(None));
    let record = internet.root().join("networks/odd.json");
    fs::write(&record, "no JSON").unwrap();
    remove_tables(None);

    let output = internet.command(&["sweep"]).output().unwrap();
    assert!(!output.status.success());
    let swept: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(swept["networks"], serde_json::json!(["left"]));
    let failures = swept["failures"].to_string();
    assert_eq!(swept["failures"].as_array().map(Vec::len), Some(2), "{failures}");
    assert!(failures.contains("odd.json") && failures.contains("network broken"), "{failures}");
    assert!(internet.host.network(&kept).is_ok());
    assert!(!rule_set().is_empty(), "the host's rules are not back");
    fs::remove_file(record).unwrap();
}

#[test]
fn rules_of_the_host_that_somebody_flushes_come_back() {
    let internet = Internet::new();
    let server = internet.start_server();
    let whole = rule_set().len();
    assert!(whole > 0);
    for table in [None, Some("rotifer")] {
        remove_tables(table);
        await_until("the rules are back", || rule_set().len() == whole);
    }
    // The pool is for the internet, and is taken as it is.
    let name = internet.create("vm", r#"{"allow": ["internet"]}"#);
    let from_pool = internet.host.record(&name).unwrap().generation;
    let other = internet.create("other", "{}");
    assert_eq!((from_pool, internet.host.record(&other).unwrap().policy), (1, Policy::none()));
    drop(server);
}
