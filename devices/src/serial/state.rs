//! What of a serial console survives a suspend: its registers, and input that the guest has not
//! read. Output has left it already.

use std::io;

use rotifer_snapshot::{LoadError, Stateful, Tag};
use serde::{Deserialize, Serialize};
use vm_superio::serial::SerialState;

use super::{FIFO_BYTES, InputEmptied, Line, Serial, Uart};

/// Registers by their names in the data sheet of the 16550.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    dll: u8,
    dlm: u8,
    ier: u8,
    iir: u8,
    lcr: u8,
    lsr: u8,
    mcr: u8,
    msr: u8,
    scr: u8,
    unread: Vec<u8>,
}

/// Shared with the bus, hence the reference.
impl Stateful for &Serial {
    const TAG: Tag = Tag { kind: *b"UART", version: 1 };
    type State = State;

    fn save(&self) -> State {
        let uart = self.uart().state();
        State {
            dll: uart.baud_divisor_low,
            dlm: uart.baud_divisor_high,
            ier: uart.interrupt_enable,
            iir: uart.interrupt_identification,
            lcr: uart.line_control,
            lsr: uart.line_status,
            mcr: uart.modem_control,
            msr: uart.modem_status,
            scr: uart.scratch,
            unread: uart.in_buffer,
        }
    }

    /// Each register holds what a guest could have put there; only the FIFO has a limit.
    fn load(&mut self, state: State) -> Result<(), LoadError> {
        let State { dll, dlm, ier, iir, lcr, lsr, mcr, msr, scr, unread } = state;
        let unread_bytes = unread.len() as u64;
        let too_long = |_| LoadError::Invalid {
            tag: Self::TAG,
            field: "unread",
            value: unread_bytes,
            reason: "more input than the FIFO holds",
        };
        if unread.len() > FIFO_BYTES {
            return Err(too_long(()));
        }
        let registers = SerialState {
            baud_divisor_low: dll,
            baud_divisor_high: dlm,
            interrupt_enable: ier,
            interrupt_identification: iir,
            line_control: lcr,
            line_status: lsr,
            modem_control: mcr,
            modem_status: msr,
            scratch: scr,
            in_buffer: unread,
        };
        let line = || Line(self.interrupt.clone());
        let emptied = || InputEmptied(self.input_emptied.clone());
        let mut uart = self.uart();
        let unused = Uart::with_events(line(), emptied(), Box::new(io::sink()));
        let output = std::mem::replace(&mut *uart, unused).into_writer();
        *uart =
            Uart::from_state(&registers, line(), emptied(), output).map_err(|_| too_long(()))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rotifer_snapshot::Section;

    use super::*;
    use crate::MmioDevice;

    const RECEIVED: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;
    const SCRATCH: u64 = 7;

    fn serial() -> Serial {
        Serial::new(Box::new(io::sink()), None).unwrap()
    }

    fn read(serial: &Serial, register: u64) -> u8 {
        let mut data = [0];
        serial.read(register, &mut data);
        data[0]
    }

    #[test]
    fn registers_and_unread_input_survive_and_the_guest_is_told_again() {
        let saved = serial();
        saved.write(SCRATCH, &[0x5a]);
        saved.write(INTERRUPT_ENABLE, &[1]);
        saved.uart().enqueue_raw_bytes(b"hi").unwrap();
        let restored = serial();
        (&restored).load_section(&(&saved).save_section()).unwrap();
        assert_eq!(restored.interrupt_fd().read().unwrap(), 1);
        assert_eq!(read(&restored, SCRATCH), 0x5a);
        assert_eq!([read(&restored, RECEIVED), read(&restored, RECEIVED)], *b"hi");
        assert_eq!(read(&restored, LINE_STATUS) & 1, 0, "nothing is left");
    }

    #[test]
    fn more_input_than_there_is_room_for_is_refused() {
        let device = serial();
        let mut state = (&device).save();
        state.unread = vec![0; FIFO_BYTES + 1];
        let error = (&device).load(state).unwrap_err().to_string();
        assert!(error.contains("unread = 65"), "{error}");
    }
}
