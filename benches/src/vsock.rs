//! Benchmark: what goes between guest and host, and how long one byte takes.
//!
//! The guest connects to a port of the host and measures with its own clock; the host's end is a
//! Unix socket, as with Firecracker.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use rotifer_agent::client::AgentClient;
use serde::de::DeserializeOwned;

use crate::bench::{Rounds, Setup, Subject};
use crate::guest::{self, Direction, Latencies, PIECE_BYTES, StreamLoad, Transfer};
use crate::record::{Metric, Recorder};
use crate::vm::{Machine, Vm};

const ROUNDS: Rounds = Rounds { warm_up: 1, full: 5, counted: 3, quick: 2 };

const TO_HOST: Metric = Metric::higher("guest -> host", "MiB/s");
const TO_GUEST: Metric = Metric::higher("host -> guest", "MiB/s");
const ROUND_TRIP: Metric = Metric::lower("round trip of one byte", "ms");

/// Ports of the host, one for each load.
const PORT_FIRST: u32 = 5000;
/// How much a transfer moves, in pieces.
const PIECES: u64 = (64 << 20) / PIECE_BYTES as u64;
const ROUND_TRIPS: u64 = 500;
const QUICK_DIVISOR: u64 = 8;

/// Runs it.
///
/// # Errors
/// A machine or a load failed.
pub fn run(setup: &Setup) -> Result<Recorder> {
    setup.rounds(ROUNDS, |subject, recorder| round(setup, subject, recorder))
}

fn round(setup: &Setup, subject: &Subject, recorder: &mut Recorder) -> Result<()> {
    let vm = Vm::start(setup, &subject.program, &Machine::small())?;
    vm.wait_until_ready()?;
    let agent = vm.agent();
    guest::install(&agent).map_err(|error| vm.process().explain(format!("{error:#}")))?;
    let divisor = if setup.quick { QUICK_DIVISOR } else { 1 };
    let load = |direction, port, count| StreamLoad {
        direction,
        port,
        count: count / divisor,
        address: None,
    };

    let to_host = load(Direction::ToHost, PORT_FIRST, PIECES);
    let transfer: Transfer = with_host(&vm, &agent, &to_host)?;
    recorder.add(subject.side, TO_HOST, transfer.mib_per_s());

    let to_guest = load(Direction::ToGuest, PORT_FIRST + 1, PIECES);
    let transfer: Transfer = with_host(&vm, &agent, &to_guest)?;
    recorder.add(subject.side, TO_GUEST, transfer.mib_per_s());

    let round_trip = load(Direction::RoundTrip, PORT_FIRST + 2, ROUND_TRIPS);
    let latencies: Latencies = with_host(&vm, &agent, &round_trip)?;
    for nanos in latencies.samples_ns {
        recorder.add(subject.side, ROUND_TRIP, guest::milliseconds(nanos));
    }
    Ok(())
}

/// Runs a load in the guest with its other end here.
fn with_host<T: DeserializeOwned>(vm: &Vm, agent: &AgentClient, load: &StreamLoad) -> Result<T> {
    let (listener, path) = vm.listen(load.port)?;
    std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(load, vm.process().accept(&listener)?));
        let result = guest::call(agent, &load.words());
        if result.is_err() {
            // The guest may never have connected: nobody shall wait for it.
            drop(UnixStream::connect(path));
        }
        let Ok(served) = server.join() else { bail!("the thread of the host's end panicked") };
        // A guest that failed says why; that our end broke then is what follows from it.
        let result = result.map_err(|error| vm.process().explain(format!("{error:#}")))?;
        served.with_context(|| format!("the host's end of {:?} failed", load.direction))?;
        Ok(result)
    })
}

/// The host's end of one connection; see [`StreamLoad`] for the guest's.
///
/// # Errors
/// It breaks.
pub fn serve(load: &StreamLoad, mut stream: impl Read + Write) -> Result<()> {
    match load.direction {
        Direction::ToHost => {
            let received = receive(&mut stream)?;
            if received != load.bytes() {
                bail!("{received} of {} bytes arrived", load.bytes());
            }
            stream.write_all(&[1])?;
        }
        Direction::ToGuest => {
            stream.read_exact(&mut [0])?;
            let piece = vec![1; PIECE_BYTES];
            for _ in 0..load.count {
                stream.write_all(&piece)?;
            }
        }
        Direction::RoundTrip | Direction::Connect => {
            let count = if load.direction == Direction::Connect { 1 } else { load.count };
            for _ in 0..count {
                let mut byte = [0];
                stream.read_exact(&mut byte)?;
                stream.write_all(&byte)?;
            }
        }
    }
    Ok(())
}

fn receive(stream: &mut impl Read) -> Result<u64> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut received = 0;
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok(received),
            Ok(count) => received += count as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("cannot receive from the guest"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(direction: Direction, count: u64) -> StreamLoad {
        StreamLoad { direction, port: PORT_FIRST, count, address: None }
    }

    #[test]
    fn the_host_confirms_what_it_received_and_only_all_of_it() {
        for (sent_bytes, is_good) in [(2 * PIECE_BYTES, true), (PIECE_BYTES + 1, false)] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let server = std::thread::spawn(move || serve(&load(Direction::ToHost, 2), ours));
            theirs.write_all(&vec![1; sent_bytes]).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            theirs.read_to_end(&mut answer).unwrap();
            assert_eq!((server.join().unwrap().is_ok(), answer.len()), (is_good, is_good.into()));
        }
    }

    #[test]
    fn the_host_sends_when_it_is_told_to() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || serve(&load(Direction::ToGuest, 3), ours));
        theirs.write_all(&[1]).unwrap();
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).unwrap();
        server.join().unwrap().unwrap();
        assert_eq!(received.len(), 3 * PIECE_BYTES);
    }

    #[test]
    fn the_host_returns_each_byte() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || serve(&load(Direction::RoundTrip, 2), ours));
        for byte in [7, 9] {
            let mut echoed = [0];
            theirs.write_all(&[byte]).unwrap();
            theirs.read_exact(&mut echoed).unwrap();
            assert_eq!(echoed, [byte]);
        }
        server.join().unwrap().unwrap();
    }
}
