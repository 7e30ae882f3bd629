//! Bytes from the guest that the host has not taken yet: empty, and without a buffer, as long as
//! the host reads.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::os::unix::net::UnixStream;

use super::bytes::GuestBytes;

/// Bytes that wait. Whoever adds to them bounds them (by the credit of their connection).
#[derive(Debug, Default)]
pub struct Backlog(VecDeque<u8>);

impl Backlog {
    /// True if nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, bytes: &GuestBytes<'_>) {
        if bytes.is_empty() {
            return;
        }
        let mut copy = vec![0; bytes.len()];
        bytes.copy_to(&mut copy);
        self.0.reserve_exact(copy.len());
        self.0.extend(copy);
    }

    /// Writes until nothing waits or the socket is full; the number of bytes written.
    pub fn write_to(&mut self, stream: &mut UnixStream) -> io::Result<usize> {
        let mut total = 0;
        while !self.0.is_empty() {
            let (first, second) = self.0.as_slices();
            match stream.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.0.drain(..written);
                    total += written;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
        Ok(total)
    }
}

/// The last bytes of a connection that the guest has closed.
#[derive(Debug)]
pub struct Remainder {
    stream: UnixStream,
    backlog: Backlog,
}

impl Remainder {
    /// What of `backlog` the host does not take stays here.
    #[must_use]
    pub fn new(stream: UnixStream, backlog: Backlog) -> Self {
        Self { stream, backlog }
    }

    /// Writes what the host takes. True when there is nothing left to do.
    pub fn flush(&mut self) -> bool {
        self.backlog.write_to(&mut self.stream).is_err() || self.backlog.is_empty()
    }
}
