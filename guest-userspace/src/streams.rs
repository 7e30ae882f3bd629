//! A command's streams between its pipes (or terminal) and the frames of its connection, with the
//! credit of `rundlet_protocol`.
//!
//! What must hold: neither direction buffers more than [`WINDOW`] bytes, whatever the two sides do.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rundlet_protocol::{Frame, FrameError, Stream, TtySize, WINDOW};
use rustix::event::epoll::EventFlags;
use rustix::io::{Errno, ioctl_fionread};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};

use crate::connection::Connection;
use crate::process;

/// Credit is given back in portions of this size, to keep frames of four bytes rare.
const CREDIT_PORTION: u32 = WINDOW / 4;

/// More than a terminal can hold when its program ends: the kernel's pty has 8 KiB on the way and
/// 4 KiB ready to read.
const TERMINAL_REST: usize = 64 * 1024;

/// stdout or stderr.
#[derive(Debug)]
pub(crate) struct Output {
    stream: Stream,
    /// `None` once no more bytes will come.
    fd: Option<OwnedFd>,
    /// A terminal's other end, open as long as the command lives.
    slave: Option<OwnedFd>,
    ready: bool,
    credit: u32,
    /// Whether nobody hears of it any more, so that it needs no credit.
    unheard: bool,
    /// Set when the command has ended: how much of it may still be in the pipe.
    left: Option<usize>,
}

impl Output {
    pub(crate) fn new(stream: Stream, fd: OwnedFd, slave: Option<OwnedFd>) -> Self {
        Output {
            stream,
            fd: Some(fd),
            slave,
            ready: true,
            credit: WINDOW,
            unheard: false,
            left: None,
        }
    }

    pub(crate) fn stream(&self) -> Stream {
        self.stream
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn notice(&mut self) {
        self.ready = true;
    }

    /// Whether the host has been told that no more bytes will come.
    pub(crate) fn is_done(&self) -> bool {
        self.fd.is_none()
    }

    /// The host gives credit back. False when it gives more than it ever took.
    #[must_use]
    pub(crate) fn add_credit(&mut self, credit: u32) -> bool {
        let sum = self.credit.checked_add(credit);
        self.credit = sum.unwrap_or(u32::MAX);
        self.credit <= WINDOW
    }

    /// From now on it is read and thrown away.
    pub(crate) fn throw_away(&mut self) {
        self.unheard = true;
        self.credit = WINDOW;
    }

    pub(crate) fn resize(&self, size: TtySize) {
        if let (Some(fd), Some(_)) = (&self.fd, &self.slave) {
            // A terminal that is going away has no size.
            let _ = process::resize(fd, size);
        }
    }

    /// The command has ended. What it wrote is in the pipe by now; what others write later is not
    /// waited for.
    pub(crate) fn command_ended(&mut self) {
        let Some(fd) = &self.fd else { return };
        let rest = match self.slave.take() {
            Some(_) => TERMINAL_REST,
            None => ioctl_fionread(fd).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(0)),
        };
        self.left = Some(rest);
        self.ready = true;
    }

    /// Passes at most one frame on. Whether anything happened.
    pub(crate) fn pump(
        &mut self,
        scratch: &mut [u8],
        to: &mut Connection,
    ) -> Result<bool, FrameError> {
        let Some(fd) = &self.fd else { return Ok(false) };
        let left = self.left.unwrap_or(usize::MAX);
        if left > 0 && (!self.ready || self.credit == 0 || to.is_full()) {
            return Ok(false);
        }
        let most = scratch.len().min(self.credit as usize).min(left);
        let space = scratch.get_mut(..most).unwrap_or_default();
        if space.is_empty() {
            return self.end(to);
        }
        match rustix::io::read(fd, &mut *space) {
            Ok(0) => self.end(to),
            Ok(count) => {
                let bytes = space.get(..count).unwrap_or_default();
                to.queue(&Frame::Data(self.stream, bytes))?;
                if !self.unheard {
                    self.credit -= u32::try_from(count).unwrap_or(self.credit);
                }
                self.left = self.left.map(|left| left.saturating_sub(count));
                Ok(true)
            }
            Err(Errno::INTR) => Ok(true),
            Err(Errno::AGAIN) if self.left.is_none() => {
                self.ready = false;
                Ok(false)
            }
            // A terminal says EIO when its programs have gone.
            Err(_) => self.end(to),
        }
    }

    fn end(&mut self, to: &mut Connection) -> Result<bool, FrameError> {
        self.fd = None;
        to.queue(&Frame::Eof(self.stream))?;
        Ok(true)
    }
}

/// stdin.
#[derive(Debug)]
pub(crate) struct Input {
    /// `None` once the command reads no more, or the host has said all.
    fd: Option<OwnedFd>,
    terminal: bool,
    ready: bool,
    pending: Vec<u8>,
    /// How many bytes of `pending` have been written.
    written: usize,
    host_ended: bool,
    /// Bytes the host has sent and got no credit back for.
    owed: u32,
    /// Those of them that are out of our hands.
    freed: u32,
}

/// The host sent more than it had credit for, or after the end.
#[derive(Debug)]
pub(crate) struct Overrun;

impl Input {
    pub(crate) fn new(fd: OwnedFd, terminal: bool) -> Self {
        Input {
            fd: Some(fd),
            terminal,
            ready: true,
            pending: Vec::new(),
            written: 0,
            host_ended: false,
            owed: 0,
            freed: 0,
        }
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn notice(&mut self, flags: EventFlags) {
        self.ready = true;
        // A pipe says so when its last reader has gone; a terminal does not.
        if flags.contains(EventFlags::ERR) && !self.terminal {
            self.close();
        }
    }

    /// Bytes from the host. A command that has closed its stdin gets none, and costs the host none of
    /// its credit.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Overrun> {
        let count = u32::try_from(bytes.len()).map_err(|_| Overrun)?;
        let owed = self.owed.checked_add(count);
        self.owed = owed.filter(|owed| *owed <= WINDOW).ok_or(Overrun)?;
        if self.host_ended {
            return Err(Overrun);
        }
        if self.fd.is_some() {
            self.pending.extend_from_slice(bytes);
        } else {
            self.freed += count;
        }
        Ok(())
    }

    /// The host's end of the stream.
    pub(crate) fn host_ended(&mut self) {
        self.host_ended = true;
    }

    /// Writes once. Whether anything happened.
    pub(crate) fn pump(&mut self) -> bool {
        let Some(fd) = self.fd.as_ref().filter(|_| self.ready) else {
            return false;
        };
        let waiting = self.pending.get(self.written..).unwrap_or_default();
        if waiting.is_empty() {
            self.pending.clear();
            self.written = 0;
            return self.host_ended && self.pass_end_on();
        }
        match rustix::io::write(fd, waiting) {
            Ok(count) => {
                self.written += count;
                self.freed += u32::try_from(count).unwrap_or(0);
                // A writer that is never done must not grow the buffer by what is done.
                if self.written >= CREDIT_PORTION as usize {
                    self.pending.drain(..self.written);
                    self.written = 0;
                }
                true
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => {
                self.ready = false;
                false
            }
            Err(_) => {
                self.close();
                true
            }
        }
    }

    /// A pipe is closed; a terminal that reads lines gets the character that means the end.
    fn pass_end_on(&mut self) -> bool {
        if let Some(fd) = self.fd.as_ref().filter(|_| self.terminal)
            && let Ok(mode) = tcgetattr(fd)
            && mode.local_modes.contains(LocalModes::ICANON)
        {
            let end = mode.special_codes[SpecialCodeIndex::VEOF];
            match rustix::io::write(fd, &[end]) {
                Err(Errno::INTR) => return true,
                Err(Errno::AGAIN) => {
                    self.ready = false;
                    return false;
                }
                _ => {}
            }
        }
        self.close();
        true
    }

    /// Credit to give back now, if there is a whole portion of it.
    pub(crate) fn take_credit(&mut self) -> Option<u32> {
        if self.freed < CREDIT_PORTION {
            return None;
        }
        self.owed = self.owed.saturating_sub(self.freed);
        Some(std::mem::take(&mut self.freed))
    }

    fn close(&mut self) {
        let unread = self.pending.len() - self.written;
        self.freed += u32::try_from(unread).unwrap_or(0);
        self.pending = Vec::new();
        self.written = 0;
        self.fd = None;
    }
}
