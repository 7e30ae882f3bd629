//! Signals to us, and what they mean for the command.

use std::io;
use std::thread;

use signal_hook::consts;
use signal_hook::iterator::Signals;

/// The terminal's size has changed.
pub(crate) const SIGWINCH: i32 = consts::SIGWINCH;

/// Those that are passed on to the command.
const PASSED_ON: [i32; 6] = [
    consts::SIGINT,
    consts::SIGTERM,
    consts::SIGHUP,
    consts::SIGQUIT,
    consts::SIGUSR1,
    consts::SIGUSR2,
];

/// Calls `each` with every signal until it says `false`.
pub(crate) fn listen(each: impl Fn(i32) -> bool + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new(PASSED_ON.iter().chain(&[SIGWINCH]))?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in &mut signals {
                if !each(signal) {
                    return;
                }
            }
        })?;
    Ok(())
}

/// A shell's exit code for what a signal ended.
pub(crate) fn code(signal: i32) -> u8 {
    u8::try_from(signal).map_or(super::OUR_ERROR, |signal| signal.saturating_add(128))
}

/// Counts the signals that ask for an end: the first is the command's to handle, the second ends the
/// sandbox whatever the command does.
#[derive(Debug, Default)]
pub(crate) struct Interrupts(u32);

impl Interrupts {
    pub(crate) fn is_last(&mut self, signal: i32) -> bool {
        if !asks_for_an_end(signal) {
            return false;
        }
        self.0 += 1;
        self.0 > 1
    }
}

/// Whether whoever sent it wants us to end.
pub(crate) fn asks_for_an_end(signal: i32) -> bool {
    ![consts::SIGUSR1, consts::SIGUSR2, SIGWINCH].contains(&signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_request_to_end_is_the_last() {
        let mut interrupts = Interrupts::default();
        assert!(!interrupts.is_last(consts::SIGUSR1));
        assert!(!interrupts.is_last(consts::SIGINT));
        assert!(!interrupts.is_last(consts::SIGUSR2));
        assert!(interrupts.is_last(consts::SIGTERM));
        assert_eq!(code(consts::SIGINT), 130);
    }
}
