//! The thread of one job: carries its three streams until it has ended.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::Child,
    sync::PoisonError,
};

use host_init::message::{CHUNK_BYTES, Exit, Message};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};

use crate::{
    job::{Inbox, resize},
    port::{Error, Port},
};

/// Our ends of a command's streams, none of which blocks.
pub struct Streams {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    errors: Option<OwnedFd>,
    is_terminal: bool,
}

impl Streams {
    /// Of a command that has three pipes.
    pub fn pipes(child: &mut Child) -> rustix::io::Result<Self> {
        let (input, output, errors) = (
            child.stdin.take().map(OwnedFd::from),
            child.stdout.take().map(OwnedFd::from),
            child.stderr.take().map(OwnedFd::from),
        );
        for stream in [&input, &output, &errors].into_iter().flatten() {
            never_block(stream)?;
        }
        Ok(Self { input, output, errors, is_terminal: false })
    }

    /// Of a command that has a terminal; `ours` is its controlling side.
    pub fn terminal(ours: OwnedFd) -> std::io::Result<Self> {
        never_block(&ours)?;
        let output = Some(ours.try_clone()?);
        Ok(Self { input: Some(ours), output, errors: None, is_terminal: true })
    }
}

fn never_block(stream: &OwnedFd) -> rustix::io::Result<()> {
    fcntl_setfl(stream, fcntl_getfl(stream)? | OFlags::NONBLOCK)
}

/// Carries the streams, then reports how the command ended.
pub fn pump(
    mut child: Child,
    exited: OwnedFd,
    mut streams: Streams,
    inbox: &Inbox,
    port: &Port,
    session: u32,
) {
    let carried = carry(&exited, &mut streams, inbox, port, session);
    // Without a client the port's thread ends the command, so this wait is short either way.
    let exit = match child.wait() {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Message::Exit(Exit::Code(code)),
            (None, Some(signal)) => Message::Exit(Exit::Signal(signal)),
            (None, None) => Message::Failed("the command ended in an unknown way".into()),
        },
        Err(error) => Message::Failed(format!("cannot wait for the command: {error}")),
    };
    if carried.is_ok() {
        let _the_client_may_have_left = port.send(session, exit);
    }
}

fn carry(
    exited: &OwnedFd,
    streams: &mut Streams,
    inbox: &Inbox,
    port: &Port,
    session: u32,
) -> Result<(), Error> {
    let mut pending = Vec::new();
    let mut at_end = false;
    loop {
        let has_ended = wait(exited, streams, inbox, !pending.is_empty())?;
        let output = forward(&mut streams.output, Message::Stdout, has_ended, port, session);
        let errors = forward(&mut streams.errors, Message::Stderr, has_ended, port, session);
        output.and(errors)?;
        if has_ended {
            return Ok(());
        }
        take_messages(inbox, streams, &mut pending, &mut at_end);
        let taken = write_input(&mut streams.input, &mut pending);
        if taken > 0 {
            port.send(session, Message::Taken(u32::try_from(taken).unwrap_or(u32::MAX)))?;
        }
        if at_end && pending.is_empty() && !streams.is_terminal {
            streams.input = None;
        }
    }
}

/// Sleeps until something can be done; says whether the command has ended.
fn wait(
    exited: &OwnedFd,
    streams: &Streams,
    inbox: &Inbox,
    has_input: bool,
) -> Result<bool, Errno> {
    let mut fds = vec![PollFd::new(exited, PollFlags::IN), PollFd::new(&inbox.wake, PollFlags::IN)];
    for stream in [&streams.output, &streams.errors].into_iter().flatten() {
        fds.push(PollFd::new(stream, PollFlags::IN));
    }
    if let (Some(input), true) = (&streams.input, has_input) {
        fds.push(PollFd::new(input, PollFlags::OUT));
    }
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => Ok(!fds[0].revents().is_empty()),
        Err(errno) => Err(errno),
    }
}

/// Sends what a stream has: one piece, or all of it when the command `has_ended`.
fn forward(
    stream: &mut Option<OwnedFd>,
    message: fn(Vec<u8>) -> Message,
    has_ended: bool,
    port: &Port,
    session: u32,
) -> Result<(), Error> {
    while let Some(open) = stream {
        let mut piece = vec![0; CHUNK_BYTES];
        match rustix::io::read(open.as_fd(), &mut piece) {
            // A terminal whose other side is closed answers with an error.
            Ok(0) | Err(Errno::IO) => *stream = None,
            Ok(count) => {
                piece.truncate(count);
                port.send(session, message(piece))?;
                if !has_ended {
                    return Ok(());
                }
            }
            Err(Errno::INTR) => {}
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

fn take_messages(inbox: &Inbox, streams: &Streams, pending: &mut Vec<u8>, at_end: &mut bool) {
    let mut count = [0; 8];
    let _nothing_new = rustix::io::read(&inbox.wake, &mut count);
    let messages =
        std::mem::take(&mut *inbox.messages.lock().unwrap_or_else(PoisonError::into_inner));
    for message in messages {
        match message {
            Message::Stdin(bytes) => pending.extend(bytes),
            Message::StdinEnd => *at_end = true,
            Message::Resize(size) => {
                if let (Some(terminal), true) = (&streams.input, streams.is_terminal) {
                    let _a_wrong_size_is_harmless = resize(terminal, size);
                }
            }
            _ => {}
        }
    }
}

/// How many bytes are done with: taken by the command, or refused by it for ever.
fn write_input(input: &mut Option<OwnedFd>, pending: &mut Vec<u8>) -> usize {
    let mut done = 0;
    while let (Some(open), false) = (input.as_ref(), pending.is_empty()) {
        match rustix::io::write(open.as_fd(), pending) {
            Ok(count) => {
                pending.drain(..count);
                done += count;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return done,
            Err(_) => *input = None,
        }
    }
    if input.is_none() {
        done += std::mem::take(pending).len();
    }
    done
}
