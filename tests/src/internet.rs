//! A small internet for tests of networks, in namespaces of the test's own: nothing leaves the
//! machine, and the machine's own interfaces and rules are not touched.
//!
//! ```text
//!  guest ──tap──tap0│ network │──▶ host (the test's thread) ──up0──▶ internet
//!  172.16.0.2        of rotifer     198.51.100.1                     198.51.100.2, and ADDRESSES
//! ```
//!
//! In place of a VMM a thread carries frames between the network's tap and a tap in the guest's
//! namespace, where the kernel's own TCP plays the guest.

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::Result;
use rotifer_network::{
    files::Name,
    guest,
    host::{Host, Options},
    link::{self, Pair},
    namespace, netlink,
    policy::Policy,
    tap,
};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount},
    thread::{UnshareFlags, unshare_unsafe},
};
use tempfile::TempDir;

use crate::DEADLINE;

/// The host's own public address.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// What there is on the internet, a private network and link-local address among it.
pub const ADDRESSES: [Ipv4Addr; 6] = [
    ROUTER,
    Ipv4Addr::new(203, 0, 113, 1),
    Ipv4Addr::new(203, 0, 113, 2),
    Ipv4Addr::new(203, 0, 113, 53),
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
        let path = directory.path().join("internet");
        File::create(&path).expect("a file");
        let host = namespace::own().expect("the host's namespace");
        namespace::create(&path, || -> Result<()> {
            let mut socket = netlink::Socket::route()?;
            let pair = Pair { name: "up1", peer: "up0", peer_namespace: host.as_fd(), mtu: 1500 };
            link::add_pair(&mut socket, &pair)?;
            let up = link::find(&mut socket, "up1")?;
            link::add_address(&mut socket, &up, ROUTER, 24)?;
            let loopback = link::find(&mut socket, "lo")?;
            for address in ADDRESSES.iter().skip(1) {
                link::add_address(&mut socket, &loopback, *address, 32)?;
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
        Self { host, namespace, directory }
    }

    /// Makes a network and attaches a guest to it.
    ///
    /// # Panics
    /// If the machine refuses.
    pub fn guest(&self, name: &str, policy: &str) -> Guest {
        let name: Name = name.parse().expect("a name");
        let policy = Policy::parse(policy).expect("a policy");
        self.host.create(&name, &policy, Options::default()).expect("make a network");
        Guest::attach(&self.host, &name, self.directory.path())
    }

    /// Where networks are written down.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("networks")
    }

    /// The program, told where networks are.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(crate::Artifacts::network_program());
        command.arg("--root").arg(self.root()).args(arguments);
        command
    }

    /// Starts a server in a namespace; the result counts its connections.
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

/// What a guest is to its network: a MAC, an address and a route.
pub struct Guest {
    namespace: File,
}

impl Guest {
    /// Attaches a guest to a network.
    ///
    /// # Panics
    /// If the machine refuses.
    fn attach(host: &Host, name: &Name, directory: &Path) -> Self {
        let network = host.namespace(name).expect("the network's namespace");
        let outer = namespace::within(&network, || -> Result<_> { Ok(tap::attach(guest::TAP)?) });
        let path = directory.join(format!("guest-{name}"));
        File::create(&path).expect("a file");
        let inner = namespace::create(&path, || -> Result<_> {
            let tap = tap::attach("eth0")?;
            let mut socket = netlink::Socket::route()?;
            let link = link::find(&mut socket, "eth0")?;
            let mac = netlink_packet_route::link::LinkAttribute::Address(guest::MAC.to_vec());
            link::bring_up(&mut socket, &link, vec![mac])?;
            link::add_address(&mut socket, &link, guest::ADDRESS, guest::PREFIX)?;
            link::add_default_route(&mut socket, guest::GATEWAY)?;
            Ok(tap)
        });
        carry(outer.expect("the network's tap"), inner.expect("a tap in a guest"));
        Self { namespace: namespace::open(&path).expect("the guest's namespace") }
    }

    /// Does something as the guest.
    ///
    /// # Panics
    /// If its namespace is gone.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::within(&self.namespace, || Ok::<_, namespace::Error>(work()))
            .expect("enter the guest")
    }

    /// Connects, and says what the guest is told if that fails.
    pub fn connect(&self, to: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
        self.within(|| {
            let stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), DEADLINE)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            Ok(stream)
        })
    }

    /// All that a server says.
    pub fn read(&self, from: Ipv4Addr, port: u16) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.connect(from, port)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// A datagram's answer.
    pub fn ask(&self, to: Ipv4Addr, port: u16, question: &[u8]) -> std::io::Result<Vec<u8>> {
        self.within(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(DEADLINE))?;
            socket.connect((IpAddr::V4(to), port))?;
            socket.send(question)?;
            let mut answer = vec![0; 4096];
            let length = socket.recv(&mut answer)?;
            answer.truncate(length);
            Ok(answer)
        })
    }
}

/// Carries frames both ways until one of the taps is gone.
fn carry(one: File, other: File) {
    let copies = (one.try_clone().expect("a copy"), other.try_clone().expect("a copy"));
    for (mut from, mut to) in [(one, other), (copies.1, copies.0)] {
        thread::spawn(move || {
            let mut frame = vec![0; 65_536];
            while let Ok(length) = from.read(&mut frame) {
                // A frame that the other side does not take is lost, as on any wire.
                let _ = to.write(&frame[..length]);
            }
        });
    }
}
