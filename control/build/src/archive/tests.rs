use super::*;
use tempfile::{NamedTempFile, tempdir};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// A zip with files of these names and contents.
fn zip_of(files: &[(&str, &[u8])]) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let mut writer = ZipWriter::new(file.reopen().unwrap());
    for (name, content) in files {
        writer.start_file(*name, options()).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap();
    file
}

fn options() -> SimpleFileOptions {
    SimpleFileOptions::default().compression_method(CompressionMethod::Deflated)
}

fn refusal(files: &[(&str, &[u8])]) -> String {
    Context::open(zip_of(files).path()).unwrap_err().to_string()
}

#[test]
fn files_are_listed_with_their_digests_and_read_again() {
    let zip = zip_of(&[("Dockerfile", b"FROM scratch\n"), ("src/app.py", b"print()\n")]);
    let context = Context::open(zip.path()).unwrap();
    assert_eq!(context.dockerfile().unwrap(), "FROM scratch\n");
    assert_eq!(context.get("src").unwrap().kind, Kind::Directory);
    let mut content = Vec::new();
    context.read("src/app.py", &mut content).unwrap();
    assert_eq!(content, b"print()\n");
    let Kind::File { digest, size_bytes, .. } = &context.get("src/app.py").unwrap().kind else {
        panic!("it is a file")
    };
    assert_eq!((*size_bytes, &digest[..]), (8, &Sha256::digest(b"print()\n")[..]));
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", "..", "a/.."] {
        let reason = refusal(&[(name, b"")]);
        assert!(reason.contains("entry"), "{name}: {reason}");
    }
    assert!(refusal(&[(&"a".repeat(256), b"")]).contains("too long"));
}

#[test]
fn a_name_that_stands_twice_is_refused_however_it_is_spelt() {
    assert!(refusal(&[("a/b", b"1"), ("./a//b", b"2")]).contains("twice"));
    // The writer refuses to write one twice, so that two names of a length change places here.
    let zip = zip_of(&[("file-a", b"1"), ("file-b", b"2")]);
    let bytes = std::fs::read(zip.path()).unwrap();
    let text: Vec<u8> = bytes.windows(6).enumerate().fold(bytes.clone(), |mut all, (at, it)| {
        if it == b"file-b" {
            all[at..at + 6].copy_from_slice(b"file-a");
        }
        all
    });
    std::fs::write(zip.path(), text).unwrap();
    let error = Context::open(zip.path()).unwrap_err();
    assert!(error.to_string().contains("twice"), "{error}");
}

#[test]
fn nothing_is_below_a_file_or_a_link() {
    assert!(refusal(&[("a", b""), ("a/b", b"")]).contains("no directory"));
    let file = NamedTempFile::new().unwrap();
    let mut writer = ZipWriter::new(file.reopen().unwrap());
    writer.add_symlink("link", "src", options()).unwrap();
    writer.start_file("link/x", options()).unwrap();
    writer.finish().unwrap();
    let error = Context::open(file.path()).unwrap_err().to_string();
    assert!(error.contains("no directory"), "{error}");
}

#[test]
fn links_stay_inside() {
    let open = |name: &str, target: &str| {
        let file = NamedTempFile::new().unwrap();
        let mut writer = ZipWriter::new(file.reopen().unwrap());
        writer.add_symlink(name, target, options()).unwrap();
        writer.start_file("real", options()).unwrap();
        writer.finish().unwrap();
        Context::open(file.path())
    };
    assert_eq!(open("a/b", "../real").unwrap().follow("a/b").as_deref(), Some("real"));
    assert_eq!(open("loop", "loop").unwrap().follow("loop"), None);
    for target in ["/etc/passwd", "../x", "../../x", "x/../../y"] {
        let error = open("link", target).unwrap_err().to_string();
        assert!(error.contains("links out"), "{target}: {error}");
    }
}

#[test]
fn a_missing_dockerfile_says_where_one_is() {
    let dockerfile = |name| Context::open(zip_of(&[(name, b"")]).path()).unwrap().dockerfile();
    let error = dockerfile("app/Dockerfile").unwrap_err();
    assert!(matches!(error, ArchiveError::NoDockerfile(_)));
    assert!(error.to_string().contains("app/Dockerfile"), "{error}");
    assert!(matches!(dockerfile("dockerfile"), Err(ArchiveError::NoDockerfile(_))));
}

#[test]
fn what_is_ignored_is_not_seen_but_the_dockerfile_still_builds() {
    let zip = zip_of(&[
        ("Dockerfile", b"FROM scratch"),
        (".dockerignore", b"*\n!app.py\n"),
        ("app.py", b""),
        ("secret", b""),
    ]);
    let context = Context::open(zip.path()).unwrap();
    let names: Vec<_> = context.visible().map(|(name, _)| name).collect();
    assert_eq!(names, ["app.py"]);
    assert!(context.dockerfile().is_ok());
}

#[test]
fn files_that_unpack_to_too_much_are_refused_by_what_comes_out_of_them() {
    let mut left_bytes = 1 << 20;
    let mut zeroes = io::repeat(0).take(1 << 40);
    let error = digest_of(&mut zeroes, "bomb", &mut left_bytes).unwrap_err();
    assert!(matches!(error, ArchiveError::TooLargeUnpacked));
}

#[test]
fn too_many_entries_are_refused_before_any_is_kept() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("many.zip");
    let entries = ENTRY_SIGNATURE.repeat(ARCHIVE_ENTRIES_MAX + 1);
    std::fs::write(&path, entries).unwrap();
    assert!(matches!(Context::open(&path), Err(ArchiveError::TooMany)));
}

#[test]
fn what_is_no_zip_is_refused() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("x.zip");
    for content in [&b""[..], b"PK\x03\x04", b"not a zip at all"] {
        std::fs::write(&path, content).unwrap();
        assert!(matches!(Context::open(&path), Err(ArchiveError::Zip(_))));
    }
}
