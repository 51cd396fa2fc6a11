//! Sections: the pieces of machine state, each with its own kind and version.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Names a section: what kind of state it holds and which version of that kind.
///
/// A released version is never edited; a change of layout is a new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag {
    /// Four ASCII letters, unique in the machine, such as `*b"VBLK"`.
    pub kind: [u8; 4],
    /// Counted from 1.
    pub version: u16,
}

impl std::fmt::Display for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} v{}", self.kind.escape_ascii(), self.version)
    }
}

/// What must survive a suspend. No default methods: the compiler asks every device.
pub trait Stateful {
    /// Kind and version of [`Self::State`].
    const TAG: Tag;
    /// Guest-visible facts only: no path, file descriptor or name of the host is ever in here.
    type State: Serialize + DeserializeOwned;
    /// The state as of now. Called while nothing runs, after `drain`.
    fn save(&self) -> Self::State;
    /// Takes on a saved state. The state may come from a hostile file: every number is checked
    /// before anything changes.
    ///
    /// # Errors
    /// [`LoadError::Invalid`] names the number that cannot be right.
    fn load(&mut self, state: Self::State) -> Result<(), LoadError>;
}

/// Why a section cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The bytes are not an encoded state of this kind and version.
    #[error("decode section {tag}")]
    Decode {
        /// The section.
        tag: Tag,
        /// What the decoder says.
        #[source]
        source: postcard::Error,
    },
    /// Bytes are left over after the state.
    #[error("section {tag} has {count} bytes too many")]
    LeftOver {
        /// The section.
        tag: Tag,
        /// How many bytes nobody consumed.
        count: usize,
    },
    /// A value that no saved machine can have.
    #[error("section {tag}: {field} = {value} is not possible here: {reason}")]
    Invalid {
        /// The section.
        tag: Tag,
        /// The field of the state.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Which rule it breaks.
        reason: &'static str,
    },
}

/// [`Stateful`] behind a pointer: what the machine's table of devices works with.
pub trait Section {
    /// Kind and version.
    fn tag(&self) -> Tag;
    /// The state, encoded.
    fn save_section(&self) -> Vec<u8>;
    /// Decodes and takes on a state.
    ///
    /// # Errors
    /// See [`LoadError`].
    fn load_section(&mut self, bytes: &[u8]) -> Result<(), LoadError>;
}

impl<T: Stateful> Section for T {
    fn tag(&self) -> Tag {
        T::TAG
    }

    fn save_section(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.save()).expect("encoding into memory meets no I/O that can fail")
    }

    fn load_section(&mut self, bytes: &[u8]) -> Result<(), LoadError> {
        let (state, rest) = postcard::take_from_bytes::<T::State>(bytes)
            .map_err(|source| LoadError::Decode { tag: T::TAG, source })?;
        if !rest.is_empty() {
            return Err(LoadError::LeftOver { tag: T::TAG, count: rest.len() });
        }
        self.load(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counter(u32);

    impl Stateful for Counter {
        const TAG: Tag = Tag { kind: *b"TEST", version: 1 };
        type State = u32;

        fn save(&self) -> u32 {
            self.0
        }

        fn load(&mut self, state: u32) -> Result<(), LoadError> {
            if state > 1000 {
                return Err(LoadError::Invalid {
                    tag: Self::TAG,
                    field: "count",
                    value: state.into(),
                    reason: "at most 1000",
                });
            }
            self.0 = state;
            Ok(())
        }
    }

    #[test]
    fn a_saved_section_loads_into_an_equal_one() {
        let mut copy = Counter(0);
        copy.load_section(&Counter(700).save_section()).unwrap();
        assert_eq!(copy.0, 700);
    }

    #[test]
    fn left_over_bytes_are_refused_by_tag_and_count() {
        let mut bytes = Counter(7).save_section();
        bytes.extend_from_slice(&[1, 2, 3]);
        let mut copy = Counter(1);
        let error = copy.load_section(&bytes).unwrap_err();
        assert_eq!(error.to_string(), "section TEST v1 has 3 bytes too many");
        assert_eq!(copy.0, 1, "a refused section changes nothing");
    }

    #[test]
    fn a_cut_section_and_an_impossible_value_are_refused() {
        let mut copy = Counter(1);
        assert!(matches!(copy.load_section(&[]), Err(LoadError::Decode { .. })));
        let error = copy.load_section(&Counter(1001).save_section()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "section TEST v1: count = 1001 is not possible here: at most 1000"
        );
    }
}
