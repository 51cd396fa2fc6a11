//! A guest against rings and chains alone: a device that keeps chains, completes them in any
//! order, puts them back, and moves their bytes in parts.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rotifer_devices::virtio::test_driver::TestDriver;
use rotifer_devices::virtio::{
    BrokenRing, Chain, GuestIoVec, Kind, MAX_CHAIN_SEGMENTS, QueueIo, Source, VirtioDevice,
};
use rotifer_fuzz::guest::{Action, assert_recovers, play};
use rotifer_snapshot::{LoadError, Stateful, Tag};

/// Chains kept at most.
const KEPT_MAX: usize = 8;

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Deed {
    Complete(u32),
    Keep,
    CompleteKept(u8),
    PutBack,
    Read(u16, u16),
    Write(u16, u16),
    Vector(u32, u32),
}

/// Does the next deed of its list to each chain.
struct Scrambler {
    deeds: Vec<Deed>,
    next: usize,
    kept: Vec<(usize, Chain)>,
}

impl Scrambler {
    fn deed(&mut self) -> Deed {
        let deed = self.deeds.get(self.next % self.deeds.len().max(1)).copied();
        self.next += 1;
        deed.unwrap_or(Deed::Complete(0))
    }
}

fn check(chain: &Chain) {
    assert!(chain.readable().len() + chain.writable().len() <= MAX_CHAIN_SEGMENTS);
    assert!(chain.readable_bytes() + chain.writable_bytes() <= u32::MAX.into());
}

impl Stateful for Scrambler {
    const TAG: Tag = Tag { kind: *b"FUZZ", version: 1 };
    type State = ();

    fn save(&self) {}

    fn load(&mut self, (): ()) -> Result<(), LoadError> {
        Ok(())
    }
}

impl VirtioDevice for Scrambler {
    fn kind(&self) -> Kind {
        Kind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 256]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn on_kick(&mut self, queue: usize, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        while let Some(chain) = io.pop(queue)? {
            check(&chain);
            let memory = io.memory();
            match self.deed() {
                Deed::Complete(len) => io.complete(queue, chain, len)?,
                Deed::Keep if self.kept.len() < KEPT_MAX => self.kept.push((queue, chain)),
                Deed::Keep => io.complete(queue, chain, 0)?,
                Deed::CompleteKept(index) => {
                    if !self.kept.is_empty() {
                        let index = usize::from(index) % self.kept.len();
                        let (queue, kept) = self.kept.swap_remove(index);
                        io.complete(queue, kept, 1)?;
                    }
                    io.complete(queue, chain, 2)?;
                }
                Deed::PutBack => {
                    io.undo_pop(queue, chain);
                    return Ok(());
                }
                Deed::Read(offset, len) => {
                    let mut bytes = vec![0; len.into()];
                    if let Ok(count) = chain.read_at(memory, offset.into(), &mut bytes) {
                        assert!(count <= usize::from(len));
                    }
                    io.complete(queue, chain, 0)?;
                }
                Deed::Write(offset, len) => {
                    let bytes = vec![0xa5; len.into()];
                    let written = chain.write_at(memory, offset.into(), &bytes).unwrap_or(0);
                    io.complete(queue, chain, written as u32)?;
                }
                Deed::Vector(offset, len) => {
                    let (offset, len) = (u64::from(offset), u64::from(len));
                    if let Ok(part) = GuestIoVec::new(memory, chain.writable(), offset, len) {
                        let rest = chain.writable_bytes().saturating_sub(offset);
                        assert_eq!(part.len_bytes(), rest.min(len));
                    }
                    io.complete(queue, chain, 0)?;
                }
            }
        }
        Ok(())
    }

    fn on_source(&mut self, _token: u32, _io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        Ok(())
    }

    fn drain(&mut self, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        self.kept.drain(..).try_for_each(|(queue, chain)| io.complete(queue, chain, 0))
    }

    fn reset(&mut self) {
        self.kept.clear();
        self.deeds.clear();
    }
}

fuzz_target!(|input: (Vec<Deed>, Vec<Action>)| {
    let (deeds, actions) = input;
    let device = Scrambler { deeds, next: 0, kept: Vec::new() };
    let mut driver = TestDriver::started(Box::new(device));
    play(&mut driver, &actions);
    assert_recovers(&mut driver);
});
