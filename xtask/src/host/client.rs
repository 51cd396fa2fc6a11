//! Running one command on the emulated host.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read, Write, stderr, stdin, stdout},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use host_init::{
    frame::Decoder,
    message::{CHUNK_BYTES, Exit, Hello, Job, Message, PORT_COUNT, STDIN_WINDOW_BYTES, Share},
};
use rustix::{
    fs::{FlockOperation, flock},
    stdio,
    termios::{OptionalActions, isatty, tcgetattr, tcgetwinsize, tcsetattr},
};
use signal_hook::{consts::SIGWINCH, iterator::Signals};

/// The exit status when a deadline ended the command, as `timeout` has it.
pub const TIMED_OUT: i32 = 124;

/// Where a command's input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// There is none.
    Nothing,
    /// Ours, to its end.
    Ours,
}

/// A port of the emulated host that is ours until this is dropped. Then the command ends, too.
pub struct Connection {
    session: u32,
    writer: Arc<Mutex<UnixStream>>,
    reader: UnixStream,
    decoder: Decoder,
    received: std::collections::VecDeque<Message>,
    _lock: File,
}

impl Connection {
    /// Takes a free port of the host that has its sockets in `directory`, and waits until the host
    /// answers, which one that is still booting does late.
    pub fn open(directory: &Path, shares: &[Share], timeout: Duration) -> Result<Self> {
        let (lock, socket) = free_port(directory)?;
        let stream = UnixStream::connect(&socket).with_context(|| {
            format!("the emulated host does not run: cannot connect to {socket:?}")
        })?;
        let mut seed = [0; 32];
        File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut seed))
            .context("cannot read /dev/urandom")?;
        let [a, b, c, d, ..] = seed;
        // Zero is nobody's session.
        let session = u32::from_le_bytes([a, b, c, d]).max(1);
        let reader = stream.try_clone().context("cannot clone a socket")?;
        let mut connection = Self {
            session,
            writer: Arc::new(Mutex::new(stream)),
            reader,
            decoder: Decoder::default(),
            received: std::collections::VecDeque::new(),
            _lock: lock,
        };
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_ns = u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX);
        let hello = Hello { time_ns, seed, shares: shares.to_vec() };
        connection.send(Message::Hello(hello))?;
        match connection.receive(Some(Instant::now() + timeout))? {
            Some(Message::Ready) => Ok(connection),
            Some(Message::Failed(text)) => bail!("{text}"),
            Some(other) => bail!("the emulated host greets with {other:?}"),
            None => bail!("the emulated host did not answer for {timeout:?}"),
        }
    }

    /// Waits until a host that boots listens, without telling it anything: its state is that of any
    /// other machine of its kind and may be saved.
    pub fn await_server(directory: &Path, timeout: Duration) -> Result<()> {
        let (_lock, socket) = free_port(directory)?;
        let mut stream = UnixStream::connect(&socket)
            .with_context(|| format!("cannot connect to {socket:?}"))?;
        stream.set_read_timeout(Some(timeout)).context("cannot set a timeout")?;
        match stream.read(&mut [0; 64]) {
            Ok(0) => bail!("the emulated host ended while it booted"),
            Ok(_) => Ok(()),
            Err(error) => Err(error).context("the emulated host does not finish booting"),
        }
    }

    /// Writes everything to disk and powers the host off; returns when it is gone.
    pub fn power_off(mut self, timeout: Duration) -> Result<()> {
        self.send(Message::PowerOff)?;
        let deadline = Instant::now() + timeout;
        while self.receive(Some(deadline)).is_ok_and(|message| message.is_some()) {}
        Ok(())
    }

    /// Runs a command with our streams. The result is its exit status as a shell has it.
    pub fn run(mut self, job: Job, input: Input, timeout: Option<Duration>) -> Result<i32> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let _raw = job.terminal.map(|_| RawTerminal::enter()).transpose()?;
        if job.terminal.is_some() {
            self.follow_size()?;
        }
        self.send(Message::Start(job))?;
        let window = Arc::new(Window::default());
        match input {
            Input::Ours => self.forward_stdin(Arc::clone(&window)),
            Input::Nothing => self.send(Message::StdinEnd)?,
        }
        loop {
            match self.receive(deadline)? {
                Some(Message::Stdout(bytes)) => write_all(&mut stdout().lock(), &bytes)?,
                Some(Message::Stderr(bytes)) => write_all(&mut stderr().lock(), &bytes)?,
                Some(Message::Taken(count)) => window.open(count),
                Some(Message::Exit(Exit::Code(code))) => return Ok(code),
                Some(Message::Exit(Exit::Signal(signal))) => return Ok(128 + signal),
                Some(Message::Failed(text)) => bail!("{text}"),
                Some(_) => {}
                None => {
                    crate::step::say(&format!(
                        "the command was ended: it ran for more than {} s",
                        timeout.unwrap_or_default().as_secs()
                    ));
                    return Ok(TIMED_OUT);
                }
            }
        }
    }

    fn send(&self, message: Message) -> Result<()> {
        send(&self.writer, self.session, message)
    }

    /// The next message of our session; `None` when the deadline has passed.
    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<Message>> {
        let mut piece = vec![0; 64 << 10];
        loop {
            if let Some(message) = self.received.pop_front() {
                return Ok(Some(message));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            self.reader.set_read_timeout(left).context("cannot set a timeout")?;
            let count = match self.reader.read(&mut piece) {
                Ok(0) => bail!("the emulated host ended"),
                Ok(count) => count,
                Err(error) if is_retry(error.kind()) => continue,
                Err(error) => return Err(error).context("the emulated host ended"),
            };
            let mut frames = Vec::new();
            self.decoder.feed(piece.get(..count).unwrap_or_default(), &mut frames);
            let ours = frames.into_iter().filter(|frame| frame.session == self.session);
            self.received.extend(ours.filter_map(Message::from_frame));
        }
    }

    /// A thread, since a read of our input may never return.
    fn forward_stdin(&self, window: Arc<Window>) {
        let (writer, session) = (Arc::clone(&self.writer), self.session);
        thread::spawn(move || {
            let mut piece = vec![0; CHUNK_BYTES];
            loop {
                let message = match stdin().lock().read(&mut piece) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Ok(0) | Err(_) => Message::StdinEnd,
                    Ok(count) => Message::Stdin(piece.get(..count).unwrap_or_default().to_vec()),
                };
                let is_last = message == Message::StdinEnd;
                if let Message::Stdin(bytes) = &message {
                    window.take(bytes.len());
                }
                if send(&writer, session, message).is_err() || is_last {
                    return;
                }
            }
        });
    }

    /// Tells the host when our terminal changes its size.
    fn follow_size(&self) -> Result<()> {
        let mut signals = Signals::new([SIGWINCH]).context("cannot catch SIGWINCH")?;
        let (writer, session) = (Arc::clone(&self.writer), self.session);
        thread::spawn(move || {
            for _ in signals.forever() {
                let Some(size) = terminal_size() else { continue };
                if send(&writer, session, Message::Resize(size)).is_err() {
                    return;
                }
            }
        });
        Ok(())
    }
}

/// The size of our terminal, if our input is one.
pub fn terminal_size() -> Option<host_init::message::Size> {
    if !isatty(stdio::stdin()) {
        return None;
    }
    let size = tcgetwinsize(stdio::stdin()).ok()?;
    Some(host_init::message::Size { rows: size.ws_row.max(1), columns: size.ws_col.max(1) })
}

fn is_retry(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn send(writer: &Mutex<UnixStream>, session: u32, message: Message) -> Result<()> {
    let bytes = message.into_frame(session)?.encode();
    let mut stream = writer.lock().unwrap_or_else(PoisonError::into_inner);
    stream.write_all(&bytes).context("the emulated host ended")
}

fn write_all(stream: &mut impl Write, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes).and_then(|()| stream.flush()).context("nobody takes the output")
}

/// The lock is the kernel's, so that of a killed client is free at once.
fn free_port(directory: &Path) -> Result<(File, PathBuf)> {
    for number in 1..=PORT_COUNT {
        let path = directory.join(format!("port-{number}.lock"));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("cannot open {path:?}"))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok((file, directory.join(format!("port-{number}"))));
        }
    }
    bail!("{PORT_COUNT} commands already run on this emulated host, and it has no more ports");
}

/// How much input may be under way.
#[derive(Default)]
struct Window {
    sent_bytes: Mutex<usize>,
    changed: Condvar,
}

impl Window {
    fn take(&self, count: usize) {
        let sent = self.sent_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sent = self
            .changed
            .wait_while(sent, |sent| *sent + count > STDIN_WINDOW_BYTES)
            .unwrap_or_else(PoisonError::into_inner);
        *sent += count;
    }

    fn open(&self, count: u32) {
        let mut sent = self.sent_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *sent = sent.saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
        self.changed.notify_all();
    }
}

/// Passes every key on; dropping it gives the terminal back as it was.
struct RawTerminal {
    before: rustix::termios::Termios,
}

impl RawTerminal {
    fn enter() -> Result<Self> {
        let before = tcgetattr(stdio::stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdio::stdin(), OptionalActions::Now, &raw).context("cannot set the terminal")?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _it_may_be_gone = tcsetattr(stdio::stdin(), OptionalActions::Now, &self.before);
    }
}
