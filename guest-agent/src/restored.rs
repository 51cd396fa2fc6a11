//! What a guest does after it was restored from a snapshot: its wall clock is set, and its connections to
//! others, which the restore has cut, are ended.
//!
//! Its memory does not say that time has passed. The VMM raises the interrupt of a new VM generation;
//! the kernel stirs it into its random numbers and writes so into its log, and tells user space in no
//! other way (Linux 6.12, `drivers/virt/vmgenid.c` and `drivers/char/random.c`). So the agent sleeps
//! on the kernel's log.
//!
//! The kernel wakes readers of its log with the next tick, up to 4 ms later. A connection of the host
//! may be there before, so the log is also looked at with each: whatever comes over the agent finds
//! both done.

use crate::clock::HostClock;
use crate::connections;
use crate::console::kernel_log;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use tokio::io::unix::AsyncFd;

const KERNEL_LOG: &str = "/dev/kmsg";
/// What the kernel says of a new generation.
const NEW_GENERATION: &[u8] = b"random: crng reseeded due to virtual machine fork";
/// The longest record (`PRINTK_MESSAGE_MAX`).
const RECORD_MAX_BYTES: usize = 2048;
/// Records that are read before others get their turn; the log has room for a few hundred.
const RECORDS_AT_A_TIME: usize = 1024;

/// Hears of restores.
#[derive(Debug)]
pub struct Watch {
    log: AsyncFd<File>,
    clock: HostClock,
}

impl Watch {
    /// Hears of those from now on.
    ///
    /// # Errors
    /// The kernel has no log for us.
    pub fn start(clock: HostClock) -> io::Result<Self> {
        let mut log =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(KERNEL_LOG)?;
        log.seek(SeekFrom::End(0))?;
        // SAFETY: the file is an open descriptor of its own and is never replaced inside.
        let log = unsafe { AsyncFd::register(log) }?;
        Ok(Self { log, clock })
    }

    /// Does after each restore what there is to do.
    pub async fn run(&self) {
        // An error means that the event loop ends.
        while let Ok(mut ready) = self.log.readable().await {
            if self.catch_up() {
                ready.clear_ready();
            }
        }
    }

    /// Does now what there is to do, if the guest was restored since the last look. Whether all of
    /// the log was seen.
    pub fn catch_up(&self) -> bool {
        let (news, is_all) = read_news(self.log.get_ref());
        // A clock that is set once too often is right; connections would be missed.
        if news >= News::Lost {
            self.clock.set();
        }
        if news == News::Restored
            && let Err(error) = connections::end_all()
        {
            kernel_log(&format!("connections that a restore has cut may hang: {error}"));
        }
        is_all
    }
}

/// What a log tells of new generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    Nothing,
    /// Records were overwritten before they were read, and may have told of one.
    Lost,
    Restored,
}

/// Reads what is new in a log, one record at a time, and tells whether there is no more.
fn read_news(mut log: impl Read) -> (News, bool) {
    let mut record = [0; RECORD_MAX_BYTES];
    let mut news = News::Nothing;
    for _ in 0..RECORDS_AT_A_TIME {
        match log.read(&mut record) {
            Ok(0) => return (news, true),
            Ok(length) if tells_of_new_generation(record.get(..length)) => news = News::Restored,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => news = news.max(News::Lost),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return (news, true),
        }
    }
    (news, false)
}

/// A record is `priority,sequence,time,flags[,...];text`, then lines with more about it. The priority
/// holds who speaks, in the bits from 3 on: only the kernel itself is 0.
fn tells_of_new_generation(record: Option<&[u8]>) -> bool {
    let tells = |record: &[u8]| {
        let text_at = record.iter().position(|byte| *byte == b';')? + 1;
        let (head, text) = record.split_at_checked(text_at)?;
        let priority = head.split(|byte| *byte == b',').next()?;
        let priority: u32 = std::str::from_utf8(priority).ok()?.parse().ok()?;
        let line = text.split(|byte| *byte == b'\n').next()?;
        Some(priority >> 3 == 0 && line == NEW_GENERATION)
    };
    record.and_then(tells).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const NEWS: &str = "5,339,61200000,-;random: crng reseeded due to virtual machine fork\n";
    const OTHER: &str = "6,340,61200001,-;virtio_blk virtio0: 1/0/0 queues\n SUBSYSTEM=virtio\n";

    struct Log(VecDeque<io::Result<&'static str>>);

    impl Read for Log {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let next = self.0.pop_front().unwrap_or(Err(io::ErrorKind::WouldBlock.into()));
            next.map(|record| {
                buffer[..record.len()].copy_from_slice(record.as_bytes());
                record.len()
            })
        }
    }

    fn news(records: impl IntoIterator<Item = io::Result<&'static str>>) -> (News, bool) {
        read_news(Log(records.into_iter().collect()))
    }

    #[test]
    fn a_new_generation_is_found_among_other_records() {
        assert_eq!(news([]), (News::Nothing, true));
        assert_eq!(news([Ok(OTHER), Ok(OTHER)]), (News::Nothing, true));
        assert_eq!(news([Ok(OTHER), Ok(NEWS), Ok(OTHER)]), (News::Restored, true));
    }

    #[test]
    fn only_the_kernel_can_tell_of_it() {
        let forged = [
            "12,1,2,-;random: crng reseeded due to virtual machine fork\n",
            "5,1,2,-;forged: random: crng reseeded due to virtual machine fork\n",
            "5,1,2,-;other\n random: crng reseeded due to virtual machine fork\n",
            "random: crng reseeded due to virtual machine fork\n",
            "",
        ];
        for record in forged {
            assert!(!tells_of_new_generation(Some(record.as_bytes())), "{record}");
        }
    }

    #[test]
    fn records_that_were_lost_may_have_told_of_it() {
        let lost = || Err(io::ErrorKind::BrokenPipe.into());
        assert_eq!(news([Ok(OTHER), lost()]), (News::Lost, true));
        assert_eq!(news([Ok(NEWS), lost()]), (News::Restored, true));
    }

    #[test]
    fn a_flood_is_read_in_pieces() {
        let found = news((0..=RECORDS_AT_A_TIME).map(|_| Ok(OTHER)));
        assert_eq!(found, (News::Nothing, false));
    }
}
