//! One connection to the host: bytes in, frames out, nothing blocks.
//!
//! What must hold: descriptors are watched edge-triggered (epoll(7)), so `readable` and `writable`
//! stay set until the kernel has said "would block". A closed connection takes what is queued and
//! forgets it.

use std::mem;
use std::os::fd::OwnedFd;

use rundlet_protocol::frame::{HEADER, MAX_DATA};
use rundlet_protocol::{Frame, FrameError, Reply};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;

/// Bytes read at a time: a data frame of full length.
const CHUNK: usize = HEADER + MAX_DATA;

/// A buffer that one long control message has made larger than this is given back.
const KEEP: usize = 4 * CHUNK;

/// Enough waits to be sent: no more output is read from the command until some of it has gone.
const ENOUGH: usize = CHUNK;

#[derive(Debug)]
pub(crate) struct Connection {
    /// `None` once this end has been closed as well.
    fd: Option<OwnedFd>,
    inbound: Vec<u8>,
    outbound: Vec<u8>,
    /// How many bytes of `outbound` have gone.
    sent: usize,
    readable: bool,
    writable: bool,
    /// The peer has ended the connection, or it broke.
    closed: bool,
    finishing: bool,
}

impl Connection {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Connection {
            fd: Some(fd),
            inbound: Vec::new(),
            outbound: Vec::new(),
            sent: 0,
            readable: true,
            writable: true,
            closed: false,
            finishing: false,
        }
    }

    pub(crate) fn fd(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    /// Ends the connection from this side, now.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.fd = None;
        (self.inbound, self.outbound) = (Vec::new(), Vec::new());
        self.sent = 0;
    }

    pub(crate) fn notice(&mut self, flags: EventFlags) {
        let broken = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        self.readable |= broken || flags.contains(EventFlags::IN);
        self.writable |= broken || flags.contains(EventFlags::OUT);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the host reads too slowly for more output to be worth reading.
    pub(crate) fn is_full(&self) -> bool {
        self.outbound.len() - self.sent >= ENOUGH
    }

    /// Reads once. Whether anything came.
    pub(crate) fn fill(&mut self) -> bool {
        let Some(fd) = self.fd.as_ref().filter(|_| self.readable && !self.closed) else {
            return false;
        };
        self.inbound.reserve(CHUNK);
        match rustix::io::read(fd, spare_capacity(&mut self.inbound)) {
            Ok(0) => self.closed = true,
            Ok(_) => return true,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.readable = false,
            Err(_) => self.closed = true,
        }
        false
    }

    /// Takes what has been read, so that frames may be looked at while replies are queued.
    pub(crate) fn take_inbound(&mut self) -> Vec<u8> {
        mem::take(&mut self.inbound)
    }

    /// Gives back what [`Self::take_inbound`] took, of which `used` bytes are done with.
    pub(crate) fn put_inbound(&mut self, mut bytes: Vec<u8>, used: usize) {
        bytes.drain(..used);
        if bytes.is_empty() && bytes.capacity() > KEEP {
            bytes = Vec::new();
        }
        self.inbound = bytes;
    }

    pub(crate) fn queue(&mut self, frame: &Frame<'_>) -> Result<(), FrameError> {
        if self.fd.is_none() {
            return Ok(());
        }
        frame.encode(&mut self.outbound)
    }

    pub(crate) fn reply(&mut self, reply: &Reply) -> Result<(), FrameError> {
        let json = serde_json::to_vec(reply).map_err(FrameError::Message)?;
        self.queue(&Frame::Control(&json))
    }

    /// Nothing more will be queued: once all has gone, the host is told so.
    pub(crate) fn finish(&mut self) {
        self.finishing = true;
    }

    /// Writes once. Whether anything went.
    pub(crate) fn flush(&mut self) -> bool {
        let Some(fd) = &self.fd else { return false };
        let waiting = self.outbound.get(self.sent..).unwrap_or_default();
        if waiting.is_empty() {
            self.outbound.clear();
            self.sent = 0;
            if mem::take(&mut self.finishing) {
                // A peer that is gone needs no telling.
                let _ = rustix::net::shutdown(fd, Shutdown::Write);
            }
            return false;
        }
        if !self.writable || self.closed {
            return false;
        }
        match rustix::io::write(fd, waiting) {
            Ok(count) => {
                self.sent += count;
                if self.sent >= ENOUGH {
                    self.outbound.drain(..self.sent);
                    self.sent = 0;
                }
                return true;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.writable = false,
            Err(_) => self.closed = true,
        }
        false
    }
}
