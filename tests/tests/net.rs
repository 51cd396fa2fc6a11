//! The network: TCP both ways, large segments, rate limits, and a machine that moves to another tap.
//!
//! hosts: gicv3
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;

use rotifer_tests::{Artifacts, DEADLINE, ExitCode, Tap, Vm, VmBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const MAC: &str = "06:00:0a:4d:00:02";
const MTU: i32 = 1400;
const ECHOED_BYTES: u64 = 8 << 20;

/// Sends a file to the host, and writes what comes back to another one.
const ECHO: &str = "
import socket, sys, threading
peer = socket.create_connection(('10.77.0.1', int(sys.argv[1])))
def send():
    peer.sendfile(open(sys.argv[2], 'rb'))
    peer.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
with open(sys.argv[3], 'wb') as back:
    while piece := peer.recv(1 << 16):
        back.write(piece)
";

/// Holds a connection, waits for a byte, and tells how that ends.
const HOLD: &str = "
import socket, sys
peer = socket.create_connection(('10.77.0.1', int(sys.argv[1])))
peer.recv(1)
open('/tmp/held', 'w').write('held')
try:
    end = 'a byte' if peer.recv(1) else 'the end'
except OSError as error:
    end = type(error).__name__
open('/tmp/ended', 'w').write(end)
";

fn config(directory: &TempDir, tap: &str) -> Value {
    let address = "ip=10.77.0.2::10.77.0.1:255.255.255.0::eth0:off:10.77.0.53";
    let builder = VmBuilder::new().memory_mib(256).debian().boot_args(address);
    let mut config = builder.config(directory.path());
    config["network-interfaces"] = json!([
        { "iface_id": "eth0", "host_dev_name": tap, "guest_mac": MAC, "mtu": MTU }
    ]);
    config
}

/// A TCP server on the host that sends back what it gets; its port. It ends after `count` clients.
fn echo_server(count: usize) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind((HOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        for _ in 0..count {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream.set_write_timeout(Some(DEADLINE)).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        }
    });
    (port, thread)
}

/// The guest sends `bytes` of random data to the host, which sends them back.
fn echo(vm: &Vm, port: u16, bytes: u64) {
    let script = format!(
        "head -c {bytes} /dev/urandom > /tmp/out && python3 -c \"{ECHO}\" {port} /tmp/out /tmp/back \
         && sha256sum < /tmp/out && sha256sum < /tmp/back && rm /tmp/out /tmp/back"
    );
    let sums = vm.shell(&script);
    let sums: Vec<&str> = sums.lines().collect();
    assert!(matches!(sums[..], [sent, back] if sent == back), "{sums:?}\n{}", vm.report());
}

/// Closing this end tells nobody and leaves nothing behind, as the end of a host does.
fn forget_when_closed(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let len = size_of::<libc::linger>() as libc::socklen_t;
    let (fd, value) = (stream.as_raw_fd(), (&raw const linger).cast());
    // SAFETY: SO_LINGER reads one `linger`, which outlives the call.
    let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, value, len) };
    assert_eq!(set, 0);
}

fn patch_limits(vm: &Vm, ops: u64) {
    let limiter = json!({ "ops": { "size": ops, "refill_time": 86_400_000 } });
    let body = json!({ "iface_id": "eth0", "tx_rate_limiter": limiter });
    let (status, text) = vm.api("PATCH", "/network-interfaces/eth0", Some(&body));
    assert_eq!(status, 204, "{text}\n{}", vm.report());
}

fn assert_large_segments([packets, bytes]: [u64; 2]) {
    let average = bytes / packets.max(1);
    println!("{packets} packets of {average} bytes");
    // No frame on its own is longer than this, and empty acknowledgements count as well.
    let frame_bytes_max = MTU as u64 + 18;
    assert!(average > frame_bytes_max, "{packets} packets of {average} bytes: no large segments");
}

/// The guest's 20 datagrams get through as far as the limit allows, and all of them, in their
/// order, once there is none.
fn assert_limit_holds_back(vm: &Vm, tap: &Tap) {
    const COUNT: u64 = 20;
    const LIMIT: u64 = 5;
    let socket = UdpSocket::bind((HOST, 0)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let send = format!(
        "python3 -c \"
import socket
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range({COUNT}):
    peer.sendto(bytes([number]), ('10.77.0.1', {port}))
\""
    );
    let before = tap.traffic().received[0];
    patch_limits(vm, LIMIT);
    vm.shell(&send);
    let passed = tap.traffic().received[0] - before;
    assert!(passed <= LIMIT, "{passed} packets passed a limit of {LIMIT}");
    patch_limits(vm, 0);
    let mut byte = [0];
    for number in 0..COUNT {
        let (count, _) = socket.recv_from(&mut byte).unwrap();
        assert_eq!((count, u64::from(byte[0])), (1, number));
    }
}

#[test]
fn a_guest_talks_to_its_host_and_goes_on_through_another_tap() {
    let tap = Tap::new("rotifer0", HOST, MTU);
    let directory = TempDir::new().unwrap();
    let config = config(&directory, "rotifer0");
    let mut vm = Vm::start(&Artifacts::find(), directory, &config, &[]);
    vm.wait_until_ready();
    let facts = "cd /sys/class/net/eth0 && cat address mtu carrier statistics/rx_errors && grep nameserver /run/resolv.conf";
    let expected = format!("{MAC}\n{MTU}\n1\n0\nnameserver 10.77.0.53\n");
    assert_eq!(vm.shell(facts), expected);
    let (port, server) = echo_server(2);
    echo(&vm, port, ECHOED_BYTES);
    let traffic = tap.traffic();
    assert_large_segments(traffic.received);
    assert_large_segments(traffic.sent);
    assert_limit_holds_back(&vm, &tap);

    let listener = TcpListener::bind((HOST, 0)).unwrap();
    let held_port = listener.local_addr().unwrap().port();
    vm.shell(&format!(
        "mkfifo /tmp/held /tmp/ended; setsid python3 -c \"{HOLD}\" {held_port} >/dev/null 2>&1 &"
    ));
    let (mut held, _) = listener.accept().unwrap();
    held.write_all(b"!").unwrap();
    forget_when_closed(&held);
    assert_eq!(vm.shell("cat /tmp/held"), "held");

    let snapshots = TempDir::new().unwrap();
    let snapshot = snapshots.path().join("vm.snap");
    vm.suspend(&snapshot, "Full");
    drop((vm, tap, held, listener));
    let tap = Tap::new("rotifer1", HOST, MTU);
    let directory = TempDir::new().unwrap();
    let body = json!({
        "snapshot_path": snapshot,
        "resume_vm": true,
        "network_overrides": [{ "iface_id": "eth0", "host_dev_name": "rotifer1" }],
        "vsock_override": { "uds_path": directory.path().join("v.sock") },
    });
    let vm = Vm::load(&Artifacts::find(), directory, &body);
    let (_, text) = vm.api("GET", "/vm/config", None);
    assert!(text.contains("rotifer1") && !text.contains("rotifer0"), "{text}");
    // Who waits on a connection hears at once that it was cut.
    assert_eq!(vm.shell("cat /tmp/ended"), "ConnectionAbortedError");
    // The port is the first one's still, and so is what the guest believes of the network.
    echo(&vm, port, 1 << 20);
    server.join().unwrap();
    assert!(tap.traffic().received[1] > 1 << 20, "{:?}", tap.traffic());
    drop(vm);
}

#[test]
fn a_tap_that_cannot_be_used_ends_the_start_with_the_reason() {
    let _tap = Tap::new("rotifer2", HOST, MTU);
    let start = |tap: &str| {
        let directory = TempDir::new().unwrap();
        let config = config(&directory, tap);
        Vm::start(&Artifacts::find(), directory, &config, &[])
    };
    let mut first = start("rotifer2");
    first.wait_until_ready();
    for (tap, reason) in [
        ("rotifer2", "another process, or another interface of this machine, uses it"),
        ("no-such-tap", "there is no interface no-such-tap"),
        ("lo", "it is no tap"),
    ] {
        let mut vm = start(tap);
        vm.wait_for_exit(ExitCode::Usage);
        let messages = vm.messages.all();
        assert!(messages.contains("network-interfaces[0].host_dev_name"), "{messages}");
        assert!(messages.contains(reason), "{messages}");
    }
    drop(first);
}
