//! The guest's end of a connection to the host, over vsock or TCP.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
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
    /// One connection after the other, with a byte each way.
    Connect,
}

/// A connection to the host and what goes over it.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct StreamLoad {
    /// Who sends
    pub direction: Direction,
    /// The host's port
    #[arg(long)]
    pub port: u32,
    /// How many pieces of 64 KiB, round trips or connections
    #[arg(long)]
    pub count: u64,
    /// The host's address for TCP; without it the connection goes over vsock
    #[arg(long)]
    pub address: Option<Ipv4Addr>,
}

/// What both kinds of connections can do.
trait Stream: Read + Write {
    /// Says that nothing more comes from here.
    fn end(&self) -> io::Result<()>;
}

impl Stream for VsockStream {
    fn end(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Stream for TcpStream {
    fn end(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// What came out.
pub enum Outcome {
    /// Of the two that transfer.
    Transfer(Transfer),
    /// Of round trips.
    Latencies(Latencies),
}

impl StreamLoad {
    /// The words that make a guest run this.
    pub fn words(&self) -> Vec<String> {
        let direction = self.direction.to_possible_value();
        let direction = direction.map_or_else(String::new, |value| value.get_name().to_owned());
        let (port, count) = (format!("--port={}", self.port), format!("--count={}", self.count));
        let address = self.address.map(|address| format!("--address={address}"));
        ["stream".into(), direction, port, count].into_iter().chain(address).collect()
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
        let outcome = match self.direction {
            Direction::ToHost => self.send(self.connect()?).map(Outcome::Transfer),
            Direction::ToGuest => self.receive(self.connect()?).map(Outcome::Transfer),
            Direction::RoundTrip => self.back_and_forth(self.connect()?).map(Outcome::Latencies),
            Direction::Connect => self.one_after_the_other().map(Outcome::Transfer),
        };
        outcome.context("the connection to the host broke")
    }

    fn connect(&self) -> Result<Box<dyn Stream>> {
        let connected: io::Result<Box<dyn Stream>> = match self.address {
            None => VsockStream::connect_with_cid_port(VMADDR_CID_HOST, self.port)
                .map(|stream| Box::new(stream) as _),
            Some(address) => u16::try_from(self.port)
                .map_err(|_| io::ErrorKind::InvalidInput.into())
                .and_then(|port| TcpStream::connect((address, port)))
                .and_then(|stream| stream.set_nodelay(true).map(|()| Box::new(stream) as _)),
        };
        connected.with_context(|| format!("cannot connect to the host's port {}", self.port))
    }

    fn one_after_the_other(&self) -> Result<Transfer> {
        let start = Instant::now();
        for _ in 0..self.count {
            let mut stream = self.connect()?;
            stream.write_all(&[1])?;
            stream.read_exact(&mut [0])?;
        }
        Ok(Transfer::since(start, self.count, self.count))
    }

    fn send(&self, mut stream: Box<dyn Stream>) -> Result<Transfer> {
        let piece = vec![1; PIECE_BYTES];
        let start = Instant::now();
        for _ in 0..self.count {
            stream.write_all(&piece)?;
        }
        stream.end()?;
        // What is still on its way has not been transferred.
        stream.read_exact(&mut [0])?;
        Ok(Transfer::since(start, self.bytes(), self.count))
    }

    fn receive(&self, mut stream: Box<dyn Stream>) -> Result<Transfer> {
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

    fn back_and_forth(&self, mut stream: Box<dyn Stream>) -> Result<Latencies> {
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
