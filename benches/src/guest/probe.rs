//! The whole of a small guest whose snapshots are measured: its first process, which touches
//! memory when it is told to.
//!
//! ```text
//!  boot ──▶ fill memory ──▶ a mark on the console ──▶ a connection of the host: requests ─┐
//!                               ▲                                                         │
//!                               └──── the connection is gone, as after every restore ◀────┘
//! ```
//! So a guest that goes on after a restore says so on its console by itself, as soon as its driver
//! hears that connections were reset. Nothing is polled, and nothing moves in between.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::time::Instant;

use ::vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};
use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Operation, Order, elapsed_ns, xorshift};

/// Where it listens.
pub const PROBE_PORT: u32 = 5100;
/// What it writes to its console: a character that no log has (synchronous idle).
pub const MARK: u8 = 0x16;
/// What is touched at a time.
pub const PAGE_BYTES: usize = 4096;
const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// More than any request has.
const REQUEST_MAX_BYTES: u64 = 4096;
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// How to be such a guest.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ProbeLoad {
    /// How many pages of memory hold data
    #[arg(long)]
    pub pages: usize,
}

/// One word of each of some pages is read or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Touch {
    /// Of these pages.
    pub pages: Range<usize>,
    /// So many; in order, from the first one on.
    pub count: usize,
    /// In which order, each at most once.
    pub order: Order,
    /// What to do with a page.
    pub operation: Operation,
    /// Whether the time of each page is wanted; reading the clock costs some of it.
    pub each: bool,
}

/// What it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Touched {
    /// For all pages, on the guest's clock.
    pub elapsed_ns: u64,
    /// For each page, if that was wanted.
    pub samples_ns: Vec<u64>,
}

impl Touch {
    /// Touches nothing: asks whether somebody answers.
    pub fn nothing() -> Self {
        let (order, operation) = (Order::Sequential, Operation::Read);
        Self { pages: 0..0, count: 0, order, operation, each: false }
    }
}

impl ProbeLoad {
    /// The words that make the kernel's first process this.
    pub fn words(&self) -> String {
        format!("guest probe --pages={}", self.pages)
    }

    /// Never returns while all is well.
    ///
    /// # Errors
    /// There is no vsock device or no console.
    pub fn run(&self) -> Result<()> {
        let mut memory = Memory::new(self.pages);
        let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PROBE_PORT)
            .with_context(|| format!("cannot listen on port {PROBE_PORT}"))?;
        let mut console = std::io::stdout();
        loop {
            let marked = console.write_all(&[MARK]).and_then(|()| console.flush());
            marked.context("cannot write to the console")?;
            // One that was reset before it was accepted counts as one that ended at once.
            let Ok((stream, _)) = listener.accept() else { continue };
            if let Err(error) = serve(stream, &mut memory) {
                eprintln!("error: {error:#}");
            }
        }
    }
}

/// Does what is asked until the connection ends, however it does.
fn serve(stream: VsockStream, memory: &mut Memory) -> Result<()> {
    let mut sink = stream.try_clone().context("cannot use the connection")?;
    let mut source = BufReader::new(stream);
    loop {
        let mut line = String::new();
        match (&mut source).take(REQUEST_MAX_BYTES).read_line(&mut line) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Ok(()),
        }
        let touch: Touch =
            serde_json::from_str(&line).with_context(|| format!("{line:?} is no request"))?;
        let mut answer = serde_json::to_string(&memory.touch(&touch)?)?;
        answer.push('\n');
        if sink.write_all(answer.as_bytes()).is_err() {
            return Ok(());
        }
    }
}

/// A page of data.
#[repr(align(4096))]
struct Page([u64; PAGE_WORDS]);

/// Pages that are all different from one another, so that nobody can keep one for two.
struct Memory(Vec<Page>);

impl Memory {
    fn new(page_count: usize) -> Self {
        let mut state = SEED;
        let mut memory = Vec::with_capacity(page_count);
        for _ in 0..page_count {
            memory.push(Page(std::array::from_fn(|_| xorshift(&mut state))));
        }
        Self(memory)
    }

    fn touch(&mut self, touch: &Touch) -> Result<Touched> {
        let Range { start, end } = touch.pages;
        let chosen = self.0.get_mut(touch.pages.clone());
        let chosen = chosen.with_context(|| format!("there are no pages {start} to {end}"))?;
        // All that takes memory of our own comes before the clock starts.
        let order = ordered(chosen.len(), touch.order);
        let order = order.get(..touch.count).context("there are fewer pages than are wanted")?;
        let mut samples_ns = vec![u64::MAX; if touch.each { touch.count } else { 0 }];
        let begin = Instant::now();
        if touch.each {
            for (index, sample) in order.iter().zip(&mut samples_ns) {
                let begin = Instant::now();
                chosen[*index].touch(touch.operation);
                *sample = elapsed_ns(begin);
            }
        } else {
            for index in order {
                chosen[*index].touch(touch.operation);
            }
        }
        Ok(Touched { elapsed_ns: elapsed_ns(begin), samples_ns })
    }
}

impl Page {
    fn touch(&mut self, operation: Operation) {
        match operation {
            Operation::Read => {
                black_box(self.0[0]);
            }
            Operation::Write => {
                let word = black_box(&mut self.0[0]);
                *word = word.wrapping_add(1);
            }
        }
    }
}

/// The numbers below `count`, each once; at random they are the same each time.
fn ordered(count: usize, order: Order) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..count).collect();
    if order == Order::Random {
        let mut state = SEED;
        for last in (1..count).rev() {
            let other = xorshift(&mut state) % (last as u64 + 1);
            numbers.swap(last, other as usize);
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(pages: Range<usize>, operation: Operation) -> Touch {
        let count = pages.len();
        Touch { pages, count, order: Order::Sequential, operation, each: false }
    }

    #[test]
    fn all_pages_are_different_and_none_is_zero() {
        let memory = Memory::new(100);
        let firsts: std::collections::BTreeSet<_> = memory.0.iter().map(|page| page.0[0]).collect();
        assert_eq!((firsts.len(), firsts.contains(&0)), (100, false));
    }

    #[test]
    fn writing_changes_each_of_the_pages_and_no_others_and_reading_none() {
        let (mut memory, fresh) = (Memory::new(8), Memory::new(8));
        memory.touch(&touch(2..5, Operation::Write)).unwrap();
        memory.touch(&touch(0..8, Operation::Read)).unwrap();
        let changed = |index: &usize| memory.0[*index].0 != fresh.0[*index].0;
        assert_eq!((0..8).filter(changed).collect::<Vec<_>>(), [2, 3, 4]);
    }

    #[test]
    fn pages_at_random_are_distinct_and_each_has_its_time() {
        let mut memory = Memory::new(64);
        let random =
            Touch { count: 40, order: Order::Random, each: true, ..touch(0..64, Operation::Write) };
        let touched = memory.touch(&random).unwrap();
        assert_eq!(touched.samples_ns.len(), 40);
        assert!(touched.samples_ns.iter().sum::<u64>() <= touched.elapsed_ns);
        let fresh = Memory::new(64);
        let changed = memory.0.iter().zip(&fresh.0).filter(|(page, fresh)| page.0 != fresh.0);
        assert_eq!(changed.count(), 40);
        assert_ne!(ordered(64, Order::Random), ordered(64, Order::Sequential));
    }

    #[test]
    fn pages_that_are_not_there_are_refused() {
        let mut memory = Memory::new(4);
        assert!(memory.touch(&touch(2..5, Operation::Read)).is_err());
        let many = Touch { count: 5, ..touch(0..4, Operation::Read) };
        assert!(memory.touch(&many).is_err());
        assert!(memory.touch(&Touch::nothing()).is_ok());
    }
}
