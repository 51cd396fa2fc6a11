//! What a plan may come to: a small Dockerfile can ask for an endless one.

use crate::limits::PLAN_MAX_BYTES;
use std::cell::Cell;

/// What is left.
pub struct Budget(Cell<usize>);

impl Default for Budget {
    fn default() -> Self {
        Self(Cell::new(PLAN_MAX_BYTES))
    }
}

impl Budget {
    /// Takes so much of it.
    ///
    /// # Errors
    /// There is not so much left, for people.
    pub fn charge(&self, bytes: usize) -> Result<(), String> {
        let left = self.0.get().checked_sub(bytes).ok_or_else(|| {
            format!("what the instructions stand for has more than {PLAN_MAX_BYTES} bytes")
        })?;
        self.0.set(left);
        Ok(())
    }
}
