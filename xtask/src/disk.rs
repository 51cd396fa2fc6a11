//! Is there room on the disk? Better asked before a long step than found out at its end.

use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::statvfs;

const GIB: u64 = 1 << 30;
/// For a set of unpacked packages.
pub const UNPACK_BYTES: u64 = GIB;
/// For a host's saved state and what its disk grows by at first.
pub const HOST_BYTES: u64 = 2 * GIB;

/// How much can still be written where `path` is.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let stat =
        statvfs(path).with_context(|| format!("cannot ask for the free space of {path:?}"))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Fails, with the remedy, when there is less than `bytes`.
pub fn require(path: &Path, bytes: u64) -> Result<()> {
    let free = free_bytes(path)?;
    if free < bytes {
        bail!(
            "only {:.1} GiB are free for {} and this step wants {:.1} GiB: make room, or set \
             ROTIFER_CACHE to a directory on a larger disk",
            in_gib(free),
            path.display(),
            in_gib(bytes)
        );
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn in_gib(bytes: u64) -> f64 {
    bytes as f64 / GIB as f64
}
