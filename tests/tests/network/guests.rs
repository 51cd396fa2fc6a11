//! What guests reach, seen from inside of them and on the wire.

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use rotifer_network::files::Name;
use rotifer_network::guest;
use rotifer_network::namespace;
use rotifer_tests::internet::{HOST, Internet, UPLINK_MTU, await_until, send_page, serve};
use rotifer_tests::{Pager, Vm, place};
use tempfile::TempDir;

use crate::probe::{ask, builder, start};

const WEB: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
const LINK_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 7);
const PAGE: &str = "a page";
const INTERNET: &str = r#"{"allow": ["internet"]}"#;
const NAMES: &str = r#"{"allow": ["web.test", "*.wild.test"]}"#;
/// What a guest is told: a TCP reset, "administratively prohibited", and that no name server helps.
const REFUSED: &str = "ECONNREFUSED";
const PROHIBITED: &str = "EHOSTUNREACH";
const NO_NAME: &str = "EAI_AGAIN";
/// Code 5 of RFC 1035, and no address.
const NAME_REFUSED: &str = "5 none";

fn resolve(name: &str) -> Ipv4Addr {
    match name {
        "web.test" | "deep.below.wild.test" => WEB,
        "inside.wild.test" => PRIVATE,
        _ => OTHER,
    }
}

/// Sends until nobody takes it.
fn stream_on(mut stream: TcpStream) {
    while stream.write_all(&[7; 4096]).is_ok() {}
}

/// A snapshot of a guest on a network from which nothing was reached.
fn snapshot(internet: &Internet) -> (TempDir, PathBuf) {
    let (directory, snapshot) = place();
    let image = internet.create("image", "{}");
    let mut vm = internet.within(&image, || builder().start());
    start(&mut vm);
    assert_eq!(ask(&vm, "get 203.0.113.1"), REFUSED);
    vm.suspend(&snapshot, "Full");
    drop(vm);
    internet.host.delete(&image).unwrap();
    (directory, snapshot)
}

#[test]
fn a_guest_reaches_what_its_policy_names_and_is_refused_all_else() {
    let internet = Internet::new();
    internet.serve_names(resolve);
    let page = |stream| send_page(stream, PAGE.as_bytes());
    serve(&internet.namespace, 80, page);
    serve(&internet.namespace, 81, stream_on);
    let of_host = serve(&namespace::own().unwrap(), 80, page);
    let server = internet.start_server();
    let (_directory, snapshot) = snapshot(&internet);
    // Both wake as 172.16.0.2.
    let (one, two) = (internet.create("one", NAMES), internet.create("two", INTERNET));
    let first = internet.within(&one, || builder().restore(&snapshot));
    let second = internet.within(&two, || builder().restore(&snapshot));

    names_open_what_they_resolve_to(&first);
    nothing_near_is_reached(&internet, (&one, &first), (&two, &second));
    nobody_speaks_for_another(&internet, (&two, &second));
    a_change_of_policy_is_followed(&internet, (&two, &second));
    assert_eq!(of_host.load(Ordering::SeqCst), 0, "what was refused got there");

    // What is pinned outlives a change that keeps its name, and not one that does not.
    internet.set_policy(&one, r#"{"allow": ["*.wild.test"]}"#);
    assert_eq!(ask(&first, "get 203.0.113.1"), PAGE);
    internet.set_policy(&one, r#"{"allow": ["web.test"]}"#);
    assert_eq!(ask(&first, "get 203.0.113.1"), REFUSED);
    drop(server);
    assert_eq!(ask(&first, "dns 172.16.0.1 web.test"), REFUSED);
    assert_eq!(ask(&first, "get web.test"), NO_NAME);
    assert_eq!(ask(&first, "get 203.0.113.1"), REFUSED);
}

fn names_open_what_they_resolve_to(vm: &Vm) {
    // The server hears of a namespace that was not in its pool; how long that takes is its business.
    await_until("the resolver answers", || ask(vm, "dns 172.16.0.1 no.test") != REFUSED);
    for (question, answer) in [
        ("get 203.0.113.1", REFUSED),
        ("get web.test", PAGE),
        ("get 203.0.113.1", PAGE),
        ("get WEB.test", PAGE),
        ("dns 172.16.0.1 deep.below.wild.test", "0 203.0.113.1"),
        ("get other.test", NO_NAME),
        ("dns 172.16.0.1 other.test", NAME_REFUSED),
        ("dns 172.16.0.1 wild.test", NAME_REFUSED),
        ("dns 172.16.0.1 web.test.evil.test", NAME_REFUSED),
        // An allowed name does not lead into the host's network, whoever owns it.
        ("dns 172.16.0.1 inside.wild.test", NAME_REFUSED),
        ("get 10.9.9.9", REFUSED),
        ("get 203.0.113.2", REFUSED),
        // Nor do other resolvers help.
        ("dns 203.0.113.53 other.test", PROHIBITED),
    ] {
        assert_eq!(ask(vm, question), answer, "{question}");
    }
}

fn nothing_near_is_reached(internet: &Internet, one: (&Name, &Vm), two: (&Name, &Vm)) {
    let vm = two.1;
    for name in ["web.test", "other.test"] {
        assert_eq!(ask(vm, &format!("get {name}")), PAGE);
    }
    // The other guest listens, and reaches itself.
    assert_eq!(ask(one.1, "listen 80"), "listening");
    assert_eq!(ask(one.1, "hold 172.16.0.2 80"), "closed");
    await_until("the guest has accepted", || ask(one.1, "count_accepted") == "1");
    let address = |name| internet.host.network(name).unwrap().address;
    let end_of = |address: Ipv4Addr| Ipv4Addr::from(u32::from(address) - 1);
    let targets = [
        HOST,
        end_of(address(two.0)),
        end_of(address(one.0)),
        address(one.0),
        PRIVATE,
        LINK_LOCAL,
        guest::METADATA,
        guest::GATEWAY,
    ];
    for target in targets {
        assert_eq!(ask(vm, &format!("get {target}")), REFUSED, "{target}");
    }
    assert_eq!(ask(vm, &format!("udp {PRIVATE} 9")), PROHIBITED);
    assert_eq!(ask(one.1, "count_accepted"), "1");
    let drops = internet.host.drops(two.0).unwrap();
    for target in targets {
        let is_it = drops.destinations.iter().any(|it| (it.address, it.port) == (target, 80));
        assert!(is_it, "{target} is missing in {drops:?}");
    }
    // IPv6 is off, and says so; and what the way does not carry is told.
    assert_eq!(ask(vm, "get 2001:db8::1"), "ENETUNREACH");
    assert_eq!(ask(vm, "mtu 203.0.113.1 9"), UPLINK_MTU.to_string());
}

fn nobody_speaks_for_another(internet: &Internet, (name, vm): (&Name, &Vm)) {
    let bind = || Ok::<_, namespace::Error>(UdpSocket::bind((WEB, 9)).unwrap());
    let nobody = namespace::within(&internet.namespace, bind).unwrap();
    nobody.set_nonblocking(true).unwrap();
    vm.shell("ip address add 9.9.9.9/32 dev lo");
    assert_eq!(ask(vm, "send_as 9.9.9.9 203.0.113.1 9"), "sent");
    // A connection made afterwards is behind it in the queue.
    assert_eq!(ask(vm, "get 203.0.113.1"), PAGE);
    let error = nobody.recv(&mut [0; 64]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let drops = internet.host.drops(name).unwrap();
    assert!(drops.spoofed.packets > 0, "{drops:?}");
}

fn a_change_of_policy_is_followed(internet: &Internet, (name, vm): (&Name, &Vm)) {
    assert_eq!(ask(vm, "hold 203.0.113.1 81"), "held");
    assert_eq!(ask(vm, "hold 203.0.113.2 81"), "held");
    thread::scope(|scope| {
        let ended = scope.spawn(|| ask(vm, "read_to_end 203.0.113.2"));
        internet.set_policy(name, r#"{"allow": ["203.0.113.1"]}"#);
        let changed = Instant::now();
        assert_eq!(ended.join().unwrap(), "ECONNRESET");
        println!("the guest noticed {:?} after the change was answered", changed.elapsed());
    });
    // What begins after the answer is refused without exception.
    assert_eq!(ask(vm, "get 203.0.113.2"), REFUSED);
    // More than all buffers hold: what is still allowed goes on.
    assert_eq!(ask(vm, "read_on 203.0.113.1 16000000"), "read");
    internet.set_policy(name, "{}");
    assert_eq!(ask(vm, "get 203.0.113.1"), REFUSED);
    assert_eq!(ask(vm, "read_to_end 203.0.113.1"), "ECONNRESET");
    internet.set_policy(name, INTERNET);
    assert_eq!(ask(vm, "get 203.0.113.2"), PAGE);
}

#[test]
fn fifty_clones_download_at_the_same_time() {
    const CLONES: usize = 50;
    let content: Vec<u8> = (0..1 << 20).map(|index: usize| (index * 7919 / 251) as u8).collect();
    let internet = Internet::new();
    let (_directory, snapshot) = snapshot(&internet);
    let all_are_here = Arc::new(Barrier::new(CLONES));
    let served = serve(&internet.namespace, 80, {
        let content = content.clone();
        move |stream| {
            all_are_here.wait();
            send_page(stream, &content);
        }
    });
    let started = Instant::now();
    let network = |number| internet.create(&format!("clone-{number}"), INTERNET);
    let networks: Vec<Name> = (0..CLONES).map(network).collect();
    println!("{CLONES} networks from nothing: {:?}", started.elapsed());

    let pager = Pager::start();
    let started = Instant::now();
    let restore = |name| internet.within(name, || builder().restore_shared(&snapshot, &pager));
    let clones: Vec<Vm> = networks.iter().map(restore).collect();
    println!("{CLONES} clones: {:?}", started.elapsed());
    let answers: Vec<String> = thread::scope(|scope| {
        let download = |vm| scope.spawn(move || ask(vm, "download 203.0.113.1"));
        let downloads: Vec<_> = clones.iter().map(download).collect();
        downloads.into_iter().map(|download| download.join().unwrap()).collect()
    });
    println!("and their downloads: {:?}", started.elapsed());
    // Checked by what has not come through the network.
    let (length, agent) = (u64::try_from(content.len()).unwrap(), clones[0].agent_client());
    agent.put_file(Path::new("/tmp/content"), "mode=644", &content[..], length).unwrap();
    let sum = clones[0].shell("sha256sum < /tmp/content | cut -d ' ' -f 1");
    let (address, mac) = (guest::ADDRESS, guest::mac_text(guest::MAC));
    for answer in answers {
        assert_eq!(answer, format!("{} {address} {mac}", sum.trim()));
    }
    assert_eq!(served.load(Ordering::SeqCst), CLONES);
}
