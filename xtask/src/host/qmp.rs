//! QEMU's control socket: one JSON object per line, each way.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// QEMU answers at once, but for a machine that is busy or ten times slower.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at a migration; QEMU sends no event for it unless asked.
const POLL: Duration = Duration::from_millis(50);

/// A connection; QEMU accepts one at a time.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    /// Connects and gets past the greeting.
    pub fn connect(socket: &Path) -> Result<Self> {
        let writer =
            UnixStream::connect(socket).with_context(|| format!("cannot connect to {socket:?}"))?;
        writer.set_read_timeout(Some(ANSWER_TIMEOUT)).context("cannot set a timeout")?;
        let reader = BufReader::new(writer.try_clone().context("cannot clone a socket")?);
        let mut qmp = Self { reader, writer };
        qmp.read()?;
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command; events that arrive meanwhile are dropped.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.writer, "{line}")
            .with_context(|| format!("cannot tell QEMU to {command}"))?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {}", error["desc"].as_str().unwrap_or("no reason"));
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    /// A command of QEMU's interactive monitor, which can more; returns what it prints.
    pub fn monitor(&mut self, line: &str) -> Result<String> {
        let answer = self.ask("human-monitor-command", json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().trim().to_owned())
    }

    /// Writes the machine's state to a file.
    pub fn save(&mut self, file: &Path, timeout: Duration) -> Result<()> {
        self.ask("migrate", json!({ "uri": format!("file:{}", file.display()) }))?;
        let deadline = Instant::now() + timeout;
        loop {
            let answer = self.ask("query-migrate", json!({}))?;
            match answer["status"].as_str().unwrap_or_default() {
                "completed" => return Ok(()),
                "failed" | "cancelled" => bail!("QEMU could not save the machine: {answer}"),
                _ if Instant::now() > deadline => bail!("saving took more than {timeout:?}"),
                _ => std::thread::sleep(POLL),
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self.reader.read_line(&mut line).context("QEMU does not answer")?;
        if count == 0 {
            bail!("QEMU ended");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU said {line:?}"))
    }
}
