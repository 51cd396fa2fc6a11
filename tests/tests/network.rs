//! Networks: what a guest reaches, what it is refused, and that nothing is left of any.
//!
//! hosts: gicv3

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpStream, UdpSocket},
    process::{Child, Stdio},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name as DnsName, RData, Record, RecordType, rdata::A},
};
use rotifer_network::{
    drops::{Destination, Drops},
    files::Name,
    guest, link, namespace, netlink,
    policy::Policy,
};
use rotifer_tests::{
    DEADLINE,
    internet::{Guest, HOST, Internet},
};

const WEB: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const DNS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
const LINK_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 7);
const INTERNET: &str = r#"{"allow": ["internet"]}"#;

/// Says who it believes to speak with.
fn greet(mut stream: TcpStream) {
    let from = stream.peer_addr().map(|address| address.ip().to_string()).unwrap_or_default();
    let _the_guest_may_be_gone = stream.write_all(from.as_bytes());
}

/// Sends until nobody takes it.
fn stream_on(mut stream: TcpStream) {
    while stream.write_all(&[7; 4096]).is_ok() {}
}

fn refused(result: std::io::Result<impl Sized>) -> ErrorKind {
    result.map(|_| "it is reached").expect_err("this must be refused").kind()
}

fn drops(internet: &Internet, name: &str) -> Drops {
    internet.host.drops(&name.parse().expect("a name")).expect("read what was refused")
}

#[test]
fn a_guest_reaches_the_internet_and_neither_host_nor_neighbours_nor_private_ranges() {
    let internet = Internet::new();
    let outside = Internet::serve(&internet.namespace, 80, greet);
    let host = Internet::serve(&namespace::own().unwrap(), 80, greet);
    let one = internet.guest("one", INTERNET);
    let two = internet.guest("two", INTERNET);
    let inside = one.within(|| namespace::own().unwrap());
    let neighbour = Internet::serve(&inside, 80, greet);

    for guest in [&one, &two] {
        // Both are 172.16.0.2, and both are seen as the host.
        assert_eq!(guest.read(WEB, 80).unwrap(), HOST.to_string().into_bytes());
    }
    let before = outside.load(Ordering::SeqCst);
    let ends = internet.host.networks().unwrap();
    let address_of_one = ends[0].address;
    let end_of_two = Ipv4Addr::from(u32::from(ends[1].address) - 1);
    for target in [HOST, end_of_two, address_of_one, PRIVATE, LINK_LOCAL, guest::METADATA] {
        assert_eq!(refused(two.connect(target, 80)), ErrorKind::ConnectionRefused, "{target}");
    }
    assert_eq!(refused(two.connect(guest::GATEWAY, 80)), ErrorKind::ConnectionRefused);
    assert_eq!(refused(two.ask(PRIVATE, 9, b"?")), ErrorKind::HostUnreachable);
    let reached = [outside, host, neighbour].map(|count| count.load(Ordering::SeqCst));
    assert_eq!(reached, [before, 0, 0], "what was refused got there");

    let seen = drops(&internet, "two");
    for target in [HOST, end_of_two, address_of_one, PRIVATE, LINK_LOCAL, guest::METADATA] {
        let is_it = |entry: &&Destination| (entry.address, entry.port) == (target, 80);
        let entry = seen.destinations.iter().find(is_it).unwrap_or_else(|| panic!("{seen:?}"));
        assert_eq!(entry.protocol, "tcp");
    }
    assert!(seen.policy.packets >= 8, "{seen:?}");
    assert_eq!(drops(&internet, "one").policy.packets, 0);
}

#[test]
fn a_guest_speaks_for_itself_and_in_ipv4_only() {
    let internet = Internet::new();
    let outside = Internet::serve(&internet.namespace, 80, greet);
    let bind = || Ok::<_, namespace::Error>(UdpSocket::bind((WEB, 9)).unwrap());
    let nobody = namespace::within(&internet.namespace, bind).unwrap();
    nobody.set_nonblocking(true).unwrap();
    let guest = internet.guest("vm", INTERNET);
    let false_address = Ipv4Addr::new(9, 9, 9, 9);
    guest.within(|| {
        let mut socket = netlink::Socket::route().unwrap();
        let loopback = link::find(&mut socket, "lo").unwrap();
        link::add_address(&mut socket, &loopback, false_address, 32).unwrap();
        let socket = UdpSocket::bind((false_address, 0)).unwrap();
        socket.send_to(b"it was another", (WEB, 9)).unwrap();
    });
    // The guest's kernel greets its neighbours in IPv6 as soon as there is a link; and a connection
    // made afterwards is behind both in the queue.
    guest.read(WEB, 80).unwrap();
    assert_eq!(outside.load(Ordering::SeqCst), 1);
    let seen = drops(&internet, "vm");
    // Already the question where the router is has the false sender.
    assert!(seen.spoofed.packets > 0, "{seen:?}");
    assert_eq!(refused(nobody.recv(&mut [0; 64])), ErrorKind::WouldBlock);
    assert!(seen.not_ipv4.packets > 0, "{seen:?}");
}

#[test]
fn a_change_of_policy_holds_at_once_and_for_open_connections() {
    let internet = Internet::new();
    Internet::serve(&internet.namespace, 80, greet);
    Internet::serve(&internet.namespace, 81, stream_on);
    let guest = internet.guest("vm", r#"{"allow": ["203.0.113.0/31", "203.0.113.2/32"]}"#);
    let name: Name = "vm".parse().unwrap();
    let set = |policy: &str| {
        internet.host.set_policy(&name, &Policy::parse(policy).unwrap()).unwrap();
    };
    let mut kept = guest.connect(WEB, 81).unwrap();
    let mut ended = guest.connect(OTHER, 81).unwrap();
    let mut buffer = [0; 4096];
    kept.read_exact(&mut buffer).unwrap();
    ended.read_exact(&mut buffer).unwrap();

    set(r#"{"allow": ["203.0.113.1"]}"#);
    let changed = Instant::now();
    let error = loop {
        if let Err(error) = ended.read_exact(&mut buffer) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "after {:?}", changed.elapsed());
    assert_eq!(refused(guest.connect(OTHER, 80)), ErrorKind::ConnectionRefused);
    for _ in 0..1000 {
        kept.read_exact(&mut buffer).expect("what is still allowed goes on");
    }
    set("{}");
    assert_eq!(refused(guest.connect(WEB, 80)), ErrorKind::ConnectionRefused);
    loop {
        if let Err(error) = kept.read_exact(&mut buffer) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            break;
        }
    }
    set(INTERNET);
    assert!(guest.read(OTHER, 80).is_ok());
    let seen = drops(&internet, "vm");
    assert!(seen.policy.packets > 0 && seen.destinations.len() >= 3, "{seen:?}");
}

/// Answers what is asked of 203.0.113.53.
fn serve_names(internet: &Internet) {
    let bind = || Ok::<_, namespace::Error>(UdpSocket::bind((DNS, 53)).expect("listen"));
    let socket = namespace::within(&internet.namespace, bind).expect("enter the internet");
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let question = Message::from_vec(&buffer[..length]).expect("a DNS message");
            let mut answer = question.clone().into_response();
            let query = question.queries[0].clone();
            let address = match query.name.to_ascii().to_ascii_lowercase().as_str() {
                "web.test." | "deep.below.wild.test." => WEB,
                "inside.wild.test." => PRIVATE,
                _ => OTHER,
            };
            answer.add_answer(Record::from_rdata(query.name, 1, RData::A(A(address))));
            socket.send_to(&answer.to_vec().expect("a DNS message"), from).expect("answer");
        }
    });
}

fn look_up(guest: &Guest, server: Ipv4Addr, name: &str) -> std::io::Result<Message> {
    let mut question = Message::query();
    question.add_query(Query::query(DnsName::from_ascii(name).expect("a DNS name"), RecordType::A));
    let answer = guest.ask(server, 53, &question.to_vec().expect("a DNS message"))?;
    Ok(Message::from_vec(&answer).expect("a DNS message"))
}

fn address_in(answer: &Message) -> Option<Ipv4Addr> {
    answer.answers.iter().find_map(|record| match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    })
}

/// A process that is ended with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _it_may_have_ended = self.0.kill();
        let _as_above = self.0.wait();
    }
}

#[test]
fn a_guest_reaches_the_names_of_its_policy_and_no_other_way_leads_there() {
    let internet = Internet::new();
    Internet::serve(&internet.namespace, 80, greet);
    serve_names(&internet);
    let upstream = format!("{DNS}:53");
    let mut server = internet.command(&["serve", "--upstream", &upstream, "--pool", "1"]);
    let server = Process(server.stdin(Stdio::null()).spawn().expect("start the resolver"));
    await_until("the pool is ready", || internet.host.pool_size().unwrap() == 1);
    let guest = internet.guest("vm", r#"{"allow": ["web.test", "*.wild.test"]}"#);
    let resolver = guest::GATEWAY;
    // The resolver listens since it knows the namespace; how long that takes is its own business.
    await_until("the resolver answers", || look_up(&guest, resolver, "no.test.").is_ok());

    assert_eq!(refused(guest.connect(WEB, 80)), ErrorKind::ConnectionRefused);
    let answer = look_up(&guest, resolver, "WEB.test.").unwrap();
    assert_eq!(address_in(&answer), Some(WEB), "{answer}");
    assert!(guest.read(WEB, 80).is_ok());
    assert_eq!(address_in(&look_up(&guest, resolver, "deep.below.wild.test.").unwrap()), Some(WEB));
    for name in ["other.test.", "wild.test.", "web.test.evil.test.", "inside.wild.test."] {
        let answer = look_up(&guest, resolver, name).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{name}");
        assert_eq!(address_in(&answer), None);
    }
    assert_eq!(refused(guest.connect(OTHER, 80)), ErrorKind::ConnectionRefused);
    assert_eq!(refused(guest.connect(PRIVATE, 80)), ErrorKind::ConnectionRefused);
    assert_eq!(refused(look_up(&guest, DNS, "other.test.")), ErrorKind::HostUnreachable);

    // What is pinned outlives a change that keeps its name, and not one that does not.
    let set = |policy: &str| {
        internet.host.set_policy(&"vm".parse().unwrap(), &Policy::parse(policy).unwrap()).unwrap();
    };
    set(r#"{"allow": ["*.wild.test"]}"#);
    assert!(guest.read(WEB, 80).is_ok());
    set(r#"{"allow": ["web.test"]}"#);
    assert_eq!(refused(guest.connect(WEB, 80)), ErrorKind::ConnectionRefused);

    drop(server);
    assert_eq!(refused(look_up(&guest, resolver, "web.test.")), ErrorKind::ConnectionRefused);
    assert_eq!(refused(guest.connect(WEB, 80)), ErrorKind::ConnectionRefused);
}

fn await_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came that {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Everything that a network could leave behind on this host.
fn traces(internet: &Internet) -> Vec<String> {
    let mut socket = netlink::Socket::route().expect("netlink");
    let mut all: Vec<String> = link::list(&mut socket)
        .expect("list the links")
        .into_iter()
        .map(|link| link.name)
        .collect();
    all.extend(
        link::addresses(&mut socket).expect("list the addresses").iter().map(ToString::to_string),
    );
    let routes =
        std::fs::read_to_string("/proc/thread-self/net/route").expect("read what the kernel lists");
    all.extend(routes.lines().map(str::to_owned));
    let mounts =
        std::fs::read_to_string("/proc/thread-self/mountinfo").expect("read what the kernel lists");
    all.extend(
        mounts
            .lines()
            .filter(|line| line.contains("nsfs"))
            .map(|line| line.split(' ').nth(4).unwrap_or_default().to_owned()),
    );
    for directory in ["slots", "networks", "pool"] {
        for entry in std::fs::read_dir(internet.root().join(directory)).expect("list a directory") {
            all.push(entry.expect("list a directory").path().display().to_string());
        }
    }
    all.sort();
    all
}

#[test]
fn nothing_is_left_of_networks_whose_makers_were_killed() {
    const CYCLES: u64 = 500;
    let internet = Internet::new();
    let before = traces(&internet);
    let started = Instant::now();
    assert!(internet.command(&["create", "a"]).status().unwrap().success());
    let whole = started.elapsed();
    assert!(internet.command(&["delete", "a"]).status().unwrap().success());
    let (mut random, mut whole_count) = (0x2545_f491_4f6c_dd1d_u64, 0);
    for cycle in 0..CYCLES {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let action: &[&str] = match cycle % 4 {
            0 | 1 => &["create", "a", "--policy", "internet"],
            2 => &["delete", "a"],
            _ => &["pool", "--fill", "1"],
        };
        let mut command = internet.command(action);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Not a wait for anything: the moment of the kill is what varies.
        thread::sleep(whole.mul_f64((random % 1000) as f64 / 800.0));
        let mut child = Process(child);
        if let Ok(Some(status)) = child.0.try_wait() {
            whole_count += u64::from(status.success());
        }
        drop(child);
        if cycle % 7 == 0 {
            assert!(internet.command(&["sweep"]).stdout(Stdio::null()).status().unwrap().success());
        }
    }
    assert!(whole_count > 0, "every one was killed: this tried only half of it");
    // What was killed did no harm: a network can be had.
    internet.host.sweep(true).unwrap();
    internet.host.create(&"a".parse().unwrap(), &Policy::none(), Default::default()).unwrap();
    internet.host.sweep(true).unwrap();
    assert_eq!(traces(&internet), before);
}

#[test]
fn fifty_guests_download_at_the_same_time() {
    const GUESTS: u32 = 50;
    const BYTES: usize = 1 << 20;
    let internet = Internet::new();
    let content: Vec<u8> = (0..BYTES).map(|index| (index * 7919 / 251) as u8).collect();
    let digest = blake3::hash(&content);
    let served = Internet::serve(&internet.namespace, 80, move |mut stream: TcpStream| {
        let _the_guest_checks = stream.write_all(&content);
    });
    let started = Instant::now();
    let guests: Vec<Guest> =
        (0..GUESTS).map(|number| internet.guest(&format!("vm-{number}"), INTERNET)).collect();
    println!("{GUESTS} networks from nothing: {:?}", started.elapsed());
    thread::scope(|scope| {
        let download =
            |guest| scope.spawn(move || blake3::hash(&Guest::read(guest, WEB, 80).unwrap()));
        let downloads: Vec<_> = guests.iter().map(download).collect();
        for download in downloads {
            assert_eq!(download.join().unwrap(), digest);
        }
    });
    assert_eq!(served.load(Ordering::SeqCst), GUESTS as usize);
}
