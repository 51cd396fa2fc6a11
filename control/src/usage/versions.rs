//! What versions of images take on the disk, from when to when.

use std::collections::BTreeMap;

use rusqlite::{Transaction, params};
use serde_json::{Value, json};

use super::{gib_seconds, seconds};
use crate::clock::Timestamp;
use crate::fleet::records::{VersionId, version_text};
use crate::fleet::{Change, Measured};
use crate::store::{Store, StoreError, attempt};

/// Notes that an answer is made from; the oldest are left out.
const NOTES_MAX: i64 = 200_000;

/// A version takes so much from now on.
pub struct Size {
    version: VersionId,
    bytes: u64,
}

impl Size {
    /// The sizes that follow from changes. What was measured is of the version that was built.
    pub fn among(changes: &[Change], measured: &Measured) -> Vec<Self> {
        let size_of = |change: &Change| match change {
            Change::PutVersion(built) => {
                Some(Self { version: built.id.clone(), bytes: measured.stored_bytes? })
            }
            Change::DeleteVersion(id) => Some(Self { version: id.clone(), bytes: 0 }),
            _ => None,
        };
        changes.iter().filter_map(size_of).collect()
    }
}

pub(super) fn keep(
    transaction: &Transaction<'_>,
    sizes: &[Size],
    now: Timestamp,
) -> Result<(), StoreError> {
    attempt("note the size of a version", || {
        for Size { version: VersionId { image, number }, bytes } in sizes {
            let sql =
                "INSERT INTO version_size (image, version, time, bytes) VALUES (?1, ?2, ?3, ?4)";
            transaction.execute(sql, params![image, version_text(*number), now.0, bytes])?;
        }
        Ok(())
    })
}

/// Forgets what is over since before a time.
pub(super) fn forget(transaction: &Transaction<'_>, before: i64) -> Result<(), StoreError> {
    attempt("forget sizes of versions", || {
        // The size that a version had last is the one that it has.
        let sql = "DELETE FROM version_size AS old WHERE time < ?1 AND EXISTS (SELECT 1 FROM version_size AS new \
                   WHERE new.image = old.image AND new.version = old.version AND new.id > old.id AND new.time < ?1)";
        transaction.execute(sql, [before])?;
        transaction.execute("DELETE FROM version_size WHERE time < ?1 AND bytes = 0", [before])?;
        Ok(())
    })
}

/// What each version has taken since a time; those that were gone before are left out.
pub(super) fn answer(store: &Store, since: i64, now: i64) -> Result<Vec<Value>, StoreError> {
    let notes: Vec<((String, String), i64, u64)> = store.read(|transaction| {
        attempt("read the sizes of versions", || {
            let sql = "SELECT image, version, time, bytes FROM \
                       (SELECT * FROM version_size ORDER BY id DESC LIMIT ?1) ORDER BY id";
            let mut statement = transaction.prepare(sql)?;
            let notes = statement.query_map([NOTES_MAX], |row| {
                Ok(((row.get(0)?, row.get(1)?), row.get(2)?, row.get(3)?))
            })?;
            notes.collect()
        })
    })?;
    let mut sizes: BTreeMap<_, Vec<(i64, u64)>> = BTreeMap::new();
    for (version, time, bytes) in notes {
        sizes.entry(version).or_default().push((time, bytes));
    }
    let shown = sizes.iter().filter_map(|((image, version), sizes)| {
        let (mut stored_ms, mut stored_gib_seconds) = (0, 0.0);
        let ends = sizes.iter().skip(1).map(|(time, _)| *time).chain([now]);
        for ((time, bytes), end) in sizes.iter().zip(ends) {
            let length_ms = end.saturating_sub(since.max(*time)).max(0);
            stored_gib_seconds += gib_seconds(*bytes, length_ms);
            stored_ms += if *bytes > 0 { length_ms } else { 0 };
        }
        let bytes = sizes.last().map_or(0, |(_, bytes)| *bytes);
        (bytes > 0 || stored_ms > 0).then(|| {
            json!({
                "imageName": image, "imageVersion": version, "storedBytes": bytes,
                "storedSeconds": seconds(stored_ms), "storedGiBSeconds": stored_gib_seconds,
            })
        })
    });
    Ok(shown.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_remembered_however_old_and_what_is_gone_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("x.db")).unwrap();
        let size = |number, bytes| Size { version: VersionId { image: "a".into(), number }, bytes };
        // Number 2 was removed, built again and removed; 3 is there again; 4 went later.
        let noted = [
            (1, size(1, 7 << 30)),
            (1, size(2, 1)),
            (2, size(2, 0)),
            (3, size(2, 1)),
            (4, size(2, 0)),
            (5, size(3, 1)),
            (6, size(3, 0)),
            (7, size(3, 5 << 30)),
            (8, size(4, 1 << 30)),
            (2008, size(4, 0)),
        ];
        let kept: Result<(), StoreError> = store.write(|transaction| {
            noted.iter().try_for_each(|(time, size)| {
                keep(transaction, std::slice::from_ref(size), Timestamp(*time))
            })?;
            forget(transaction, 1000)
        });
        kept.unwrap();
        let shown = |since, now| {
            let item =
                |item: &Value| (item["imageVersion"].clone(), item["storedGiBSeconds"].clone());
            answer(&store, since, now).unwrap().iter().map(item).collect::<Vec<_>>()
        };
        let since_1008 =
            [(json!("1.0"), json!(14.0)), (json!("3.0"), json!(10.0)), (json!("4.0"), json!(1.0))];
        assert_eq!(shown(1008, 3008), since_1008);
        assert_eq!(shown(2008, 3008), [(json!("1.0"), json!(7.0)), (json!("3.0"), json!(5.0))]);
        let left: i64 = store
            .read(|transaction| {
                let sql = "SELECT count(*) FROM version_size";
                transaction.query_row(sql, [], |row| row.get(0)).map_err(StoreError::at("count"))
            })
            .unwrap();
        assert_eq!(left, 4);
    }
}
