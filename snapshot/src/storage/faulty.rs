//! Storage of which any single effect can be made to fail. For tests.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Storage, StorageFile};

/// How an effect fails. Of bytes to be written, the first half is written then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The device is full; what comes later works.
    NoSpace,
    /// The process dies: nothing that comes later happens.
    Death,
}

/// Storage of which one effect fails.
#[derive(Clone)]
pub struct FaultyStorage {
    inner: Arc<dyn Storage>,
    plan: Arc<Mutex<Plan>>,
}

/// What is to fail, and how far it is.
struct Plan {
    failure: Failure,
    at: usize,
    effects: usize,
}

struct FaultyFile {
    inner: Box<dyn StorageFile>,
    plan: Arc<Mutex<Plan>>,
}

impl FaultyStorage {
    /// Lets the effect with this number fail; they are counted from 0.
    pub fn new(inner: Arc<dyn Storage>, failure: Failure, at: usize) -> Self {
        Self { inner, plan: Arc::new(Mutex::new(Plan { failure, at, effects: 0 })) }
    }

    /// How many effects there have been.
    pub fn effect_count(&self) -> usize {
        lock(&self.plan).effects
    }
}

impl Plan {
    /// Counts an effect; the error is its failure.
    fn count(&mut self) -> io::Result<()> {
        let number = self.effects;
        self.effects = number.saturating_add(1);
        match self.failure {
            Failure::NoSpace if number == self.at => Err(io::ErrorKind::StorageFull.into()),
            Failure::Death if number >= self.at => Err(io::Error::other("the process is dead")),
            _ => Ok(()),
        }
    }
}

impl Storage for FaultyStorage {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        lock(&self.plan).count()?;
        let inner = self.inner.create(path)?;
        Ok(Box::new(FaultyFile { inner, plan: Arc::clone(&self.plan) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        lock(&self.plan).count()?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        lock(&self.plan).count()?;
        self.inner.remove(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        lock(&self.plan).count()?;
        self.inner.sync_directory(path)
    }
}

impl StorageFile for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut plan = lock(&self.plan);
        if let Err(failure) = plan.count() {
            // Not for every write of a dead process, only for the one in which it died.
            if plan.effects.checked_sub(1) == Some(plan.at) {
                let (half, _) = bytes.split_at(bytes.len() / 2);
                self.inner.append(half)?;
            }
            return Err(failure);
        }
        self.inner.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        lock(&self.plan).count()?;
        self.inner.sync()
    }
}

fn lock(plan: &Mutex<Plan>) -> MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}
