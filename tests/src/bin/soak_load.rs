//! The guest's side of the soak test: keeps a CPU, memory and a disk busy, and would notice if any
//! of them lost or changed a bit.
//!
//! ```text
//! soak_load DISK
//! ```
//! One thread rewrites blocks of the disk and pages of memory in no order, and looks at each before.
//! Another computes the same thing again and again. Whoever connects to the port and
//! says `some` or `all` is told, once both have done some more and some or all of the blocks were
//! looked at, what the guest looks like from inside; or what was wrong.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test, which sees it")]

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

const PORT: u16 = 7000;
const BLOCK_BYTES: usize = 4096;
const DISK_BLOCKS: usize = 256;
const MEMORY_BLOCKS: usize = 1024;
/// What is done for each question, at least: blocks of either kind that are looked at and rewritten.
const STEPS: usize = 16;
/// The values of one computation.
const VALUES: u64 = 10_000;

/// Each has its own content, which tells whose and which version it is. The disk wants it aligned.
#[derive(Clone, PartialEq)]
#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES]);

impl Block {
    fn of(index: usize, version: u64) -> Self {
        let mut state = (index as u64 + 1) << 40 | (version + 1);
        let mut block = Self([0; BLOCK_BYTES]);
        for word in block.0.chunks_exact_mut(8) {
            word.copy_from_slice(&random(&mut state).to_le_bytes());
        }
        block
    }
}

/// Cheap, and never zero (xorshift64).
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

trait Blocks {
    fn read(&self, index: usize) -> Block;
    fn write(&mut self, index: usize, block: &Block);
}

impl Blocks for Vec<Block> {
    fn read(&self, index: usize) -> Block {
        self[index].clone()
    }

    fn write(&mut self, index: usize, block: &Block) {
        self[index] = block.clone();
    }
}

/// Past the page cache, so that each access is one of the device.
impl Blocks for File {
    fn read(&self, index: usize) -> Block {
        let mut block = Block([0; BLOCK_BYTES]);
        self.read_exact_at(&mut block.0, (index * BLOCK_BYTES) as u64).unwrap();
        block
    }

    fn write(&mut self, index: usize, block: &Block) {
        self.write_all_at(&block.0, (index * BLOCK_BYTES) as u64).unwrap();
    }
}

/// Blocks, and which version of each was written last.
struct Checked<B> {
    name: &'static str,
    blocks: B,
    versions: Vec<u64>,
}

impl<B: Blocks> Checked<B> {
    fn new(name: &'static str, mut blocks: B, count: usize) -> Self {
        (0..count).for_each(|index| blocks.write(index, &Block::of(index, 0)));
        Self { name, blocks, versions: vec![0; count] }
    }

    fn check(&self, index: usize) -> Result<(), String> {
        let version = self.versions[index];
        if self.blocks.read(index) == Block::of(index, version) {
            return Ok(());
        }
        Err(format!("block {index} of the {} is not its version {version}", self.name))
    }

    fn check_all(&self) -> Result<(), String> {
        (0..self.versions.len()).try_for_each(|index| self.check(index))
    }

    fn check_and_rewrite(&mut self, index: usize) -> Result<(), String> {
        self.check(index)?;
        self.versions[index] += 1;
        self.blocks.write(index, &Block::of(index, self.versions[index]));
        Ok(())
    }
}

/// Whether all is well.
struct Question {
    is_all: bool,
    answer: Sender<Result<(), String>>,
}

/// Blocks of both kinds.
struct Work {
    disk: Checked<File>,
    memory: Checked<Vec<Block>>,
    state: u64,
}

impl Work {
    fn new(disk: File) -> Self {
        let memory = vec![Block([0; BLOCK_BYTES]); MEMORY_BLOCKS];
        Self {
            disk: Checked::new("disk", disk, DISK_BLOCKS),
            memory: Checked::new("memory", memory, MEMORY_BLOCKS),
            state: 1,
        }
    }

    fn step(&mut self) -> Result<(), String> {
        self.disk.check_and_rewrite(random(&mut self.state) as usize % DISK_BLOCKS)?;
        self.memory.check_and_rewrite(random(&mut self.state) as usize % MEMORY_BLOCKS)
    }

    fn steps_and_check(&mut self, is_all: bool) -> Result<(), String> {
        (0..STEPS).try_for_each(|_| self.step())?;
        if !is_all {
            return Ok(());
        }
        self.disk.check_all()?;
        self.memory.check_all()
    }

    /// Goes on until something is wrong, and answers each question; then only that.
    fn run(mut self, questions: &Receiver<Question>) {
        let wrong = loop {
            let result = match questions.try_recv() {
                Ok(question) => {
                    let result = self.steps_and_check(question.is_all);
                    question.answer.send(result.clone()).unwrap();
                    result
                }
                Err(_) => self.step(),
            };
            if let Err(wrong) = result {
                break wrong;
            }
        };
        questions.iter().for_each(|question| question.answer.send(Err(wrong.clone())).unwrap());
    }
}

/// Integers and floating-point numbers; the same each time.
fn compute() -> (u64, u64) {
    let (mut state, mut sum) = (7, 0.0_f64);
    for _ in 0..VALUES {
        sum = sum.mul_add(0.5, (random(&mut state) >> 12) as f64).sqrt();
    }
    (state, sum.to_bits())
}

/// A number in a file of lines `name: number kB`.
fn number_of(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().find_map(|word| word.parse().ok()).unwrap()
}

/// What the host says; one that is gone says nothing.
fn wants_all(stream: &TcpStream) -> bool {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).is_ok() && line.trim() == "all"
}

fn main() {
    let path = std::env::args().nth(1).unwrap();
    let disk =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let (ask, questions) = channel();
    std::thread::spawn(move || Work::new(disk).run(&questions));
    static COMPUTATIONS: AtomicU64 = AtomicU64::new(0);
    static WRONG_COMPUTATIONS: AtomicU64 = AtomicU64::new(0);
    std::thread::spawn(|| {
        let expected = compute();
        loop {
            let is_wrong = compute() != expected;
            WRONG_COMPUTATIONS.fetch_add(u64::from(is_wrong), Ordering::Relaxed);
            COMPUTATIONS.fetch_add(1, Ordering::Relaxed);
        }
    });
    let listener = TcpListener::bind(("127.0.0.1", PORT)).unwrap();
    println!("listening");
    for connection in listener.incoming() {
        let mut stream = connection.unwrap();
        let before = COMPUTATIONS.load(Ordering::Relaxed);
        let (sender, answer) = channel();
        ask.send(Question { is_all: wants_all(&stream), answer: sender }).unwrap();
        let blocks = answer.recv().unwrap();
        while COMPUTATIONS.load(Ordering::Relaxed) == before {
            std::thread::yield_now();
        }
        let text = match (blocks, WRONG_COMPUTATIONS.load(Ordering::Relaxed)) {
            (Err(wrong), _) => wrong,
            (Ok(()), 0) => format!(
                "{} {} {}",
                number_of("/proc/meminfo", "MemAvailable:"),
                number_of("/proc/1/status", "VmRSS:"),
                fs::read_dir("/proc/1/fd").unwrap().count(),
            ),
            (Ok(()), count) => format!("{count} computations were wrong"),
        };
        // The host may be gone: it asks again, and hears the same.
        let _ = stream.write_all(text.as_bytes());
    }
}
