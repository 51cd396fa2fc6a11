//! virtio-rng, section 5.4: random bytes from the host's kernel.

use rotifer_snapshot::{LoadError, Stateful, Tag};

use super::{BrokenRing, Chain, Kind, QueueIo, Source, VirtioDevice};

/// A request is answered with at most this many bytes, whatever room it has: a driver asks again
/// for more, and one chain cannot keep the io thread busy.
pub const MAX_BYTES_PER_REQUEST: usize = 64 << 10;

const QUEUE_SIZE: u16 = 64;
/// Bytes fetched at a time. `getrandom` never stops in the middle of so few.
const STEP_BYTES: usize = 256;

/// A virtio-rng device. It has no state at all: a restored guest gets fresh bytes.
#[derive(Debug, Default)]
pub struct Rng {}

impl Rng {
    /// A device.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Fills the writable part of `chain`; the number of bytes comes back.
fn fill(chain: &Chain, io: &QueueIo<'_>) -> usize {
    let room = usize::try_from(chain.writable_bytes()).unwrap_or(usize::MAX);
    let wanted = room.min(MAX_BYTES_PER_REQUEST);
    let mut step = [0; STEP_BYTES];
    let mut done: usize = 0;
    while done < wanted {
        let len = STEP_BYTES.min(wanted.saturating_sub(done));
        let bytes = step.get_mut(..len).unwrap_or_default();
        if let Err(error) = random(bytes) {
            // Only a sandbox that forbids the system call gets here.
            tracing::error!(%error, "get random bytes for the guest");
            break;
        }
        match chain.write_at(io.memory(), done as u64, bytes) {
            Ok(count) => done = done.saturating_add(count),
            Err(outside) => {
                tracing::debug!(%outside, "a request for random bytes is cut short");
                break;
            }
        }
    }
    done
}

pub(super) fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    // SAFETY: the pointer and length are those of a slice that is borrowed for the call. Without
    // flags and for at most 256 bytes the call fills all of them, once the host's kernel has
    // entropy (it waits for that), or fails.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(count).is_ok_and(|count| count == bytes.len()) {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

impl Stateful for Rng {
    const TAG: Tag = Tag { kind: *b"VRNG", version: 1 };
    type State = ();

    fn save(&self) {}

    fn load(&mut self, (): ()) -> Result<(), LoadError> {
        Ok(())
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> Kind {
        Kind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn on_kick(&mut self, queue: usize, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        while let Some(chain) = io.pop(queue)? {
            let count = fill(&chain, io);
            io.complete(queue, chain, u32::try_from(count).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }

    fn on_source(&mut self, _token: u32, _io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        Ok(())
    }

    fn drain(&mut self, _io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        Ok(())
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::super::test_driver::{Buffer, RAM_BASE, RAM_BYTES, TestDriver};
    use super::*;

    fn started() -> TestDriver {
        TestDriver::started(Box::new(Rng::new()))
    }

    #[test]
    fn a_request_is_filled_with_bytes_that_differ_each_time() {
        let mut driver = started();
        let (_, first) = driver.submit(0, &[Buffer::Write(300), Buffer::Write(20)]);
        let (_, second) = driver.submit(0, &[Buffer::Write(300)]);
        driver.kick(0);
        assert_eq!(driver.used(0).unwrap().len, 320);
        assert_eq!(driver.used(0).unwrap().len, 300);
        let (one, other) = (driver.bytes(first[0], 300), driver.bytes(second[0], 300));
        assert_ne!(one, other);
        assert!(driver.bytes(first[1], 20).iter().any(|byte| *byte != 0));
        assert!(one[256..].iter().any(|byte| *byte != 0), "past the first step");
    }

    #[test]
    fn a_huge_request_gets_the_bounded_number_of_bytes() {
        let mut driver = started();
        driver.submit(0, &[Buffer::Write(1 << 20)]);
        driver.kick(0);
        assert_eq!(driver.used(0).unwrap().len, MAX_BYTES_PER_REQUEST as u32);
    }

    #[test]
    fn a_request_outside_of_memory_or_without_room_gets_what_fits() {
        let mut driver = started();
        let end = RAM_BASE + RAM_BYTES as u64;
        driver.submit(0, &[Buffer::At { address: end, len: u32::MAX, write: true }]);
        driver.submit(0, &[Buffer::Read(vec![1; 8])]);
        driver.submit(0, &[Buffer::Write(8), Buffer::At { address: end, len: 8, write: true }]);
        driver.kick(0);
        assert_eq!(driver.used(0).unwrap().len, 0);
        assert_eq!(driver.used(0).unwrap().len, 0);
        assert_eq!(driver.used(0).unwrap().len, 0, "a step that fails counts for nothing");
        assert!(!driver.needs_reset());
    }
}
