//! Requests to the guest, over the Unix socket of its vsock device.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::guest::{PROBE_PORT, Touch, Touched};
use crate::vm::DEADLINE;

/// More than any answer has.
const ANSWER_MAX_BYTES: u64 = 4 << 20;

/// A connection to the guest.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// The VMM or the guest does not take it.
    pub fn open(vsock: &Path) -> Result<Self> {
        let stream = UnixStream::connect(vsock).context("cannot connect to the vsock device")?;
        stream.set_read_timeout(Some(DEADLINE)).context("cannot set a deadline")?;
        let mut client = Self { stream: BufReader::new(stream) };
        client.send(&format!("CONNECT {PROBE_PORT}\n"))?;
        let answer = client.line().context("the guest does not take a connection")?;
        if !answer.starts_with("OK ") {
            bail!("the vsock device answers {answer:?}");
        }
        Ok(client)
    }

    /// Has the guest touch memory.
    ///
    /// # Errors
    /// The connection breaks, or the answer is none.
    pub fn ask(&mut self, touch: &Touch) -> Result<Touched> {
        let request = serde_json::to_string(touch).context("cannot encode a request")?;
        self.send(&(request + "\n"))?;
        let answer = self.line().context("the guest does not answer")?;
        serde_json::from_str(&answer).with_context(|| format!("the guest answers {answer:?}"))
    }

    fn send(&mut self, line: &str) -> Result<()> {
        self.stream.get_mut().write_all(line.as_bytes()).context("cannot send to the guest")
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        (&mut self.stream).take(ANSWER_MAX_BYTES).read_line(&mut line)?;
        if !line.ends_with('\n') {
            bail!("the connection ended");
        }
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// What a client says of a device that answers so.
    fn asked(answers: &'static [&'static str]) -> Result<Touched> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let device = std::thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            for answer in answers {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        });
        let result = Client::open(&path).and_then(|mut client| client.ask(&Touch::nothing()));
        device.join().unwrap();
        result
    }

    #[test]
    fn the_guests_answer_comes_back() {
        let answers = ["OK 7\n", "{\"elapsed_ns\":5,\"samples_ns\":[1,2]}\n"];
        let expected = Touched { elapsed_ns: 5, samples_ns: vec![1, 2] };
        assert_eq!(asked(Vec::from(answers).leak()).unwrap(), expected);
    }

    #[test]
    fn whatever_is_no_answer_is_an_error() {
        for answers in [&["NO\n"][..], &[""], &["OK 7\n", "{}\n"], &["OK 7\n", "{"]] {
            assert!(asked(Vec::from(answers).leak()).is_err(), "{answers:?}");
        }
    }
}
