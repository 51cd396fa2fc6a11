//! What is kept of the fleet, read back: all of it at the start, and single records for workers.

use rusqlite::{OptionalExtension, params};
use serde::de::DeserializeOwned;

use crate::fleet::Change;
use crate::fleet::records::{Connector, Microvm, Version, VersionId};
use crate::store::{Store, StoreError, attempt};

/// A microVM.
pub fn microvm(store: &Store, id: &str) -> Result<Microvm, StoreError> {
    one(store, "microvm", id)
}

/// A network connector.
pub fn connector(store: &Store, id: &str) -> Result<Connector, StoreError> {
    one(store, "connector", id)
}

/// A version of an image.
pub fn version(store: &Store, id: &VersionId) -> Result<Version, StoreError> {
    one(store, "version", &super::version_key(id))
}

fn one<T: DeserializeOwned>(store: &Store, kind: &str, id: &str) -> Result<T, StoreError> {
    let body: Option<String> = store.read(|transaction| {
        attempt("look a record up", || {
            let sql = "SELECT body FROM record WHERE kind = ?1 AND id = ?2";
            transaction.query_row(sql, params![kind, id], |row| row.get(0)).optional()
        })
    })?;
    match body {
        Some(body) => parse(kind, id, &body),
        None => Err(damaged(kind, id, serde::de::Error::custom("there is no such record"))),
    }
}

/// Everything that was kept, as the changes that make it.
pub fn all(store: &Store) -> Result<Vec<Change>, StoreError> {
    let rows: Vec<(String, String, String)> = store.read(|transaction| {
        attempt("read the fleet", || {
            let mut statement = transaction.prepare("SELECT kind, id, body FROM record")?;
            let rows =
                statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.collect()
        })
    })?;
    rows.into_iter().map(|(kind, id, body)| change_of(&kind, &id, &body)).collect()
}

fn change_of(kind: &str, id: &str, body: &str) -> Result<Change, StoreError> {
    Ok(match kind {
        "image" => Change::PutImage(parse(kind, id, body)?),
        "version" => Change::PutVersion(parse(kind, id, body)?),
        "microvm" => Change::PutMicrovm(parse(kind, id, body)?),
        "connector" => Change::PutConnector(parse(kind, id, body)?),
        "token" => Change::PutToken(parse(kind, id, body)?),
        other => {
            let source = serde::de::Error::custom("this program does not know the kind");
            return Err(damaged(other, id, source));
        }
    })
}

fn parse<T: DeserializeOwned>(kind: &str, id: &str, body: &str) -> Result<T, StoreError> {
    serde_json::from_str(body).map_err(|source| damaged(kind, id, source))
}

fn damaged(kind: &str, id: &str, source: serde_json::Error) -> StoreError {
    StoreError::Damaged { what: format!("{kind} {id}"), source }
}
