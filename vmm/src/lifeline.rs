//! The pipe that ties this process to whoever started it, and the signals that ask it to go.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::events::{EventSet, Registrar, Subscriber};
use crate::outcome::Outcome;

const PIPE: u32 = 0;
const SIGNAL: u32 = 1;

/// A descriptor of our own for one that this process was started with. Asking the kernel for it by number
/// is safe, whatever the number: nobody else's ownership is taken.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(this, number, PidfdGetfdFlags::empty())?)
}

/// Ends the sandbox when the other end of the pipe is closed, or on SIGTERM, SIGINT, SIGHUP.
#[derive(Debug)]
pub struct Lifeline {
    pipe: Option<File>,
    signals: UnixStream,
}

impl Lifeline {
    /// Takes a duplicate of the pipe, if there is one, and the signals.
    pub fn new(pipe: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let pipe = pipe.map(|pipe| pipe.try_clone_to_owned()).transpose()?;
        let pipe = pipe.map(File::from);
        if let Some(pipe) = &pipe {
            crate::devices::serial::non_blocking(pipe)?;
        }
        let (signals, sender) = UnixStream::pair()?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        Ok(Self { pipe, signals })
    }

    /// Starts watching.
    pub fn attach(&self, events: &Registrar) -> io::Result<()> {
        if let Some(pipe) = &self.pipe {
            events.add(pipe, PIPE, EventSet::IN | EventSet::READ_HANG_UP)?;
        }
        events.add(&self.signals, SIGNAL, EventSet::IN)
    }

    /// True if the other end is closed; bytes on the pipe mean nothing and are swallowed.
    fn cut(&mut self) -> bool {
        let mut scrap = [0; 64];
        let Some(pipe) = &mut self.pipe else {
            return false;
        };
        match pipe.read(&mut scrap) {
            Ok(count) => count == 0,
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        }
    }
}

impl Subscriber for Lifeline {
    fn ready(&mut self, token: u32, _: EventSet) -> ControlFlow<Outcome> {
        if token == SIGNAL || self.cut() {
            return ControlFlow::Break(Outcome::Stopped);
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_cut_pipe_stops_and_bytes_do_not() {
        let (reader, writer) = io::pipe().unwrap();
        let mut lifeline = Lifeline::new(Some(reader.as_fd())).unwrap();
        drop(reader);
        io::Write::write_all(&mut &writer, b"hello").unwrap();
        assert!(lifeline.ready(PIPE, EventSet::IN).is_continue());
        assert!(lifeline.ready(PIPE, EventSet::IN).is_continue());
        drop(writer);
        assert_eq!(
            lifeline.ready(PIPE, EventSet::IN).break_value(),
            Some(Outcome::Stopped)
        );
    }

    #[test]
    fn a_number_that_is_no_descriptor_is_an_error() {
        assert!(inherited(1_000_000).is_err());
        assert!(inherited(-1).is_err());
    }
}
