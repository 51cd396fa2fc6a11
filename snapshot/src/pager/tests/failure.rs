//! What cannot be loaded ends the machine. Each of these needs a process of its own to end.

use std::{
    io::Write,
    os::unix::process::ExitStatusExt,
    process::{Command, Output},
    thread,
};

use super::*;
use crate::pager::{Mapping, PagerError, Reach, SharedImage};

/// Says which of the scenes below a child process plays.
const SCENE: &str = "ROTIFER_PAGER_SCENE";
/// How a machine ends whose memory cannot be loaded.
const ENDED: i32 = 17;

/// Runs this test program again for one scene.
fn play(scene: &str) -> Option<Output> {
    userfault()?;
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "--nocapture", "pager::tests::failure::scene"]);
    Some(child.env(SCENE, scene).output().unwrap())
}

fn say(text: &str) {
    let _nobody_listens = writeln!(std::io::stderr(), "{text}");
}

/// Not a test of its own: what a child process does.
#[test]
fn scene() {
    let Ok(scene) = std::env::var(SCENE) else { return };
    let mut source = TestSource::new(4, none);
    source.broken = Some(ChunkIndex(9));
    let mapping = if scene == "shared" {
        Mapping::Shared(Arc::new(SharedImage::create(&source).unwrap()))
    } else {
        Mapping::Copy
    };
    let options = Options { mapping, reach: Reach::Chunk, ..Options::default() };
    let memory = memory(4);
    let (failed, has_failed) = std::sync::mpsc::channel();
    let fail = move |error: PagerError| {
        say(&chain(&error));
        if scene != "ignore" {
            std::process::exit(ENDED);
        }
        failed.send(()).unwrap();
    };
    let source = Box::new(source);
    let pager = Pager::start(&memory, source, || Ok(userfault().unwrap()), options, fail).unwrap();
    check(&memory, PageIndex(512), none);
    for page in [9 * 16 + 5, 9 * 16 + 5, 9 * 16 + 6] {
        let memory = memory.clone();
        thread::spawn(move || say(&format!("READ {:#x}", read(&memory, PageIndex(page), 0))));
    }
    has_failed.recv_timeout(DEADLINE).unwrap();
    // The failure was ignored. What nobody can load must not be read, then or later.
    drop(pager);
    say(&format!("READ {:#x}", read(&memory, PageIndex(9 * 16), 0)));
}

fn chain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|source| format!(": {}", chain(source))).unwrap_or_default();
    format!("{error}{cause}")
}

#[test]
fn a_chunk_that_cannot_be_loaded_ends_the_machine_with_its_page_and_cause() {
    for scene in ["private", "shared"] {
        let Some(output) = play(scene) else { return };
        assert_ended(&output);
    }
}

/// Nobody went on, and the error says why.
fn assert_ended(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(ENDED), "{text}");
    let address = address_of(PageIndex(9 * 16)).0;
    // The kernel names a page of the host.
    let mask = !(rustix::param::page_size() as u64 - 1);
    let pages = [5, 6].map(|page| (address + page * 4096) & mask);
    let pages = pages.map(|page| format!("load the guest's memory at {page:#x}"));
    assert!(pages.iter().any(|page| text.contains(page)), "{text}");
    let cause = format!("load page 144 of image ram of snapshot {}", "ab".repeat(32));
    assert!(text.contains(&cause) && text.contains("the image has no such page"), "{text}");
    assert!(!text.contains("READ"), "nobody reads what was not loaded: {text}");
}

#[test]
fn nobody_reads_zeroes_even_if_a_failure_is_ignored() {
    let Some(output) = play("ignore") else { return };
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("load the guest's memory"), "{text}");
    assert!(!text.contains("READ"), "{text}");
    let signals = [rustix::process::Signal::SEGV, rustix::process::Signal::BUS];
    let signal = output.status.signal();
    assert!(signals.iter().any(|known| Some(known.as_raw()) == signal), "{signal:?}: {text}");
}
