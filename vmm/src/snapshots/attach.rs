//! Giving a machine the memory of a snapshot.

use std::fs::File;

use rotifer_devices::GuestMemory;
use rotifer_snapshot::pager::service::Service;
use rotifer_snapshot::pager::{Mapping, Options, Pager, PagerError, Policy, Reach, Userfault};

use super::{Origin, OriginError, SnapshotError};
use crate::api::Load;

/// Sees to it that `memory`, which nothing has touched yet, has the content of the snapshot whenever
/// it is read: a copy of its own, or the host's, through its pager. If that becomes impossible
/// `on_failure` is told, and has to end the process.
///
/// # Errors
/// See [`SnapshotError`].
pub fn attach(
    memory: &GuestMemory,
    origin: &Origin,
    load: &Load,
    on_failure: impl FnOnce(PagerError) + Send + 'static,
) -> Result<Pager, SnapshotError> {
    let source = origin.snapshot.memory().map_err(OriginError::from)?;
    let mapping = match &load.pager_socket {
        None => Mapping::Copy,
        Some(socket) => {
            let path = &load.snapshot_path;
            let manifest = File::open(path)
                .map_err(|source| SnapshotError::Manifest { path: path.clone(), source })?;
            let service = Service::connect(socket)?;
            Mapping::Service(service.open(&origin.snapshot, &manifest)?)
        }
    };
    let options = if load.record_working_set {
        // What is loaded ahead of its touch would not be seen.
        Options { mapping, reach: Reach::Chunk, is_recording: true, ..Options::default() }
    } else {
        let Policy { working_set, written } = Policy::of(&origin.snapshot.manifest().working_set);
        Options { mapping, working_set, written, ..Options::default() }
    };
    Ok(Pager::start(memory, Box::new(source), Userfault::open()?, options, on_failure)?)
}
