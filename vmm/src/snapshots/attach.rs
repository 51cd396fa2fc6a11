//! Giving a machine the memory of a snapshot.

use rotifer_devices::GuestMemory;
use rotifer_snapshot::PageSource;
use rotifer_snapshot::pager::service::Service;
use rotifer_snapshot::pager::{
    Mapping, Options, Pager, PagerError, Policy, Reach, StartError, Userfault, load_all,
};

use super::{Origin, OriginError, SnapshotError};
use crate::api::Load;

/// Sees to it that `memory`, which nothing has touched yet, has the content of the snapshot whenever
/// it is read: a copy of its own, or the host's, through its pager, or of both what is nearer. If that becomes impossible
/// `on_failure` is told, and has to end the process. No pager is returned if all of it was loaded at
/// once.
///
/// # Errors
/// See [`SnapshotError`].
pub fn attach(
    memory: &GuestMemory,
    origin: &Origin,
    load: &Load,
    on_failure: impl FnOnce(PagerError) + Send + 'static,
) -> Result<Option<Pager>, SnapshotError> {
    let mut source = origin.snapshot.memory().map_err(OriginError::from)?;
    if load.load_eagerly {
        load_all(memory, &mut source)?;
        return Ok(None);
    }
    let (source, mapping): (Box<dyn PageSource>, _) = match (&load.pager_socket, &load.base) {
        (None, _) => (Box::new(source), Mapping::Copy),
        (Some(socket), None) => {
            let image = Service::connect(socket)?.open(&origin.snapshot)?;
            (Box::new(source), Mapping::Service(image))
        }
        (Some(socket), Some(base)) => {
            let base = Origin::open(base, None, &load.host)?;
            let image = Service::connect(socket)?.open(&base.snapshot)?;
            let base = image.into_base().map_err(OriginError::from)?;
            (base.below(source), Mapping::Copy)
        }
    };
    let options = if load.record_working_set {
        // What is loaded ahead of its touch would not be seen.
        Options { mapping, reach: Reach::Chunk, is_recording: true, ..Options::default() }
    } else {
        let working_set = &origin.snapshot.manifest().working_set;
        let Policy { working_set, written, copied_ahead } = Policy::of(working_set);
        Options { mapping, working_set, written, copied_ahead, ..Options::default() }
    };
    let pager = Pager::start(memory, source, Userfault::open, options, on_failure);
    pager.map(Some).map_err(|error| match error {
        StartError::Userfault(error) => SnapshotError::Userfault(error),
        error => SnapshotError::Pager(error),
    })
}
