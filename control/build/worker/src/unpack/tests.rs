use super::*;
use crate::protocol::Target;
use std::os::unix::fs::MetadataExt;
use tar::{Builder, Header};
use tempfile::{TempDir, tempdir};

enum Content<'a> {
    File(&'a str),
    Directory,
    Link(&'a str),
    HardLink(&'a str),
}

fn tar_of(entries: &[(&str, Content)]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        // Set as it stands: the library refuses to write what a hostile tar has.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        let mut link = |kind, target: &str| {
            header.set_entry_type(kind);
            header.set_link_name_literal(target).unwrap();
        };
        let mut bytes: &[u8] = &[];
        match content {
            Content::File(text) => {
                bytes = text.as_bytes();
                header.set_size(bytes.len() as u64);
            }
            Content::Directory => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
            }
            Content::Link(target) => link(EntryType::Symlink, target),
            Content::HardLink(target) => link(EntryType::Link, target),
        }
        header.set_cksum();
        tar.append(&header, bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn layer(root: &TempDir, entries: &[(&str, Content)]) -> Result<(), WorkerError> {
    let target = Target { path: "/".into(), is_directory: true, ..Target::default() };
    let request = Unpack { target, is_layer: true, ..Unpack::default() };
    unpack(&mut &tar_of(entries)[..], root.path(), &request, false)
}

fn copy(
    root: &TempDir,
    path: &str,
    is_directory: bool,
    entries: &[(&str, Content)],
) -> Result<(), WorkerError> {
    let target = Target { path: path.into(), is_directory, ..Target::default() };
    let request = Unpack { target, is_users: true, ..Unpack::default() };
    unpack(&mut &tar_of(entries)[..], root.path(), &request, false)
}

/// All names below a root, in order.
fn names(root: &TempDir) -> Vec<String> {
    let (mut names, mut pending) = (Vec::new(), vec![root.path().to_path_buf()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            names.push(path.strip_prefix(root.path()).unwrap().to_str().unwrap().to_owned());
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                pending.push(path);
            }
        }
    }
    names.sort();
    names
}

use Content::{Directory, File as Text, HardLink, Link};

#[test]
fn a_whiteout_takes_away_what_is_below_and_not_what_is_beside_it() {
    let root = tempdir().unwrap();
    layer(&root, &[("a/x", Text("1")), ("a/y", Text("1")), ("d/z", Text("1"))]).unwrap();
    layer(
        &root,
        &[("a/x", Text("2")), ("a/.wh.x", Text("")), (".wh.d", Text("")), ("a/.wh.no", Text(""))],
    )
    .unwrap();
    assert_eq!(names(&root), ["a", "a/x", "a/y"]);
    assert_eq!(fs::read_to_string(root.path().join("a/x")).unwrap(), "2");
}

#[test]
fn an_opaque_directory_keeps_only_what_its_own_layer_has_wherever_the_mark_stands() {
    for mark_is_first in [true, false] {
        let root = tempdir().unwrap();
        layer(&root, &[("a/old", Text("1")), ("a/b/old", Text("1")), ("other", Text("1"))])
            .unwrap();
        let (mark, new) = (("a/.wh..wh..opq", Text("")), ("a/b/new", Text("2")));
        let upper = if mark_is_first { [mark, new] } else { [new, mark] };
        // A directory of the layer stands in it as an entry.
        let upper = [("a/", Directory), ("a/b/", Directory)].into_iter().chain(upper);
        layer(&root, &upper.collect::<Vec<_>>()).unwrap();
        assert_eq!(names(&root), ["a", "a/b", "a/b/new", "other"], "{mark_is_first}");
    }
}

#[test]
fn a_hard_link_keeps_the_content_of_its_time() {
    let root = tempdir().unwrap();
    layer(&root, &[("a", Text("one")), ("b", HardLink("a"))]).unwrap();
    assert_eq!(fs::metadata(root.path().join("a")).unwrap().nlink(), 2);
    layer(&root, &[("a", Text("two"))]).unwrap();
    assert_eq!(fs::read_to_string(root.path().join("b")).unwrap(), "one");
}

#[test]
fn a_file_takes_the_place_of_a_directory_and_the_other_way() {
    let root = tempdir().unwrap();
    layer(&root, &[("a/x", Text("1")), ("b", Text("1")), ("c", Link("b"))]).unwrap();
    layer(&root, &[("a", Text("2")), ("b", Directory), ("c", Text("3"))]).unwrap();
    assert_eq!(names(&root), ["a", "b", "c"]);
    assert!(root.path().join("b").is_dir());
    assert_eq!(fs::read_to_string(root.path().join("c")).unwrap(), "3");
}

#[test]
fn names_that_lead_out_are_refused() {
    for entries in [
        [("../x", Text(""))],
        [("a/../../x", Text(""))],
        [("a", HardLink("../../etc/passwd"))],
        [("a/.wh...", Text(""))],
    ] {
        let root = tempdir().unwrap();
        assert!(matches!(layer(&root, &entries), Err(WorkerError::Refused(_))));
    }
    // An absolute name is one of the root's.
    let root = tempdir().unwrap();
    layer(&root, &[("/x", Text(""))]).unwrap();
    assert_eq!(names(&root), ["x"]);
}

#[test]
fn a_file_that_is_copied_gets_the_name_or_goes_into_the_directory() {
    let root = tempdir().unwrap();
    fs::create_dir(root.path().join("there")).unwrap();
    copy(&root, "/new/name", false, &[("app.py", Text("1"))]).unwrap();
    copy(&root, "/there", false, &[("app.py", Text("1"))]).unwrap();
    copy(&root, "/made", true, &[("app.py", Text("1"))]).unwrap();
    assert_eq!(names(&root), ["made", "made/app.py", "new", "new/name", "there", "there/app.py"]);
    let two = copy(&root, "/file", false, &[("a", Text("")), ("b", Text(""))]).unwrap_err();
    assert!(two.to_string().contains("slash"), "{two}");
    let over = copy(&root, "/", true, &[("there", Text(""))]).unwrap_err();
    assert!(over.to_string().contains("directory"), "{over}");
}

#[test]
fn what_is_packed_is_unpacked() {
    let (from, to) = (tempdir().unwrap(), tempdir().unwrap());
    layer(
        &from,
        &[("d/a.py", Text("1")), ("d/e/b", Text("2")), ("d/l", Link("a.py")), ("x.txt", Text("3"))],
    )
    .unwrap();
    let pack_and_unpack = |sources: &[&str], path: &str, is_directory| {
        let sources: Vec<String> = sources.iter().map(|source| (*source).into()).collect();
        let mut tar = Vec::new();
        super::super::pack::pack(from.path(), &sources, &mut tar)?;
        let target = Target { path: path.into(), is_directory, ..Target::default() };
        let request = Unpack { target, is_users: true, ..Unpack::default() };
        unpack(&mut &tar[..], to.path(), &request, false)
    };
    pack_and_unpack(&["/d"], "/copy", false).unwrap();
    pack_and_unpack(&["/*.txt", "/d/*.py"], "/files", true).unwrap();
    let expected =
        ["copy", "copy/a.py", "copy/e", "copy/e/b", "copy/l", "files", "files/a.py", "files/x.txt"];
    assert_eq!(names(&to), expected);
    assert_eq!(fs::read_link(to.path().join("copy/l")).unwrap(), Path::new("a.py"));
    assert!(pack_and_unpack(&["/none"], "/", true).unwrap_err().to_string().contains("/none"));
}
