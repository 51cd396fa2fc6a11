//! The guest's end of a connection to the host.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use ::vsock::{VMADDR_CID_HOST, VsockStream};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use super::{Latencies, Transfer, elapsed_ns};

/// The piece in which either end sends and receives.
pub const PIECE_BYTES: usize = 64 << 10;

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// The guest sends; the host says with one byte that it has all.
    ToHost,
    /// The host sends, once it got one byte.
    ToGuest,
    /// Single bytes back and forth.
    RoundTrip,
}

/// A connection to the host and what goes over it.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct VsockLoad {
    /// Who sends
    pub direction: Direction,
    /// The host's port
    #[arg(long)]
    pub port: u32,
    /// How many pieces of 64 KiB, or how many round trips
    #[arg(long)]
    pub count: u64,
}

/// What came out.
pub enum Outcome {
    /// Of the two that transfer.
    Transfer(Transfer),
    /// Of round trips.
    Latencies(Latencies),
}

impl VsockLoad {
    /// The words that make a guest run this.
    pub fn words(&self) -> Vec<String> {
        let direction = self.direction.to_possible_value();
        let direction = direction.map_or_else(String::new, |value| value.get_name().to_owned());
        vec![
            "vsock".into(),
            direction,
            format!("--port={}", self.port),
            format!("--count={}", self.count),
        ]
    }

    /// How many bytes go one way.
    pub fn bytes(&self) -> u64 {
        self.count * PIECE_BYTES as u64
    }

    /// Does it.
    ///
    /// # Errors
    /// The host does not take the connection, or it breaks.
    pub fn run(&self) -> Result<Outcome> {
        let stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, self.port)
            .with_context(|| format!("cannot connect to the host's port {}", self.port))?;
        let outcome = match self.direction {
            Direction::ToHost => self.send(stream).map(Outcome::Transfer),
            Direction::ToGuest => self.receive(stream).map(Outcome::Transfer),
            Direction::RoundTrip => self.back_and_forth(stream).map(Outcome::Latencies),
        };
        outcome.context("the connection to the host broke")
    }

    fn send(&self, mut stream: VsockStream) -> Result<Transfer> {
        let piece = vec![1; PIECE_BYTES];
        let start = Instant::now();
        for _ in 0..self.count {
            stream.write_all(&piece)?;
        }
        stream.shutdown(Shutdown::Write)?;
        // What is still on its way has not been transferred.
        stream.read_exact(&mut [0])?;
        Ok(Transfer::since(start, self.bytes(), self.count))
    }

    fn receive(&self, mut stream: VsockStream) -> Result<Transfer> {
        let mut piece = vec![0; PIECE_BYTES];
        let mut received: u64 = 0;
        let start = Instant::now();
        stream.write_all(&[1])?;
        loop {
            match stream.read(&mut piece)? {
                0 => break,
                count => received += count as u64,
            }
        }
        let transfer = Transfer::since(start, received, self.count);
        if received != self.bytes() {
            bail!("{received} of {} bytes arrived", self.bytes());
        }
        Ok(transfer)
    }

    fn back_and_forth(&self, mut stream: VsockStream) -> Result<Latencies> {
        let mut samples_ns = Vec::new();
        for _ in 0..self.count {
            let start = Instant::now();
            stream.write_all(&[1])?;
            stream.read_exact(&mut [0])?;
            samples_ns.push(elapsed_ns(start));
        }
        Ok(Latencies { samples_ns })
    }
}
