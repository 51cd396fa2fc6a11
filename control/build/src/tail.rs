//! The end of an output that may have none.

use std::collections::VecDeque;

/// What is kept, in bytes.
const TAIL_BYTES: usize = 4 * 1024;

/// The last bytes of what was pushed.
#[derive(Debug, Default)]
pub(crate) struct Tail(VecDeque<u8>);

impl Tail {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let bytes = bytes.get(bytes.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default();
        let surplus = (self.0.len() + bytes.len()).saturating_sub(TAIL_BYTES);
        self.0.drain(..surplus);
        self.0.extend(bytes);
    }

    pub(crate) fn text(&self) -> String {
        let (first, second) = self.0.as_slices();
        String::from_utf8_lossy(&[first, second].concat()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_kept() {
        let mut tail = Tail::default();
        for piece in ["x".repeat(TAIL_BYTES * 2), "y".repeat(10), "z".repeat(TAIL_BYTES - 5)] {
            tail.push(piece.as_bytes());
            assert!(tail.0.len() <= TAIL_BYTES);
        }
        assert_eq!(tail.text(), format!("{}{}", "y".repeat(5), "z".repeat(TAIL_BYTES - 5)));
    }
}
