//! The serial console: a 16550A by `vm-superio`, input from a host descriptor.

mod state;

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSubscriber, Events};
use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::MmioDevice;

/// Where the guest's output goes. It is called with every byte, on a vCPU thread, and must not
/// block for long.
pub type Output = Box<dyn Write + Send>;

type Uart = vm_superio::Serial<Line, InputEmptied, Output>;

/// A 16550A on the MMIO bus, registers one byte apart.
pub struct Serial {
    /// Taken away when input has ended.
    input: Mutex<Option<File>>,
    interrupt: Arc<EventFd>,
    /// Written when the guest has emptied the FIFO: more input may be read then.
    input_emptied: Arc<EventFd>,
    uart: Mutex<Uart>,
}

/// The interrupt line, edge-triggered.
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // An eventfd counter that is full has been raised already.
        let _ = self.0.write(1);
        Ok(())
    }
}

/// Hears from the UART that the guest has read all input.
struct InputEmptied(Arc<EventFd>);

impl SerialEvents for InputEmptied {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // A full counter says the same.
        let _ = self.0.write(1);
    }
}

impl Serial {
    /// A console that writes to `output` and takes what can be read from `input`, if there is one.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(output: Output, input: Option<File>) -> io::Result<Self> {
        let interrupt = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let input_emptied = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let (line, emptied) = (Line(interrupt.clone()), InputEmptied(input_emptied.clone()));
        let uart = Uart::with_events(line, emptied, output);
        Ok(Self { input: Mutex::new(input), interrupt, input_emptied, uart: Mutex::new(uart) })
    }

    /// The eventfd to hand to KVM as an irqfd.
    pub fn interrupt_fd(&self) -> &EventFd {
        &self.interrupt
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves as much input as the FIFO holds. True while there may be more.
    fn receive(&self, input: &mut File) -> bool {
        let mut uart = self.uart();
        let mut buffer = [0; FIFO_BYTES];
        let capacity = uart.fifo_capacity().min(FIFO_BYTES);
        if capacity == 0 {
            // A restored console may be full; reading nothing would look like the end of input.
            return true;
        }
        let Some(buffer) = buffer.get_mut(..capacity) else { return true };
        match input.read(buffer) {
            Ok(0) => false,
            Ok(count) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                if let Err(error) = uart.enqueue_raw_bytes(bytes) {
                    tracing::debug!(?error, "console input is lost: the guest looped its UART");
                }
                true
            }
            Err(error) => {
                matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
            }
        }
    }
}

/// Input is moved this many bytes at a time: the size of the UART's FIFO in `vm-superio`.
const FIFO_BYTES: usize = 0x40;

impl MmioDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // Wider accesses read the first register they touch.
        if let (Ok(offset), Some(byte)) = (u8::try_from(offset), data.first_mut()) {
            *byte = self.uart().read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), Some(byte)) = (u8::try_from(offset), data.first())
            && let Err(error) = self.uart().write(offset, *byte)
        {
            tracing::debug!(?error, "console output is lost");
        }
    }
}

impl EventSubscriber for Serial {
    fn init(&self, ops: &mut EventOps<'_>) {
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(input) = input.as_ref() {
            // A regular file cannot be waited for (EPERM), so it is no console input.
            watch(ops, self.input_emptied.as_raw_fd());
            watch(ops, input.as_raw_fd());
        }
    }

    fn process(&self, events: Events, ops: &mut EventOps<'_>) {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = input.as_mut() else { return };
        if events.fd() == self.input_emptied.as_raw_fd() {
            let _ = self.input_emptied.read();
            // Fails where input is being watched already, which is just as well.
            let _ = ops.add(Events::new_raw(file.as_raw_fd(), EventSet::IN));
            return;
        }
        let open = self.receive(file);
        let full = self.uart().fifo_capacity() == 0;
        if !open || full {
            let _ = ops.remove(Events::new_raw(file.as_raw_fd(), EventSet::IN));
        }
        if !open {
            *input = None;
        }
    }
}

fn watch(ops: &mut EventOps<'_>, fd: RawFd) {
    if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
        tracing::warn!(fd, %error, "console input cannot be watched");
    }
}
