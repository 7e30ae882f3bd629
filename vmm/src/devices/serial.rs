//! The serial console: a 16550 whose output goes to a file, up to a limit.
//!
//! | what | a hostile guest can | so |
//! |---|---|---|
//! | output | write for ever | past the limit bytes are dropped, with one line that says so |
//! | output | fill the host's disk or stall on a reader | the limit; pipes are made non-blocking, and what does not fit is dropped |
//! | registers | write any byte anywhere | vm-superio holds eight registers and a 64 byte buffer |
//!
//! Bytes are collected to lines: a write per character would cost a boot tens of milliseconds.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::lock::lock;
use crate::outcome::Outcome;

/// Lines longer than this are written in pieces.
const BUFFER: usize = 1024;
const LIMIT_NOTICE: &[u8] = b"\n[console limit reached, the rest is dropped]\n";

/// The registers of the port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

impl Default for SerialState {
    /// After power-on.
    fn default() -> Self {
        (&vm_superio::SerialState::default()).into()
    }
}

/// The device.
pub struct Console<W: Write + Send>(Mutex<Port<W>>);

type Port<W> = Serial<Line, NoEvents, Sink<W>>;

impl<W: Write + Send> fmt::Debug for Console<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl<W: Write + Send> Console<W> {
    /// A console whose port has this state, raises `line`, and writes at most `limit` bytes to `out`.
    pub fn new(state: &SerialState, line: EventFd, out: W, limit: u64) -> io::Result<Self> {
        let sink = Sink {
            out,
            left: limit,
            buffer: Vec::with_capacity(BUFFER),
            failed: false,
        };
        let port = Serial::from_state(&state.into(), Line(line), NoEvents, sink);
        Ok(Self(Mutex::new(port.map_err(io::Error::other)?)))
    }

    /// The port's registers.
    pub fn save(&self) -> SerialState {
        let mut port = self.lock();
        port.writer_mut().write_out();
        (&port.state()).into()
    }

    /// Raises the interrupt once, in case one was on its way when the registers were saved.
    pub fn wake(&self) {
        if let Err(error) = self.lock().interrupt_evt().trigger() {
            log::warn!("serial port: {error}");
        }
    }

    /// Writes out what is still buffered.
    pub fn flush(&self) {
        self.lock().writer_mut().write_out();
    }

    fn lock(&self) -> MutexGuard<'_, Port<W>> {
        lock(&self.0)
    }
}

/// Opens what the spec names; a descriptor is made non-blocking.
pub fn non_blocking(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    rustix::fs::fcntl_setfl(file, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(())
}

impl<W: Write + Send> BusDevice for Console<W> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (Ok(offset), mut serial) = (u8::try_from(offset), self.lock()) else {
            return;
        };
        // One register, however wide or long the access: that is what a string read does.
        for byte in data {
            *byte = serial.read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> ControlFlow<Outcome> {
        if let Ok(offset) = u8::try_from(offset) {
            let mut serial = self.lock();
            for &byte in data {
                if let Err(error) = serial.write(offset, byte) {
                    // Loopback overrun by the guest, or an interrupt that could not be raised.
                    log::debug!("serial port: {error}");
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// The port's interrupt line.
#[derive(Debug)]
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Collects lines and counts bytes. Never reports an error: to the guest, its serial port works.
#[derive(Debug)]
struct Sink<W: Write> {
    out: W,
    left: u64,
    buffer: Vec<u8>,
    failed: bool,
}

impl<W: Write> Sink<W> {
    fn write_out(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        match self.out.write_all(&self.buffer) {
            Ok(()) => self.failed = false,
            Err(error) if !self.failed => {
                log::warn!("console output is lost: {error}");
                self.failed = true;
            }
            Err(_) => {}
        }
        self.buffer.clear();
    }

    fn take(&mut self, byte: u8) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        self.buffer.push(byte);
        if self.left == 0 {
            self.buffer.extend_from_slice(LIMIT_NOTICE);
        }
        if byte == b'\n' || self.buffer.len() >= BUFFER || self.left == 0 {
            self.write_out();
        }
    }
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.take(byte);
        }
        Ok(bytes.len())
    }

    /// The serial port flushes after every byte; lines are what we want.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Between the same registers under two names; both ways take them apart whole.
macro_rules! same_registers {
    ($from:ty => $to:ty) => {
        impl From<&$from> for $to {
            fn from(state: &$from) -> Self {
                type From = $from;
                let From {
                    baud_divisor_low,
                    baud_divisor_high,
                    interrupt_enable,
                    interrupt_identification,
                    line_control,
                    line_status,
                    modem_control,
                    modem_status,
                    scratch,
                    in_buffer,
                } = state.clone();
                Self {
                    baud_divisor_low,
                    baud_divisor_high,
                    interrupt_enable,
                    interrupt_identification,
                    line_control,
                    line_status,
                    modem_control,
                    modem_status,
                    scratch,
                    in_buffer,
                }
            }
        }
    };
}

same_registers!(vm_superio::SerialState => SerialState);
same_registers!(SerialState => vm_superio::SerialState);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut inner = self.0.lock().unwrap();
            inner.0.extend_from_slice(bytes);
            inner.1 += 1;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn boot<W: Write + Send>(out: W, limit: u64) -> Console<W> {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        Console::new(&SerialState::default(), line, out, limit).unwrap()
    }

    fn console(limit: u64) -> (Console<Shared>, Shared) {
        let out = Shared::default();
        (boot(out.clone(), limit), out)
    }

    fn print(console: &Console<Shared>, text: &[u8]) {
        for byte in text {
            assert!(console.write(0, &[*byte]).is_continue());
        }
    }

    #[test]
    fn output_comes_in_lines_and_the_rest_at_the_end() {
        let (console, out) = console(1000);
        print(&console, b"one\ntwo\nthr");
        assert_eq!(*out.0.lock().unwrap(), (b"one\ntwo\n".to_vec(), 2));
        console.flush();
        console.flush();
        assert_eq!(*out.0.lock().unwrap(), (b"one\ntwo\nthr".to_vec(), 3));
    }

    #[test]
    fn output_stops_at_the_limit_and_says_so_once() {
        let (console, out) = console(6);
        print(&console, &[b'x'; 100]);
        assert!(console.write(0, &[b'y'; 100]).is_continue());
        console.flush();
        let written = out.0.lock().unwrap().0.clone();
        assert_eq!(written, [&b"xxxxxx"[..], LIMIT_NOTICE].concat());
    }

    #[test]
    fn a_sink_that_fails_does_not_disturb_the_guest() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let console = boot(Full, 1000);
        assert!(console.write(0, b"a\nb\n").is_continue());
        let mut status = [0; 1];
        console.read(5, &mut status);
        assert_ne!(status[0] & 0x20, 0, "transmitter empty");
    }

    #[test]
    fn a_saved_port_goes_on_in_another() {
        let (console, out) = console(1000);
        print(&console, b"half");
        assert!(console.write(7, &[0x5a]).is_continue());
        let state = console.save();
        assert_eq!(
            out.0.lock().unwrap().0,
            b"half",
            "nothing waits in a saved one"
        );
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let again = Console::new(&state, line, io::sink(), 1).unwrap();
        let mut scratch = [0];
        again.read(7, &mut scratch);
        assert_eq!((scratch, again.save()), ([0x5a], state));
    }

    #[test]
    fn wide_and_odd_accesses_are_harmless() {
        let (console, _) = console(64);
        for offset in 0..8 {
            let mut data = [0xff; 8];
            console.read(offset, &mut data);
            assert!(console.write(offset, &data).is_continue());
        }
        let mut data = [0xff; 4];
        console.read(u64::MAX, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
