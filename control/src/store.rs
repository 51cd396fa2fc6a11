//! Metadata, in SQLite: what was answered is on the disk.
//!
//! One file, one connection, one writer. A change is one transaction, written ahead (WAL) and
//! synced before [`Store::write`] returns; what fails leaves everything as it was. The bodies of
//! fleet records are JSON, so `sqlite3 rotifer.db` shows an operator all there is.

mod reserve;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, ffi};

use self::reserve::Reserve;

/// The version of the tables below. One that is newer is refused.
const SCHEMA_VERSION: i64 = 3;

const SCHEMA: &str = "
CREATE TABLE record (kind TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, id)) WITHOUT ROWID;

CREATE TABLE role (
    name TEXT PRIMARY KEY, id TEXT NOT NULL, path TEXT NOT NULL, created INTEGER NOT NULL, trust TEXT NOT NULL,
    description TEXT, max_session INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE attached_policy (
    role TEXT NOT NULL REFERENCES role (name), arn TEXT NOT NULL, PRIMARY KEY (role, arn)) WITHOUT ROWID;

CREATE TABLE log_group (name TEXT PRIMARY KEY, created INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE log_stream (
    log_group TEXT NOT NULL REFERENCES log_group (name) ON DELETE CASCADE, name TEXT NOT NULL, created INTEGER NOT NULL,
    PRIMARY KEY (log_group, name)) WITHOUT ROWID;
CREATE TABLE log_event (
    id INTEGER PRIMARY KEY AUTOINCREMENT, log_group TEXT NOT NULL, stream TEXT NOT NULL, time INTEGER NOT NULL,
    ingested INTEGER NOT NULL, message TEXT NOT NULL,
    FOREIGN KEY (log_group, stream) REFERENCES log_stream (log_group, name) ON DELETE CASCADE);
CREATE INDEX log_event_by_time ON log_event (log_group, time, id);
CREATE TABLE log_size (bytes INTEGER NOT NULL);
INSERT INTO log_size VALUES (0);
CREATE TRIGGER log_grows AFTER INSERT ON log_event BEGIN
    UPDATE log_size SET bytes = bytes + length(CAST(new.message AS BLOB)); END;
CREATE TRIGGER log_shrinks AFTER DELETE ON log_event BEGIN
    UPDATE log_size SET bytes = bytes - length(CAST(old.message AS BLOB)); END;

CREATE TABLE bucket (name TEXT PRIMARY KEY, created INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE object (
    bucket TEXT NOT NULL REFERENCES bucket (name), key TEXT NOT NULL, size INTEGER NOT NULL, etag TEXT NOT NULL,
    modified INTEGER NOT NULL, attributes TEXT NOT NULL, blobs TEXT NOT NULL, PRIMARY KEY (bucket, key)) WITHOUT ROWID;
CREATE TABLE upload (
    id TEXT PRIMARY KEY, bucket TEXT NOT NULL REFERENCES bucket (name), key TEXT NOT NULL, created INTEGER NOT NULL,
    attributes TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE part (
    upload TEXT NOT NULL REFERENCES upload (id) ON DELETE CASCADE, number INTEGER NOT NULL, size INTEGER NOT NULL,
    etag TEXT NOT NULL, modified INTEGER NOT NULL, checksums TEXT NOT NULL, blob TEXT NOT NULL,
    PRIMARY KEY (upload, number)) WITHOUT ROWID;
";

/// What version 2 has beyond version 1.
const SCHEMA_2: &str = "
CREATE TABLE phase_change (
    id INTEGER PRIMARY KEY, microvm TEXT NOT NULL, time INTEGER NOT NULL, phase TEXT NOT NULL, image TEXT NOT NULL,
    version TEXT NOT NULL, memory_mib INTEGER NOT NULL, requests INTEGER NOT NULL);
CREATE INDEX phase_change_by_microvm ON phase_change (microvm, id);
CREATE INDEX phase_change_by_time ON phase_change (time);
";

/// What version 3 has beyond version 2. Versions that were there before are known from then on, by what their
/// builds have counted.
const SCHEMA_3: &str = "
ALTER TABLE phase_change ADD COLUMN steps TEXT;
ALTER TABLE phase_change ADD COLUMN stored_bytes INTEGER;
CREATE TABLE processor_use (
    id INTEGER PRIMARY KEY, microvm TEXT NOT NULL, begin_ms INTEGER NOT NULL, end_ms INTEGER NOT NULL,
    counter_us INTEGER NOT NULL, used_us INTEGER NOT NULL, burst_us INTEGER NOT NULL);
CREATE INDEX processor_use_by_microvm ON processor_use (microvm, id);
CREATE INDEX processor_use_by_time ON processor_use (end_ms);
CREATE TABLE version_size (
    id INTEGER PRIMARY KEY, image TEXT NOT NULL, version TEXT NOT NULL, time INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO version_size (image, version, time, bytes)
    SELECT body ->> '$.id.image', (body ->> '$.id.number') || '.0', unixepoch() * 1000,
        coalesce(body ->> '$.builds[0].snapshot.memorySnapshotSizeInBytes', 0)
        + coalesce(body ->> '$.builds[0].snapshot.diskSnapshotSizeInBytes', 0)
        + coalesce(body ->> '$.builds[0].snapshot.codeInstallSizeInBytes', 0)
    FROM record WHERE kind = 'version' AND body ->> '$.state' IN ('SUCCESSFUL', 'DELETING', 'DELETE_FAILED');
";

/// The database of a daemon.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
    reserve: Reserve,
}

/// Why metadata cannot be read or written. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum StoreError {
    #[error("there is no room for the database {path:?}: its disk is full")]
    Full { path: PathBuf },
    #[error("cannot open the database {path:?}")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error(
        "the database {path:?} is of version {found}, and this program knows {SCHEMA_VERSION}: use a newer one"
    )]
    Version { path: PathBuf, found: i64 },
    #[error("cannot {attempt} in the database")]
    Use { attempt: &'static str, source: rusqlite::Error },
    #[error("cannot understand what the database has of {what}")]
    Damaged { what: String, source: serde_json::Error },
}

impl StoreError {
    /// Whether room on the disk is what is missing.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Use { source, .. } => lacks_room(source),
            _ => false,
        }
    }

    /// For `map_err`.
    pub fn at(attempt: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Use { attempt, source }
    }
}

/// Runs several steps that are one attempt.
pub fn attempt<T>(
    attempt: &'static str,
    steps: impl FnOnce() -> Result<T, rusqlite::Error>,
) -> Result<T, StoreError> {
    steps().map_err(StoreError::at(attempt))
}

impl Store {
    /// Opens the database, and makes it at the first time.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| match lacks_room(&source) {
            true => StoreError::Full { path: path.into() },
            false => StoreError::Open { path: path.into(), source },
        };
        let mut connection = Connection::open(path).map_err(failed)?;
        let prepare = |connection: &Connection| {
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            connection.query_row("PRAGMA user_version", [], |row| row.get(0))
        };
        keep_log(&connection).map_err(failed)?;
        let found: i64 = prepare(&connection).map_err(failed)?;
        match found {
            0 => migrate(&mut connection, &[SCHEMA, SCHEMA_2, SCHEMA_3]).map_err(failed)?,
            1 => migrate(&mut connection, &[SCHEMA_2, SCHEMA_3]).map_err(failed)?,
            2 => migrate(&mut connection, &[SCHEMA_3]).map_err(failed)?,
            SCHEMA_VERSION => {}
            _ => return Err(StoreError::Version { path: path.into(), found }),
        }
        let reserve = Reserve::beside(path);
        reserve.make();
        Ok(Self { connection: Mutex::new(connection), reserve })
    }

    /// Before a change that gives room back: on a full disk it may use what is reserved.
    pub fn make_way(&self) {
        self.reserve.give_up();
    }

    /// Reserves room again, if it was used and there is plenty.
    pub fn keep_reserve(&self) {
        self.reserve.make();
    }

    /// Reads, in a transaction: all of it is of one moment.
    pub fn read<T, E: From<StoreError>>(
        &self,
        action: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut connection = self.lock();
        let transaction = connection.transaction().map_err(StoreError::at("begin to read"))?;
        action(&transaction)
    }

    /// Changes things, all or none; they are on the disk when this returns.
    pub fn write<T, E: From<StoreError>>(
        &self,
        action: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut connection = self.lock();
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::at("begin to write"))?;
        let result = action(&transaction)?;
        transaction.commit().map_err(StoreError::at("commit a change"))?;
        Ok(result)
    }

    /// A panic of another thread has rolled its transaction back: the connection is as good as before.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lacks_room(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error();
    // The second is what it says of the index of the log, which lies beside it.
    code.is_some_and(|code| {
        code.code == ErrorCode::DiskFull || code.extended_code == ffi::SQLITE_IOERR_SHMSIZE
    })
}

/// The log (WAL) stays as long as it is at the end. What the next daemon needs to begin it finds there, also on a
/// disk that is full by then.
fn keep_log(connection: &Connection) -> Result<(), rusqlite::Error> {
    let mut keep: std::ffi::c_int = 1;
    // SAFETY: the connection is open, the name ends with a zero, and this operation takes a pointer to an int.
    let code = unsafe {
        let operation = ffi::SQLITE_FCNTL_PERSIST_WAL;
        let argument = (&raw mut keep).cast();
        ffi::sqlite3_file_control(connection.handle(), c"main".as_ptr(), operation, argument)
    };
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// Makes the tables that are missing, all or none.
fn migrate(connection: &mut Connection, missing: &[&str]) -> Result<(), rusqlite::Error> {
    let transaction = connection.transaction()?;
    missing.iter().try_for_each(|tables| transaction.execute_batch(tables))?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(store: &Store) -> Vec<String> {
        let names: Result<Vec<String>, StoreError> = store.read(|transaction| {
            attempt("list", || {
                let mut statement = transaction.prepare("SELECT name FROM bucket ORDER BY name")?;
                statement.query_map([], |row| row.get(0))?.collect()
            })
        });
        names.unwrap()
    }

    fn add(store: &Store, name: &str) -> Result<(), StoreError> {
        store.write(|transaction| {
            let added = transaction.execute("INSERT INTO bucket VALUES (?1, 0)", [name]);
            added.map(|_| ()).map_err(StoreError::at("add"))
        })
    }

    #[test]
    fn what_was_written_is_there_when_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        add(&Store::open(&path).unwrap(), "a").unwrap();
        assert_eq!(names(&Store::open(&path).unwrap()), ["a"]);
    }

    #[test]
    fn what_fails_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("x.db")).unwrap();
        add(&store, "a").unwrap();
        let result: Result<(), StoreError> = store.write(|transaction| {
            let add = |name| transaction.execute("INSERT INTO bucket VALUES (?1, 0)", [name]);
            add("b").map_err(StoreError::at("add"))?;
            add("a").map(|_| ()).map_err(StoreError::at("add"))
        });
        result.unwrap_err();
        assert_eq!(names(&store), ["a"]);
    }

    #[test]
    fn a_full_disk_is_told_apart_and_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        let store = Store::open(&path).unwrap();
        add(&store, "before").unwrap();
        let pages: i64 = store
            .read(|transaction| {
                transaction
                    .query_row("PRAGMA page_count", [], |row| row.get(0))
                    .map_err(StoreError::at("count"))
            })
            .unwrap();
        store.lock().pragma_update(None, "max_page_count", pages).unwrap();
        let mut added = 0;
        let error = loop {
            match add(&store, &format!("{added:04}{}", "x".repeat(1000))) {
                Ok(()) => added += 1,
                Err(error) => break error,
            }
            assert!(added < 1000, "there is always room");
        };
        assert!(error.is_full(), "{error:?}");
        drop(store);
        assert_eq!(names(&Store::open(&path).unwrap()).len(), added + 1);
    }

    #[test]
    fn a_newer_database_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        let newer = SCHEMA_VERSION + 1;
        Connection::open(&path).unwrap().pragma_update(None, "user_version", newer).unwrap();
        assert!(
            matches!(Store::open(&path), Err(StoreError::Version { found, .. }) if found == newer)
        );
    }

    #[test]
    fn a_database_of_an_older_version_gets_what_it_lacks() {
        let all = [SCHEMA, SCHEMA_2, SCHEMA_3];
        for version in 1..all.len() {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("x.db");
            let older = Connection::open(&path).unwrap();
            older.execute_batch(&all[..version].concat()).unwrap();
            older.execute("INSERT INTO bucket VALUES ('a', 0)", []).unwrap();
            older.pragma_update(None, "user_version", version).unwrap();
            drop(older);
            // Again it is as new.
            for _ in 0..2 {
                let store = Store::open(&path).unwrap();
                assert_eq!(names(&store), ["a"]);
                for table in ["phase_change", "processor_use", "version_size"] {
                    let sql = format!("SELECT count(*) FROM {table}");
                    assert_eq!(store.lock().query_row(&sql, [], |row| row.get(0)), Ok(0));
                }
            }
        }
    }

    #[test]
    fn what_was_there_before_it_was_noted_is_noted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        let older = Connection::open(&path).unwrap();
        older.execute_batch(&[SCHEMA, SCHEMA_2].concat()).unwrap();
        let rows = [
            r#"INSERT INTO record VALUES ('version', 'app:2', '{"id": {"image": "app", "number": 2}, "state": "SUCCESSFUL",
                "builds": [{"snapshot": {"memorySnapshotSizeInBytes": 100, "codeInstallSizeInBytes": 20,
                "diskSnapshotSizeInBytes": 3}}]}')"#,
            r#"INSERT INTO record VALUES ('version', 'app:1', '{"id": {"image": "app", "number": 1}, "state": "FAILED",
                "builds": [{"snapshot": null}]}')"#,
            "INSERT INTO phase_change (microvm, time, phase, image, version, memory_mib, requests)
                VALUES ('m', 5, 'Running', 'app', '2.0', 512, 7)",
        ];
        rows.iter().for_each(|row| assert_eq!(older.execute(row, []), Ok(1)));
        older.pragma_update(None, "user_version", 2).unwrap();
        drop(older);
        let store = Store::open(&path).unwrap();
        let sizes = store.lock().query_row(
            "SELECT image, version, bytes, time > 1700000000000, count(*) FROM version_size",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)),
        );
        assert_eq!(sizes, Ok(("app".to_owned(), "2.0".to_owned(), 123, true, 1)));
        let noted = store.lock().query_row(
            "SELECT requests, steps, stored_bytes FROM phase_change",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        );
        assert_eq!(noted, Ok((7, None::<String>, None::<i64>)));
    }
}
