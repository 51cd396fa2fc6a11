//! What the kernel's command line says to the agent.
//!
//! | word | meaning |
//! |---|---|
//! | `rotifer.root=/dev/vda` | the root disk; `none` stays in the initramfs; without it a `root=/dev/...` counts |
//! | `rotifer.rootfstype=ext4` | its file system; without it each of the kernel's is tried |
//! | `rotifer.rootflags=noatime` | mount options of that file system, separated by commas |
//! | `ro`, `rw` | how the root is mounted; without either, read-write if the disk allows it |
//! | `rotifer.app=/path` | where the app is described, in place of `/etc/rotifer/app.json`; `none` starts none |
//! | `rotifer.hostname=name` | the host name, in place of `/etc/hostname` |
//! | `rotifer.shell` | a shell on the console; no app is started unless `rotifer.app=` names it |
//!
//! Words that are not the agent's belong to the kernel and others, and are skipped; an unknown
//! `rotifer.` word is refused, because a misspelt option that is ignored costs somebody an hour.

/// How the root disk is to be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RootAccess {
    /// Read-write; read-only if the disk is.
    #[default]
    AsDiskAllows,
    /// Read-only.
    ReadOnly,
    /// Read-write or not at all.
    ReadWrite,
}

/// The agent's options.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// The root disk's device, if there is to be one.
    pub root: Option<String>,
    /// The root disk's file system.
    pub root_file_system: Option<String>,
    /// Mount options of the file system.
    pub root_flags: Option<String>,
    /// Read-only or read-write.
    pub root_access: RootAccess,
    /// Where the app is described, if that is not the usual place.
    pub app: Option<String>,
    /// The host name.
    pub hostname: Option<String>,
    /// A shell on the console, in place of an app that is not named by [`Self::app`].
    pub shell: bool,
}

/// Why a command line is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// There is no such option.
    #[error("kernel command line: option {option} does not exist")]
    Unknown {
        /// The word as written.
        option: String,
    },
    /// An option that needs a value has none.
    #[error("kernel command line: option {option} needs a value")]
    NoValue {
        /// The option's name.
        option: String,
    },
}

impl Options {
    /// Reads the options out of a command line.
    ///
    /// # Errors
    /// A `rotifer.` option that does not exist or lacks its value.
    pub fn parse(line: &str) -> Result<Self, CmdlineError> {
        let mut options = Options::default();
        let mut kernel_root = None;
        for word in words(line) {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            match name {
                "ro" if value.is_none() => options.root_access = RootAccess::ReadOnly,
                "rw" if value.is_none() => options.root_access = RootAccess::ReadWrite,
                "root" => kernel_root = value.filter(|device| device.starts_with("/dev/")),
                _ => options.take(name, value)?,
            }
        }
        options.root = match options.root.take() {
            Some(root) if root == "none" => None,
            Some(root) => Some(root),
            None => kernel_root,
        };
        Ok(options)
    }

    fn take(&mut self, name: &str, value: Option<String>) -> Result<(), CmdlineError> {
        let Some(option) = name.strip_prefix("rotifer.") else { return Ok(()) };
        let field = match option {
            "shell" => {
                self.shell = value.as_deref() != Some("0");
                return Ok(());
            }
            "root" => &mut self.root,
            "rootfstype" => &mut self.root_file_system,
            "rootflags" => &mut self.root_flags,
            "app" => &mut self.app,
            "hostname" => &mut self.hostname,
            _ => return Err(CmdlineError::Unknown { option: name.to_owned() }),
        };
        match value {
            Some(value) if !value.is_empty() => *field = Some(value),
            _ => return Err(CmdlineError::NoValue { option: name.to_owned() }),
        }
        Ok(())
    }
}

/// The words of a line; double quotes keep spaces, as the kernel does it.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for character in line.chars() {
        match character {
            '"' => quoted = !quoted,
            c if c.is_ascii_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_line_is_understood() {
        let line = "console=ttyS0 quiet rotifer.root=/dev/vda rotifer.rootfstype=ext4 ro \
                    rotifer.rootflags=noload,noatime rotifer.app=/app.json rotifer.hostname=snail \
                    rotifer.shell panic=-1\n";
        let options = Options::parse(line).unwrap();
        assert_eq!(
            options,
            Options {
                root: Some("/dev/vda".into()),
                root_file_system: Some("ext4".into()),
                root_flags: Some("noload,noatime".into()),
                root_access: RootAccess::ReadOnly,
                app: Some("/app.json".into()),
                hostname: Some("snail".into()),
                shell: true,
            }
        );
    }

    #[test]
    fn nothing_asked_is_nothing_done() {
        assert_eq!(Options::parse("").unwrap(), Options::default());
    }

    #[test]
    fn the_kernels_root_counts_unless_ours_is_given() {
        assert_eq!(Options::parse("root=/dev/vda").unwrap().root.as_deref(), Some("/dev/vda"));
        assert_eq!(Options::parse("root=PARTUUID=1").unwrap().root, None);
        assert_eq!(Options::parse("root=/dev/vda rotifer.root=none").unwrap().root, None);
    }

    #[test]
    fn quotes_keep_spaces() {
        let options = Options::parse("rotifer.app=\"/my app.json\" rw").unwrap();
        assert_eq!(options.app.as_deref(), Some("/my app.json"));
        assert_eq!(options.root_access, RootAccess::ReadWrite);
    }

    #[test]
    fn a_misspelt_option_is_refused_by_name() {
        let error = Options::parse("rotifer.rot=/dev/vda").unwrap_err();
        assert_eq!(error, CmdlineError::Unknown { option: "rotifer.rot".into() });
    }

    #[test]
    fn an_option_without_its_value_is_refused() {
        let error = Options::parse("rotifer.root=").unwrap_err();
        assert_eq!(error, CmdlineError::NoValue { option: "rotifer.root".into() });
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in ".{0,200}") {
            let _ = Options::parse(&line);
        }
    }
}
