//! The header of an ARM64 kernel image (Documentation/arch/arm64/booting.rst, section 4), and what
//! can be told from it before a machine exists.
//!
//! `linux-loader` puts the image into RAM; this is about refusing, by name and reason, what would
//! not boot.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// "ARM\x64", little-endian, at offset 56.
const MAGIC: [u8; 4] = *b"ARM\x64";
/// Of the header.
const HEADER_BYTES: usize = 64;
/// The PE/COFF header of a kernel that is an EFI application too lies within this.
const HEAD_BYTES_MAX: usize = 0x1000;
/// What an image with `image_size` 0 (before Linux 3.17) is loaded at.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// The largest share of a kernel's memory that is not in its file: zero-initialised data and the
/// first page tables. Defconfig kernels have about a fourteenth, minimal ones a tenth.
const UNSTORED_SHARE_MAX: u64 = 2;

/// Why a file is no kernel that this machine can boot.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Reading failed.
    #[error("read the header")]
    Read(#[source] io::Error),
    /// Not even a header.
    #[error("it has only {file_bytes} bytes, less than the header of an ARM64 kernel image")]
    NoHeader {
        /// Size of the file.
        file_bytes: u64,
    },
    /// Something else, which we know.
    #[error("it is {what}, not an ARM64 kernel image; {remedy}")]
    Other {
        /// What the file is.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Something else.
    #[error("it is not an ARM64 kernel image (arch/arm64/boot/Image): the magic number is missing")]
    NoMagic,
    /// Big-endian kernels are refused.
    #[error("it is a big-endian kernel; build a little-endian one")]
    BigEndian,
    /// The header's sizes cannot be right.
    #[error("its header is damaged: it asks for {image_bytes} bytes at offset {text_offset}")]
    Damaged {
        /// Size in memory, as the header says.
        image_bytes: u64,
        /// Offset from the 2 MiB boundary, as the header says.
        text_offset: u64,
    },
    /// Part of the file is missing.
    #[error(
        "it is truncated: {file_bytes} bytes, where its headers promise at least {needed_bytes}"
    )]
    Truncated {
        /// Size of the file.
        file_bytes: u64,
        /// What should be there.
        needed_bytes: u64,
    },
}

/// What the machine must know about a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// Where it is loaded, from a 2 MiB boundary.
    pub text_offset: u64,
    /// What it occupies from there on when it runs: more than the file.
    pub memory_bytes: u64,
}

impl Image {
    /// Reads the header of `file`.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn inspect(file: &File) -> Result<Self, ImageError> {
        let file_bytes = file.metadata().map_err(ImageError::Read)?.len();
        let mut head = [0; HEAD_BYTES_MAX];
        let count = read_up_to(file, &mut head).map_err(ImageError::Read)?;
        Self::parse(&head[..count], file_bytes)
    }

    /// From the first bytes of a file of `file_bytes`.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn parse(head: &[u8], file_bytes: u64) -> Result<Self, ImageError> {
        if let Some(error) = known_other(head) {
            return Err(error);
        }
        if head.len() < HEADER_BYTES {
            return Err(ImageError::NoHeader { file_bytes });
        }
        if head[56..60] != MAGIC {
            return Err(ImageError::NoMagic);
        }
        let (text_offset, image_bytes, flags) =
            (u64_at(head, 8), u64_at(head, 16), u64_at(head, 24));
        if flags & 1 != 0 {
            return Err(ImageError::BigEndian);
        }
        let image = match image_bytes {
            0 => Self { text_offset: OLD_TEXT_OFFSET, memory_bytes: file_bytes },
            _ => Self { text_offset, memory_bytes: image_bytes.max(file_bytes) },
        };
        // A 2 MiB boundary can be found for any sum that does not wrap; larger ones are damage.
        if image.text_offset.checked_add(image.memory_bytes).is_none() {
            return Err(ImageError::Damaged { image_bytes, text_offset });
        }
        let needed_bytes = stored_bytes(head).unwrap_or(0).max(image_bytes / UNSTORED_SHARE_MAX);
        if file_bytes < needed_bytes {
            return Err(ImageError::Truncated { file_bytes, needed_bytes });
        }
        Ok(image)
    }

    /// What it needs from a 2 MiB boundary on.
    pub fn needed_bytes(&self) -> u64 {
        self.text_offset.saturating_add(self.memory_bytes)
    }
}

/// Formats that people take for a kernel image.
fn known_other(head: &[u8]) -> Option<ImageError> {
    let (what, remedy) = match head {
        [0x1f, 0x8b, ..] => ("gzip-compressed", "decompress it with gunzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd-compressed", "decompress it with zstd -d"),
        [0x7f, b'E', b'L', b'F', ..] => ("an ELF file", "use arch/arm64/boot/Image, not vmlinux"),
        [b'M', b'Z', _, _, b'z', b'i', b'm', b'g', ..] => {
            ("a compressed EFI image", "use arch/arm64/boot/Image, not vmlinuz.efi")
        }
        [0x27, 0x05, 0x19, 0x56, ..] => ("a U-Boot image", "use arch/arm64/boot/Image"),
        _ => return None,
    };
    Some(ImageError::Other { what, remedy })
}

/// How many bytes the sections of the PE/COFF header, if there is one, say that the file has.
/// (Microsoft PE format, sections "COFF File Header" and "Section Table".)
fn stored_bytes(head: &[u8]) -> Option<u64> {
    const COFF_BYTES: usize = 24;
    const SECTION_BYTES: usize = 40;
    let pe = usize::try_from(u32_at(head, 60)?).ok()?;
    let header = head.get(pe..pe.checked_add(COFF_BYTES)?)?;
    if header[..4] != *b"PE\0\0" {
        return None;
    }
    let section_count = usize::from(u16::from_le_bytes([header[6], header[7]]));
    let optional_bytes = usize::from(u16::from_le_bytes([header[20], header[21]]));
    let table = head.get(pe + COFF_BYTES + optional_bytes..)?;
    table
        .chunks_exact(SECTION_BYTES)
        .take(section_count)
        .filter_map(|section| {
            let (size, start) = (u32_at(section, 16)?, u32_at(section, 20)?);
            Some(u64::from(size) + u64::from(start))
        })
        .max()
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

fn u64_at(header: &[u8], offset: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&header[offset..offset + 8]);
    u64::from_le_bytes(field)
}

fn read_up_to(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header as the kernel's head.S writes it.
    fn header(text_offset: u64, image_bytes: u64, flags: u64) -> Vec<u8> {
        let mut head = vec![0; HEADER_BYTES];
        head[8..16].copy_from_slice(&text_offset.to_le_bytes());
        head[16..24].copy_from_slice(&image_bytes.to_le_bytes());
        head[24..32].copy_from_slice(&flags.to_le_bytes());
        head[56..60].copy_from_slice(&MAGIC);
        head
    }

    /// The same with a PE header of one section that ends at `end` in the file.
    fn efi_header(end: u32) -> Vec<u8> {
        let mut head = header(0, 0x10_0000, 0xa);
        head[..2].copy_from_slice(b"MZ");
        head[60..64].copy_from_slice(&64_u32.to_le_bytes());
        head.extend_from_slice(b"PE\0\0\x64\xaa\x01\0");
        head.extend_from_slice(&[0; 16]); // no optional header
        let mut section = [0; 40];
        section[16..20].copy_from_slice(&(end - 0x1000).to_le_bytes());
        section[20..24].copy_from_slice(&0x1000_u32.to_le_bytes());
        head.extend_from_slice(&section);
        head
    }

    fn refusal(head: &[u8], file_bytes: u64) -> String {
        Image::parse(head, file_bytes).unwrap_err().to_string()
    }

    #[test]
    fn a_kernel_tells_where_it_wants_to_be_and_what_it_occupies() {
        let image = Image::parse(&header(0, 0x90_0000, 0xa), 0x80_0000).unwrap();
        assert_eq!(image, Image { text_offset: 0, memory_bytes: 0x90_0000 });
        let old = Image::parse(&header(0, 0, 0), 0x80_0000).unwrap();
        assert_eq!(old, Image { text_offset: 0x8_0000, memory_bytes: 0x80_0000 });
    }

    #[test]
    fn a_cut_kernel_is_refused_whether_it_has_an_efi_header_or_not() {
        assert_eq!(
            refusal(&efi_header(0xf_0000), 0xe_ffff),
            "it is truncated: 983039 bytes, where its headers promise at least 983040"
        );
        assert!(Image::parse(&efi_header(0xf_0000), 0xf_0000).is_ok());
        assert!(refusal(&header(0, 0x90_0000, 0xa), 0x40_0000).contains("truncated"));
        assert!(refusal(&header(0, 1, 0)[..40], 40).contains("only 40 bytes"));
        assert!(refusal(&[], 0).contains("only 0 bytes"));
    }

    #[test]
    fn what_is_taken_for_a_kernel_is_refused_with_the_remedy() {
        assert!(refusal(b"\x1f\x8b\x08", 9_000_000).contains("gunzip"));
        assert!(refusal(b"\x7fELF\x02", 9_000_000).contains("not vmlinux"));
        assert!(refusal(b"MZ\0\0zimg", 9_000_000).contains("vmlinuz.efi"));
        assert!(refusal(&[b'x'; 4096], 9_000_000).contains("magic number is missing"));
        assert!(refusal(&header(0, 0x90_0000, 1), 0x80_0000).contains("big-endian"));
        assert!(refusal(&header(u64::MAX, 0x90_0000, 0), 0x80_0000).contains("damaged"));
    }

    proptest::proptest! {
        #[test]
        fn no_header_makes_it_panic(
            mut head in proptest::collection::vec(proptest::num::u8::ANY, 0..512),
            magic in proptest::bool::ANY,
            file_bytes in proptest::num::u64::ANY,
        ) {
            if magic && head.len() >= HEADER_BYTES {
                head[56..60].copy_from_slice(&MAGIC);
            }
            let _ = Image::parse(&head, file_bytes);
        }
    }
}
