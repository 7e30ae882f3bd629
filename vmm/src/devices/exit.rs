//! The ways out: the exit port, which our guest kernel writes, and the reset line of the keyboard
//! controller, which every PC kernel knows.

use std::ops::ControlFlow;

use crate::bus::BusDevice;
use crate::outcome::Outcome;

/// Values of the exit port.
const POWER_OFF: u32 = 0;
const RESTART: u32 = 1;
const PANIC: u32 = 2;
/// Keyboard controller command: pulse the CPU's reset line.
const PULSE_RESET: u8 = 0xfe;

/// A port whose 32-bit writes say how the guest ended. Other widths and values mean nothing.
#[derive(Debug)]
pub struct ExitPort;

impl BusDevice for ExitPort {
    fn read(&self, _: u64, _: &mut [u8]) {}

    fn write(&self, offset: u64, data: &[u8]) -> ControlFlow<Outcome> {
        // A string instruction brings several words in one exit; the first one counts.
        let (0, Some(word)) = (offset, data.first_chunk::<4>()) else {
            return ControlFlow::Continue(());
        };
        match u32::from_le_bytes(*word) {
            POWER_OFF => ControlFlow::Break(Outcome::PowerOff),
            RESTART => ControlFlow::Break(Outcome::Restart),
            PANIC => ControlFlow::Break(Outcome::Panic),
            _ => ControlFlow::Continue(()),
        }
    }
}

/// The keyboard controller's command port: no keyboard, never busy, one reset line.
#[derive(Debug)]
pub struct ResetLine;

impl BusDevice for ResetLine {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) -> ControlFlow<Outcome> {
        if data.contains(&PULSE_RESET) {
            return ControlFlow::Break(Outcome::Restart);
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(device: &dyn BusDevice, data: &[u8]) -> Option<Outcome> {
        device.write(0, data).break_value()
    }

    #[test]
    fn each_word_has_its_outcome() {
        assert_eq!(end(&ExitPort, &[0, 0, 0, 0]), Some(Outcome::PowerOff));
        assert_eq!(end(&ExitPort, &[1, 0, 0, 0]), Some(Outcome::Restart));
        assert_eq!(end(&ExitPort, &[2, 0, 0, 0]), Some(Outcome::Panic));
        assert_eq!(end(&ResetLine, &[0xfe]), Some(Outcome::Restart));
    }

    #[test]
    fn anything_else_is_ignored() {
        for data in [&[0][..], &[0, 0], &[3, 0, 0, 0], &[0, 0, 0, 1], &[]] {
            assert_eq!(end(&ExitPort, data), None, "{data:?}");
        }
        assert!(ExitPort.write(1, &[0, 0, 0, 0]).is_continue());
        assert_eq!(end(&ResetLine, &[0xd1]), None);
    }
}
