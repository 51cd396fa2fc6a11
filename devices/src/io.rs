//! The io thread: one event loop that serves the eventfds and descriptors of devices.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use event_manager::{EventManager, EventOps, EventSubscriber, Events, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A device as the loop sees it.
pub type Subscriber = Arc<dyn EventSubscriber + Send + Sync>;

/// Stack of an io thread, in bytes. Devices keep no large values on it.
const STACK_BYTES: usize = 256 << 10;
/// Events fetched from the kernel at a time.
const READY_EVENTS: usize = 32;

/// Why an io thread cannot be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum IoThreadError {
    /// The host refuses a thread or a descriptor.
    #[error("start io thread {name}")]
    Start {
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The loop cannot be made.
    #[error("make the event loop of io thread {name}")]
    Loop {
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: event_manager::Error,
    },
    /// It ended, which only a panic in it can cause.
    #[error("the io thread has ended")]
    Ended,
}

enum Command {
    /// Say that you are parked, then wait until the other side of `resume` is gone.
    Park {
        parked: mpsc::Sender<()>,
        resume: mpsc::Receiver<()>,
    },
    Stop,
}

/// How the thread is reached from outside.
struct Control {
    event: EventFd,
    commands: Mutex<mpsc::Receiver<Command>>,
    stop: AtomicBool,
}

/// A running io thread. Dropping it stops the thread and waits for it.
pub struct IoThread {
    control: Arc<Control>,
    commands: mpsc::Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

/// Proof that the io thread does nothing; it goes on when this is dropped.
#[must_use = "the io thread goes on as soon as this is dropped"]
pub struct Parked {
    _resume: mpsc::Sender<()>,
}

impl IoThread {
    /// Starts a thread that serves `subscribers`.
    ///
    /// # Errors
    /// [`IoThreadError::Start`] and [`IoThreadError::Loop`].
    pub fn start(name: &str, subscribers: Vec<Subscriber>) -> Result<Self, IoThreadError> {
        let start = |source| IoThreadError::Start { name: name.into(), source };
        let (sender, receiver) = mpsc::channel();
        let control = Arc::new(Control {
            event: EventFd::new(EFD_NONBLOCK).map_err(start)?,
            commands: Mutex::new(receiver),
            stop: AtomicBool::new(false),
        });
        let mut manager: EventManager<Subscriber> =
            EventManager::new_with_capacity(READY_EVENTS)
                .map_err(|source| IoThreadError::Loop { name: name.into(), source })?;
        manager.add_subscriber(control.clone());
        for subscriber in subscribers {
            manager.add_subscriber(subscriber);
        }
        let stop = control.clone();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .stack_size(STACK_BYTES)
            .spawn(move || run(manager, &stop.stop))
            .map_err(start)?;
        Ok(Self { control, commands: sender, thread: Some(thread) })
    }

    /// Returns once the thread has finished what it was doing and waits.
    ///
    /// # Errors
    /// [`IoThreadError::Ended`].
    pub fn park(&self) -> Result<Parked, IoThreadError> {
        let (parked, is_parked) = mpsc::channel();
        let (resume, is_resumed) = mpsc::channel();
        self.send(Command::Park { parked, resume: is_resumed })?;
        is_parked.recv().map_err(|_| IoThreadError::Ended)?;
        Ok(Parked { _resume: resume })
    }

    fn send(&self, command: Command) -> Result<(), IoThreadError> {
        self.commands.send(command).map_err(|_| IoThreadError::Ended)?;
        self.control.event.write(1).map_err(|_| IoThreadError::Ended)
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        if self.send(Command::Stop).is_ok()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("an io thread panicked");
        }
    }
}

fn run(mut manager: EventManager<Subscriber>, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        if let Err(error) = manager.run() {
            // Only a broken epoll descriptor gets here: without events no device works.
            tracing::error!(%error, "wait for device events");
            return;
        }
    }
}

impl EventSubscriber for Control {
    fn init(&self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new_raw(self.event.as_raw_fd(), EventSet::IN)) {
            tracing::error!(%error, "watch the control eventfd of an io thread");
        }
    }

    fn process(&self, _events: Events, _ops: &mut EventOps<'_>) {
        let _ = self.event.read();
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Park { parked, resume } => {
                    if parked.send(()).is_ok() {
                        // Ends with an error when `Parked` is dropped: that is the signal.
                        let _ = resume.recv();
                    }
                }
                Command::Stop => self.stop.store(true, Ordering::Release),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts what it hears of.
    struct Counter {
        event: EventFd,
        seen: mpsc::Sender<u64>,
    }

    impl EventSubscriber for Counter {
        fn init(&self, ops: &mut EventOps<'_>) {
            ops.add(Events::new_raw(self.event.as_raw_fd(), EventSet::IN)).unwrap();
        }

        fn process(&self, _events: Events, _ops: &mut EventOps<'_>) {
            self.seen.send(self.event.read().unwrap()).unwrap();
        }
    }

    fn counter() -> (Arc<Counter>, mpsc::Receiver<u64>) {
        let (seen, receiver) = mpsc::channel();
        (Arc::new(Counter { event: EventFd::new(EFD_NONBLOCK).unwrap(), seen }), receiver)
    }

    #[test]
    fn a_subscriber_hears_of_its_event() {
        let (subscriber, seen) = counter();
        let _io = IoThread::start("io", vec![subscriber.clone()]).unwrap();
        subscriber.event.write(3).unwrap();
        assert_eq!(seen.recv(), Ok(3));
    }

    #[test]
    fn a_parked_thread_serves_nobody_until_it_is_resumed() {
        let (subscriber, seen) = counter();
        let io = IoThread::start("io", vec![subscriber.clone()]).unwrap();
        let parked = io.park().unwrap();
        subscriber.event.write(1).unwrap();
        subscriber.event.write(1).unwrap();
        assert!(seen.try_recv().is_err());
        drop(parked);
        assert_eq!(seen.recv(), Ok(2), "both writes are seen, at once, after the pause");
    }

    #[test]
    fn dropping_an_io_thread_ends_it() {
        let (subscriber, _seen) = counter();
        let weak = Arc::downgrade(&subscriber);
        drop(IoThread::start("io", vec![subscriber]).unwrap());
        assert!(weak.upgrade().is_none(), "the loop has let go of its subscribers");
    }
}
