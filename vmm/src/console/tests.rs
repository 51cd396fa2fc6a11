use std::io::Read;
use std::os::fd::OwnedFd;

use super::*;

/// An output into a pipe, and the pipe's other end.
fn into_pipe(may_block: bool) -> (Arc<Output>, File) {
    let (reader, writer) = io::pipe().unwrap();
    let file = File::from(OwnedFd::from(writer));
    if !may_block {
        rustix::io::ioctl_fionbio(&file, true).unwrap();
    }
    let backlog = Backlog { sink: Sink { file, may_block }, waiting: Vec::new(), lost_bytes: 0 };
    let more = EventFd::new(EFD_NONBLOCK).unwrap();
    let output = Arc::new(Output { backlog: Mutex::new(backlog), more });
    (output, File::from(OwnedFd::from(reader)))
}

fn read_some(reader: &mut File, at_most: usize) -> Vec<u8> {
    let mut bytes = vec![0; at_most];
    let count = reader.read(&mut bytes).unwrap();
    bytes.truncate(count);
    bytes
}

#[test]
fn what_the_reader_takes_is_written_at_once() {
    let (output, mut reader) = into_pipe(false);
    Writer::from(output.clone()).write_all(b"hello").unwrap();
    assert_eq!(read_some(&mut reader, 64), b"hello");
    assert!(output.more.read().is_err(), "the io thread need not hear of it");
}

#[test]
fn a_reader_that_stands_still_makes_nobody_wait_and_is_told_what_it_missed() {
    for may_block in [false, true] {
        let (output, mut reader) = into_pipe(may_block);
        let mut writer = Writer::from(output.clone());
        // More than any pipe and the backlog hold together.
        let line = [b'x'; 1000];
        for _ in 0..4000 {
            writer.write_all(&line).unwrap();
        }
        assert!(output.backlog().waiting.len() <= BACKLOG_BYTES_MAX);
        assert_eq!(output.more.read().unwrap(), 1, "the io thread is told once");

        let mut seen = Vec::new();
        while !output.backlog().flush() {
            seen.extend(read_some(&mut reader, 1 << 20));
        }
        writer.write_all(b"the end").unwrap();
        drop((writer, output));
        reader.read_to_end(&mut seen).unwrap();

        let text = String::from_utf8(seen).unwrap();
        let (kept, rest) = text.split_once("\r\n[rotifer-vmm: ").unwrap();
        let (lost, rest) = rest.split_once(" bytes of output were dropped]\r\n").unwrap();
        assert!(kept.bytes().all(|byte| byte == b'x'));
        assert_eq!(kept.len() + lost.parse::<usize>().unwrap(), 4_000_000);
        assert_eq!(rest, "the end");
    }
}

#[test]
fn a_reader_that_is_gone_costs_the_output_and_nothing_else() {
    let (output, reader) = into_pipe(false);
    drop(reader);
    let mut writer = Writer::from(output.clone());
    writer.write_all(&[b'x'; 100_000]).unwrap();
    assert!(output.backlog().waiting.is_empty());
    output.finish();
}

#[test]
fn the_end_of_the_machine_does_not_wait_for_a_reader_for_ever() {
    let (output, _reader) = into_pipe(false);
    let mut writer = Writer::from(output.clone());
    for _ in 0..200 {
        writer.write_all(&[b'x'; 1000]).unwrap();
    }
    output.finish();
    assert!(!output.backlog().waiting.is_empty());
}

#[test]
fn a_file_is_continued_and_a_fifo_needs_no_reader() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    std::fs::write(&path, "before\n").unwrap();
    let (output, input) = connect(&Console::File(path.clone())).unwrap();
    assert!(input.is_none());
    Writer::from(output).write_all(b"after\n").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nafter\n");

    let fifo = directory.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
        .unwrap();
    let (output, _) = connect(&Console::File(fifo)).unwrap();
    Writer::from(output).write_all(b"nobody reads").unwrap();

    let error = connect(&Console::File(directory.path().into())).err().unwrap();
    assert!(error.to_string().contains(&directory.path().display().to_string()));
}
