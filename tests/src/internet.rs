//! A small internet for tests of networks, in namespaces of the test's own: nothing leaves the
//! machine, and the machine's own interfaces and rules are not touched.
//!
//! ```text
//!  microVM ══ tap0 │ network │──▶ host (the test's thread) ──up0──▶ internet
//!  172.16.0.2      of rotifer     198.51.100.1                      198.51.100.2, and ADDRESSES
//! ```

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use rotifer_network::{
    files::Name,
    host::{Host, Options},
    link::{self, Pair},
    namespace, netlink,
    policy::Policy,
};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount},
    thread::{UnshareFlags, unshare_unsafe},
};
use tempfile::TempDir;

use crate::{Artifacts, DEADLINE};

/// The host's own public address.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// What the host's uplink carries: less than a guest's interface does.
pub const UPLINK_MTU: u32 = 1400;
/// Where names are resolved.
pub const DNS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// What there is on the internet beside its router, a private network and link-local address among it.
pub const ADDRESSES: [Ipv4Addr; 5] = [
    Ipv4Addr::new(203, 0, 113, 1),
    Ipv4Addr::new(203, 0, 113, 2),
    DNS,
    Ipv4Addr::new(10, 9, 9, 9),
    Ipv4Addr::new(169, 254, 7, 7),
];

/// A host with an uplink, and what is at its other end.
pub struct Internet {
    /// The networks of the host.
    pub host: Host,
    /// The namespace of the internet.
    pub namespace: File,
    directory: TempDir,
    program: PathBuf,
}

impl Internet {
    /// Moves this thread into namespaces of its own, which become the host.
    ///
    /// # Panics
    /// If the machine refuses.
    pub fn new() -> Self {
        let spaces = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
        // SAFETY: this thread shares no file table with others that could be surprised: network and
        // mount namespaces only concern what it opens from now on.
        unsafe { unshare_unsafe(spaces) }.expect("new namespaces");
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).expect("private mounts");
        let directory = tempfile::tempdir().expect("a directory");
        // What namespaces are kept by goes with it.
        mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), None).expect("a tmpfs");
        // What runs hundreds of times is read from memory.
        let program = directory.path().join("rotifer-network");
        fs::copy(Artifacts::network_program(), &program).expect("copy the program");
        let path = directory.path().join("internet");
        File::create(&path).expect("a file");
        let host = namespace::own().expect("the host's namespace");
        namespace::create(&path, || -> Result<()> {
            let mut socket = netlink::Socket::route()?;
            let pair =
                Pair { name: "up1", peer: "up0", peer_namespace: host.as_fd(), mtu: UPLINK_MTU };
            link::add_pair(&mut socket, &pair)?;
            let up = link::find(&mut socket, "up1")?;
            link::add_address(&mut socket, &up, ROUTER, 24)?;
            let loopback = link::find(&mut socket, "lo")?;
            for address in ADDRESSES {
                link::add_address(&mut socket, &loopback, address, 32)?;
            }
            link::bring_up(&mut socket, &up, Vec::new())?;
            Ok(link::bring_up(&mut socket, &loopback, Vec::new())?)
        })
        .expect("an internet");
        let mut socket = netlink::Socket::route().expect("netlink");
        let up = link::find(&mut socket, "up0").expect("the uplink");
        link::add_address(&mut socket, &up, HOST, 24).expect("the host's address");
        link::bring_up(&mut socket, &up, Vec::new()).expect("the uplink");
        let loopback = link::find(&mut socket, "lo").expect("the loopback");
        link::bring_up(&mut socket, &loopback, Vec::new()).expect("the loopback");
        link::add_default_route(&mut socket, ROUTER).expect("a route");
        let namespace = namespace::open(&path).expect("the internet");
        let host = Host::open(&directory.path().join("networks")).expect("a host");
        Self { host, namespace, directory, program }
    }

    /// Makes a network.
    ///
    /// # Panics
    /// If the machine refuses.
    pub fn create(&self, name: &str, policy: &str) -> Name {
        let name: Name = name.parse().expect("a name");
        let policy = Policy::parse(policy).expect("a policy");
        self.host.create(&name, &policy, Options::default()).expect("make a network");
        name
    }

    /// Changes a network's policy.
    ///
    /// # Panics
    /// If the machine refuses.
    pub fn set_policy(&self, name: &Name, policy: &str) {
        let policy = Policy::parse(policy).expect("a policy");
        self.host.set_policy(name, &policy).expect("change a policy");
    }

    /// Does something, such as starting a machine, inside of a network.
    ///
    /// # Panics
    /// If its namespace is gone.
    pub fn within<T: Send>(&self, name: &Name, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.host.namespace(name).expect("the network's namespace");
        namespace::within(&namespace, || Ok::<_, namespace::Error>(work()))
            .expect("enter a network")
    }

    /// Where networks are written down.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("networks")
    }

    /// The program, told where networks are.
    pub fn command(&self, arguments: &[&str]) -> Command {
        network_command(&self.program, &self.root(), arguments)
    }

    /// The program that answers guests' questions, by asking [`DNS`]; and keeps a pool of one.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_server(&self) -> Process {
        let upstream = format!("{DNS}:53");
        let mut command = self.command(&["serve", "--upstream", &upstream, "--pool", "1"]);
        let server = Process(command.stdin(Stdio::null()).spawn().expect("start the server"));
        await_until("the pool is ready", || self.host.pool_size().expect("list the pool") == 1);
        server
    }

    /// Answers what is asked of [`DNS`], for a second each.
    ///
    /// # Panics
    /// If the machine refuses.
    pub fn serve_names(&self, resolve: impl Fn(&str) -> Ipv4Addr + Send + 'static) {
        let bind = || -> Result<_> { Ok(UdpSocket::bind((DNS, 53))?) };
        let socket = namespace::within(&self.namespace, bind).expect("listen");
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let answer = answer_question(&buffer[..length], &resolve);
                socket.send_to(&answer, from).expect("answer");
            }
        });
    }
}

impl Default for Internet {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        let _the_test_has_failed_already = self.host.sweep(true);
        let _as_above = unmount(self.directory.path(), UnmountFlags::DETACH);
    }
}

/// The program for networks, told where they are.
pub fn network_command(program: &Path, root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.arg("--root").arg(root).args(arguments);
    command
}

/// Starts a server in a namespace; the result counts its connections.
///
/// # Panics
/// If the port is taken.
pub fn serve(
    namespace: &File,
    port: u16,
    talk: impl Fn(TcpStream) + Clone + Send + 'static,
) -> Arc<AtomicUsize> {
    let bind = || -> Result<_> { Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?) };
    let listener = namespace::within(namespace, bind).expect("listen");
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            counter.fetch_add(1, Ordering::SeqCst);
            let talk = talk.clone();
            thread::spawn(move || talk(stream));
        }
    });
    count
}

/// Answers one request for a page.
///
/// # Panics
/// If none comes.
pub fn send_page(mut stream: TcpStream, content: &[u8]) {
    let mut lines = BufReader::new(stream.try_clone().expect("a copy")).lines();
    assert!(lines.any(|line| line.is_ok_and(|line| line.is_empty())), "there is no request");
    let _the_guest_may_be_gone =
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").and_then(|()| stream.write_all(content));
}

/// A process that is ended with the test.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _it_may_have_ended = self.0.kill();
        let _as_above = self.0.wait();
    }
}

/// Waits for what tells nobody of it.
///
/// # Panics
/// If it does not come.
pub fn await_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came that {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Everything that a network could leave behind on this host: links, addresses, routes, mounts, files,
/// and all there is of rules.
///
/// # Panics
/// If the machine does not say.
pub fn traces(internet: &Internet) -> Vec<String> {
    let mut socket = netlink::Socket::route().expect("netlink");
    let links = link::list(&mut socket).expect("list the links");
    let mut all: Vec<String> = links.into_iter().map(|link| link.name).collect();
    let addresses = link::addresses(&mut socket).expect("list the addresses");
    all.extend(addresses.iter().map(ToString::to_string));
    let read = |path| fs::read_to_string(path).expect("read what the kernel lists");
    all.extend(read("/proc/thread-self/net/route").lines().map(str::to_owned));
    let mounts = read("/proc/thread-self/mountinfo");
    let kept = mounts.lines().filter(|line| line.contains("nsfs"));
    all.extend(kept.map(|line| line.split(' ').nth(4).unwrap_or_default().to_owned()));
    for directory in ["slots", "networks", "pool"] {
        for entry in fs::read_dir(internet.root().join(directory)).expect("list a directory") {
            all.push(entry.expect("list a directory").path().display().to_string());
        }
    }
    all.extend(rule_set());
    all.sort();
    all
}

/// Tables, chains, sets and rules of this thread's namespace, as the kernel lists them.
///
/// # Panics
/// If the machine does not say.
pub fn rule_set() -> Vec<String> {
    use netlink_packet_netfilter::{
        NetfilterHeader, NetfilterMessage, NetfilterProtoFamily,
        nftables::{ChainMessage, NfTablesMessage, RuleMessage, SetMessage, TableMessage},
    };
    let mut socket = netlink::Socket::netfilter().expect("netlink");
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let mut list = |inner: NfTablesMessage| {
        let message = NetfilterMessage::new(header.clone(), inner);
        socket.dump("list the rules", &message, 4).expect("list the rules")
    };
    let all = [
        list(NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() })),
        list(NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() })),
        list(NfTablesMessage::GetSet(SetMessage { attributes: Vec::new() })),
        list(NfTablesMessage::GetRule(RuleMessage { attributes: Vec::new() })),
    ];
    all.concat().iter().map(|entry| entry.escape_ascii().to_string()).collect()
}

/// RFC 1035, section 4: the question again, and one record of type A.
fn answer_question(question: &[u8], resolve: &impl Fn(&str) -> Ipv4Addr) -> Vec<u8> {
    const HEADER_BYTES: usize = 12;
    let mut labels = Vec::new();
    let mut at = HEADER_BYTES;
    while question[at] > 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..end]).to_ascii_lowercase());
        at = end;
    }
    let type_and_class = at + 1..at + 5;
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend(&question[HEADER_BYTES..type_and_class.end]);
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
    answer.extend(resolve(&labels.join(".")).octets());
    answer
}
