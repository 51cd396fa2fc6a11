//! The tar of a step: what it copies from the archive, on its way to the worker.

use crate::archive::Context;
use crate::plan::{Action, Item, ItemContent};
use std::io::{self, Write};
use tar::{Builder, EntryType, Header};

/// Files of an archive have this time: equal content makes equal disks. (2020-01-01)
const TIME_S: u64 = 1_577_836_800;
/// The name of the only file; it gets that of the target.
const ONLY: &str = "file";

/// Writes what follows an action's request; nothing for most actions.
///
/// # Errors
/// The archive has changed, or `sink` does not take it.
pub fn write(context: &Context, action: &Action, sink: &mut dyn Write) -> io::Result<()> {
    match action {
        Action::CopyItems { items, .. } => {
            let mut tar = Builder::new(sink);
            for item in items {
                add(context, item, &mut tar)?;
            }
            tar.into_inner()?.flush()
        }
        Action::Write { text, .. } => {
            let mut tar = Builder::new(sink);
            let mut header = header(EntryType::Regular, 0o644, text.len() as u64);
            tar.append_data(&mut header, ONLY, text.as_bytes())?;
            tar.into_inner()?.flush()
        }
        Action::Extract { item, .. } => {
            context.read(&item.path, sink).map_err(io::Error::other)?;
            sink.flush()
        }
        Action::Run(_) | Action::CopyFrom { .. } | Action::MakeDirectory { .. } => sink.flush(),
    }
}

fn add(context: &Context, item: &Item, tar: &mut Builder<&mut dyn Write>) -> io::Result<()> {
    match &item.content {
        ItemContent::Directory => {
            let mut header = header(EntryType::Directory, item.mode, 0);
            tar.append_data(&mut header, format!("{}/", item.name), io::empty())
        }
        ItemContent::Link(target) => {
            let mut header = header(EntryType::Symlink, item.mode, 0);
            tar.append_link(&mut header, &item.name, target)
        }
        ItemContent::File(_, size_bytes) => {
            let mut header = header(EntryType::Regular, item.mode, *size_bytes);
            let written = context
                .with_file(&item.path, |content| tar.append_data(&mut header, &item.name, content));
            written.map_err(io::Error::other)
        }
    }
}

/// The head of an entry that belongs to root and is as old as all others.
pub(crate) fn header(kind: EntryType, mode: u32, length: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(TIME_S);
    header.set_size(length);
    header
}
