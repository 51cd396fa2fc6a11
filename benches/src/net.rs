//! Benchmark: TCP between guest and host through a tap, and how long one byte takes.
//!
//! The guest connects to an address of the host and measures with its own clock.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use anyhow::{Context, Result, bail};
use rotifer_agent::client::AgentClient;
use rotifer_tests::Tap;
use serde::de::DeserializeOwned;

use crate::bench::{Rounds, Setup, Subject};
use crate::guest::{self, Direction, Latencies, PIECE_BYTES, StreamLoad, Transfer};
use crate::record::{Metric, Recorder};
use crate::vm::{DEADLINE, Machine, Process, Vm};
use crate::vsock::serve;

const ROUNDS: Rounds = Rounds { warm_up: 1, full: 5, counted: 3, quick: 2 };

const TO_HOST: Metric = Metric::higher("TCP guest -> host", "MiB/s");
const TO_GUEST: Metric = Metric::higher("TCP host -> guest", "MiB/s");
const ROUND_TRIP: Metric = Metric::lower("round trip of one byte", "ms");
const CONNECTIONS: Metric = Metric::higher("connections, a byte each way", "1/s");

const TAP: &str = "rotifer-bench";
const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
const MTU: i32 = 1500;
const ADDRESS: &str = "ip=10.77.1.2::10.77.1.1:255.255.255.0::eth0:off";

/// How much a transfer moves, in pieces.
const PIECES: u64 = (64 << 20) / PIECE_BYTES as u64;
const ROUND_TRIPS: u64 = 500;
const CONNECTION_COUNT: u64 = 400;
const QUICK_DIVISOR: u64 = 8;

/// Runs it.
///
/// # Errors
/// A machine or a load failed.
pub fn run(setup: &Setup) -> Result<Recorder> {
    setup.rounds(ROUNDS, |subject, recorder| round(setup, subject, recorder))
}

fn round(setup: &Setup, subject: &Subject, recorder: &mut Recorder) -> Result<()> {
    // Removed after the machine that uses it.
    let _tap = Tap::new(TAP, HOST, MTU);
    let vm = Vm::start(setup, &subject.program, &Machine::small().tap(TAP).words(ADDRESS))?;
    vm.wait_until_ready()?;
    let agent = vm.agent();
    guest::install(&agent).map_err(|error| vm.process().explain(format!("{error:#}")))?;
    let host =
        Host { process: vm.process(), agent, divisor: if setup.quick { QUICK_DIVISOR } else { 1 } };

    let transfer: Transfer = host.load(Direction::ToHost, PIECES)?;
    recorder.add(subject.side, TO_HOST, transfer.mib_per_s());
    let transfer: Transfer = host.load(Direction::ToGuest, PIECES)?;
    recorder.add(subject.side, TO_GUEST, transfer.mib_per_s());
    let latencies: Latencies = host.load(Direction::RoundTrip, ROUND_TRIPS)?;
    for nanos in latencies.samples_ns {
        recorder.add(subject.side, ROUND_TRIP, guest::milliseconds(nanos));
    }
    let connections: Transfer = host.load(Direction::Connect, CONNECTION_COUNT)?;
    recorder.add(subject.side, CONNECTIONS, connections.requests_per_s());
    Ok(())
}

/// Whoever is at the other end.
struct Host<'a> {
    process: &'a Process,
    agent: AgentClient,
    divisor: u64,
}

impl Host<'_> {
    /// Runs a load in the guest with its other end here.
    fn load<T: DeserializeOwned>(&self, direction: Direction, count: u64) -> Result<T> {
        let listener =
            TcpListener::bind((HOST, 0)).context("cannot listen on the tap's address")?;
        let address = listener.local_addr().context("cannot tell the listener's port")?;
        let (port, count) = (address.port().into(), count / self.divisor);
        let load = StreamLoad { direction, port, count, address: Some(HOST) };
        std::thread::scope(|scope| {
            let server = scope.spawn(|| self.serve(&load, &listener));
            let result = guest::call(&self.agent, &load.words());
            if result.is_err() {
                // The guest may never have connected: nobody shall wait for it.
                drop(TcpStream::connect(address));
            }
            let Ok(served) = server.join() else { bail!("the thread of the host's end panicked") };
            // A guest that failed says why; that our end broke then is what follows from it.
            let result = result.map_err(|error| self.process.explain(format!("{error:#}")))?;
            served.with_context(|| format!("the host's end of {direction:?} failed"))?;
            Ok(result)
        })
    }

    fn serve(&self, load: &StreamLoad, listener: &TcpListener) -> Result<()> {
        let clients = if load.direction == Direction::Connect { load.count } else { 1 };
        for _ in 0..clients {
            self.process.wait_for(listener, "the guest connected")?;
            let (stream, _) = listener.accept().context("cannot accept the guest's connection")?;
            stream.set_read_timeout(Some(DEADLINE)).context("cannot set a deadline")?;
            stream.set_write_timeout(Some(DEADLINE)).context("cannot set a deadline")?;
            stream.set_nodelay(true).context("cannot set an option of TCP")?;
            serve(load, stream)?;
        }
        Ok(())
    }
}
