//! What of a disk survives a suspend.

use rotifer_snapshot::{LoadError, Stateful, Tag};
use serde::{Deserialize, Serialize};

use super::{Block, ID_BYTES};

/// What the guest knows of its disk besides its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub(super) capacity_sectors: u64,
    pub(super) read_only: bool,
    pub(super) id: [u8; ID_BYTES],
}

impl Stateful for Block {
    const TAG: Tag = Tag { kind: *b"VBLK", version: 1 };
    type State = State;

    fn save(&self) -> State {
        State {
            capacity_sectors: self.drive.disk.capacity_sectors(),
            read_only: self.drive.read_only,
            id: self.drive.id,
        }
    }

    /// The guest goes on with the disk it knows, so the one of the configuration must be of the
    /// same size; a serial number that was read once stays. How many queues there are is the
    /// transport's to check.
    fn load(&mut self, state: State) -> Result<(), LoadError> {
        let invalid =
            |field, value, reason| LoadError::Invalid { tag: Self::TAG, field, value, reason };
        if state.capacity_sectors != self.drive.disk.capacity_sectors() {
            let reason = "the disk image of the configuration has another size";
            return Err(invalid("capacity_sectors", state.capacity_sectors, reason));
        }
        if state.read_only != self.drive.read_only {
            let reason = "the drive of the configuration has another is_read_only";
            return Err(invalid("read_only", state.read_only.into(), reason));
        }
        self.drive.id = state.id;
        Ok(())
    }
}
