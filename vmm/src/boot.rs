//! What is known about a boot before there is a machine: that the kernel is one, and that
//! everything fits.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use crate::arch::aarch64::image::{Image, ImageError};
use crate::arch::aarch64::layout::{self, DoesNotFit, Placement};
use crate::config;

/// Why a boot is refused, or fails half-way.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Not a kernel that boots here.
    #[error("boot kernel {}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ImageError,
    },
    /// Too little RAM.
    #[error("boot kernel {}", path.display())]
    DoesNotFit {
        /// The kernel's file.
        path: PathBuf,
        /// The sizes.
        #[source]
        source: DoesNotFit,
    },
    /// The initial RAM file system cannot be read.
    #[error("read initial RAM file system {}", path.display())]
    Initrd {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A boot that can succeed.
#[derive(Debug)]
pub struct Boot {
    /// The kernel's file, for messages, and the file.
    pub kernel: (PathBuf, File),
    /// The same of the initial RAM file system, with its size.
    pub initrd: Option<Initrd>,
    /// For the kernel.
    pub command_line: String,
    /// Where everything goes.
    pub placement: Placement,
}

/// An initial RAM file system.
#[derive(Debug)]
pub struct Initrd {
    /// For messages.
    pub path: PathBuf,
    /// Open for reading.
    pub file: File,
    /// Its size.
    pub bytes: u64,
}

impl Boot {
    /// Looks at the files of `boot` and finds places for them in `ram_bytes` of RAM.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn prepare(boot: config::Boot, ram_bytes: u64) -> Result<Self, BootError> {
        let config::Boot { kernel_path, kernel, initrd, command_line } = boot;
        let image = Image::inspect(&kernel)
            .map_err(|source| BootError::Kernel { path: kernel_path.clone(), source })?;
        let initrd = initrd
            .map(|(path, file)| match file.metadata() {
                Ok(metadata) => Ok(Initrd { path, file, bytes: metadata.len() }),
                Err(source) => Err(BootError::Initrd { path, source }),
            })
            .transpose()?;
        let initrd_bytes = initrd.as_ref().map(|initrd| initrd.bytes);
        let placement = layout::place(ram_bytes, image.needed_bytes(), initrd_bytes)
            .map_err(|source| BootError::DoesNotFit { path: kernel_path.clone(), source })?;
        Ok(Self { kernel: (kernel_path, kernel), initrd, command_line, placement })
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::io::Write;

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn kernel() -> Vec<u8> {
        let mut image = vec![0; 0x8000];
        image[16..24].copy_from_slice(&0x1_0000_u64.to_le_bytes());
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    fn boot(kernel: &[u8], initrd: Option<&[u8]>) -> config::Boot {
        config::Boot {
            kernel_path: "/images/vmlinux".into(),
            kernel: file(kernel),
            initrd: initrd.map(|content| ("/images/initrd".into(), file(content))),
            command_line: "quiet".into(),
        }
    }

    #[test]
    fn a_good_kernel_and_initrd_get_their_places() {
        let boot = Boot::prepare(boot(&kernel(), Some(&[7; 5000])), 128 << 20).unwrap();
        assert_eq!(boot.placement.kernel.0, 0x8020_0000);
        assert_eq!(boot.initrd.map(|initrd| initrd.bytes), Some(5000));
        assert!(boot.placement.initrd.is_some());
    }

    #[test]
    fn refusals_name_the_file_and_the_reason() {
        let truncated = Boot::prepare(boot(&kernel()[..0x100], None), 128 << 20).unwrap_err();
        assert_eq!(truncated.to_string(), "boot kernel /images/vmlinux");
        assert!(truncated.source().unwrap().to_string().starts_with("it is truncated: 256 bytes"));
        let crowded = Boot::prepare(boot(&kernel(), Some(&[7; 5000])), 4 << 20).unwrap_err();
        assert!(crowded.source().unwrap().to_string().contains("more than the machine's 4194304"));
    }
}
