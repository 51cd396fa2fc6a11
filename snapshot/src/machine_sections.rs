//! Handing out the states of the machine's parts, so that none is forgotten.

use crate::manifest::MachineSection;
use crate::name::Name;
use crate::section::{LoadError, Section, Tag};

/// The states of the machine's parts that have not been taken yet.
pub struct MachineSections<'a> {
    left: Vec<&'a MachineSection>,
}

/// Why the state of a part cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MachineSectionError {
    /// The snapshot does not have it, or it was taken before.
    #[error("the snapshot has no section {tag} of {name}")]
    Absent {
        /// Which instance.
        name: Name,
        /// Kind and version that were looked for.
        tag: Tag,
    },
    /// It is there in a version that this program does not read.
    #[error("the snapshot has section {found} of {name}, and this program reads {expected}")]
    Version {
        /// Which instance.
        name: Name,
        /// What is there.
        found: Tag,
        /// What was looked for.
        expected: Tag,
    },
    /// The part refuses it.
    #[error("load the state of {name}")]
    Load {
        /// Which instance.
        name: Name,
        /// The cause.
        #[source]
        source: LoadError,
    },
    /// Nobody took it.
    #[error("section {tag} of {name} belongs to nothing that this machine has")]
    LeftOver {
        /// Which instance.
        name: Name,
        /// Kind and version.
        tag: Tag,
    },
}

impl<'a> MachineSections<'a> {
    pub(crate) fn new(sections: &'a [MachineSection]) -> Self {
        Self { left: sections.iter().collect() }
    }

    /// Takes the state of a part, still encoded.
    ///
    /// # Errors
    /// It is absent, or of another version.
    pub fn take(&mut self, name: &Name, tag: Tag) -> Result<&'a [u8], MachineSectionError> {
        let place = self
            .left
            .iter()
            .position(|section| section.name == *name && section.tag.kind == tag.kind);
        let place = place.ok_or_else(|| MachineSectionError::Absent { name: name.clone(), tag })?;
        let section = self.left.swap_remove(place);
        if section.tag != tag {
            let (found, expected) = (section.tag, tag);
            return Err(MachineSectionError::Version { name: name.clone(), found, expected });
        }
        Ok(&section.bytes)
    }

    /// Lets a part take on its state.
    ///
    /// # Errors
    /// See [`MachineSectionError`].
    pub fn load(&mut self, name: &Name, part: &mut dyn Section) -> Result<(), MachineSectionError> {
        let bytes = self.take(name, part.tag())?;
        part.load_section(bytes)
            .map_err(|source| MachineSectionError::Load { name: name.clone(), source })
    }

    /// Whether every state has been taken.
    ///
    /// # Errors
    /// [`MachineSectionError::LeftOver`] names one that has not.
    pub fn finish(self) -> Result<(), MachineSectionError> {
        match self.left.first() {
            None => Ok(()),
            Some(section) => {
                let (name, tag) = (section.name.clone(), section.tag);
                Err(MachineSectionError::LeftOver { name, tag })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_nobody_takes_is_refused_by_name() {
        let name = Name::new("rootfs").unwrap();
        let tag = Tag { kind: *b"VBLK", version: 1 };
        let saved = [MachineSection { name: name.clone(), tag, bytes: vec![1, 2] }];
        let mut sections = MachineSections::new(&saved);
        assert_eq!(sections.take(&name, tag).unwrap(), [1, 2]);
        assert!(matches!(sections.take(&name, tag), Err(MachineSectionError::Absent { .. })));
        sections.finish().unwrap();
        assert_eq!(
            MachineSections::new(&saved).finish().unwrap_err().to_string(),
            "section VBLK v1 of rootfs belongs to nothing that this machine has"
        );
        let newer = Tag { version: 2, ..tag };
        assert_eq!(
            MachineSections::new(&saved).take(&name, newer).unwrap_err().to_string(),
            "the snapshot has section VBLK v1 of rootfs, and this program reads VBLK v2"
        );
    }
}
