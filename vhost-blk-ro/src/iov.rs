//! Guest memory to file and back without a copy in between: `preadv2`/`pwritev2` on the guest's own
//! pages. The only unsafe code of this crate.
//!
//! Must hold: every pointer handed to the kernel comes from a bounds-checked slice of the mapped
//! memory table and is used while that table is borrowed, so a guest address can only ever name
//! memory that its front end shared with us. Pages that vanish under the mapping give `EFAULT`,
//! not a signal.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// A piece of guest memory that a descriptor named; not known to be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub addr: GuestAddress,
    pub len: u32,
}

#[derive(Debug, Error)]
pub enum Error {
    /// The guest pointed outside the memory its front end shared.
    #[error("buffer outside the shared memory")]
    OutsideMemory,
    #[error("cannot move data between the file and guest memory")]
    Io(#[source] io::Error),
}

/// The `bytes` of a stream of segments that come after its first `skip`.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    pub segments: &'a [Segment],
    pub skip: u64,
    pub bytes: u64,
}

impl<'a> Span<'a> {
    pub fn whole(segments: &'a [Segment]) -> Self {
        Self {
            segments,
            skip: 0,
            bytes: segments.iter().map(|s| u64::from(s.len)).sum(),
        }
    }
}

/// Vectors per system call. A longer request takes several calls; the array lives on the stack.
const VECTORS: usize = 64;

/// How a read treats data that is not in the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Read it from the medium.
    Yes,
    /// Stop there: a short count, or `EAGAIN` when not a byte was there.
    No,
}

/// Reads from `offset` on into `span`. The count is short only at the end of the file or where
/// `wait` said to stop.
pub fn read(
    file: &File,
    offset: u64,
    memory: &GuestMemoryMmap,
    span: Span<'_>,
    wait: Wait,
) -> Result<u64, Error> {
    let flags = match wait {
        Wait::Yes => 0,
        Wait::No => libc::RWF_NOWAIT,
    };
    transfer(memory, Cursor::new(span), offset, |vectors, at| {
        // SAFETY: the vectors point into mappings that `memory` keeps alive for the whole call and
        // were bounds-checked by `gather`; the kernel writes at most their lengths. Guest memory is
        // shared with the guest by nature, no Rust reference to it exists.
        unsafe {
            libc::preadv2(
                file.as_raw_fd(),
                vectors.as_ptr(),
                count(vectors),
                at,
                flags,
            )
        }
    })
}

/// When a write may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// As soon as it is readable.
    No,
    /// When it would survive a power cut (`RWF_DSYNC`).
    Data,
}

/// Writes all of `segments` from `offset` on.
pub fn write(
    file: &File,
    offset: u64,
    memory: &GuestMemoryMmap,
    segments: &[Segment],
    sync: Sync,
) -> Result<(), Error> {
    let flags = match sync {
        Sync::No => 0,
        Sync::Data => libc::RWF_DSYNC,
    };
    let span = Span::whole(segments);
    let done = transfer(memory, Cursor::new(span), offset, |vectors, at| {
        // SAFETY: as in `read`; the kernel only reads through these vectors.
        unsafe {
            libc::pwritev2(
                file.as_raw_fd(),
                vectors.as_ptr(),
                count(vectors),
                at,
                flags,
            )
        }
    })?;
    if done < span.bytes {
        return Err(Error::Io(io::ErrorKind::WriteZero.into()));
    }
    Ok(())
}

/// Skips the first `bytes` of `segments` in place and returns the rest.
pub fn advance(segments: &mut [Segment], mut bytes: u64) -> &mut [Segment] {
    let mut first = 0;
    for segment in segments.iter_mut() {
        let step = bytes.min(u64::from(segment.len));
        bytes -= step;
        let step = u32::try_from(step).unwrap_or(segment.len);
        if step < segment.len {
            segment.addr = GuestAddress(segment.addr.0.wrapping_add(u64::from(step)));
            segment.len -= step;
            break;
        }
        first += 1;
    }
    &mut segments[first..]
}

/// Where a transfer stands: which segment, how far into it, and how much is left in all.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    segments: &'a [Segment],
    skip: u32,
    left: u64,
}

impl<'a> Cursor<'a> {
    fn new(span: Span<'a>) -> Self {
        let mut cursor = Self {
            segments: span.segments,
            skip: 0,
            left: u64::MAX,
        };
        cursor.advance(span.skip);
        Self {
            left: span.bytes,
            ..cursor
        }
    }

    fn advance(&mut self, mut bytes: u64) {
        self.left -= bytes;
        while let Some((first, rest)) = self.segments.split_first() {
            let left = first.len - self.skip;
            let step = u32::try_from(bytes).map_or(left, |b| b.min(left));
            bytes -= u64::from(step);
            self.skip += step;
            if self.skip < first.len {
                return;
            }
            self.segments = rest;
            self.skip = 0;
            if bytes == 0 {
                return;
            }
        }
    }
}

fn transfer(
    memory: &GuestMemoryMmap,
    mut cursor: Cursor<'_>,
    offset: u64,
    mut call: impl FnMut(&[libc::iovec], libc::off_t) -> libc::ssize_t,
) -> Result<u64, Error> {
    let mut vectors = [const {
        libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }
    }; VECTORS];
    let mut done = 0u64;
    loop {
        let (used, bytes) = gather(memory, cursor, &mut vectors)?;
        if bytes == 0 {
            return Ok(done);
        }
        let at = offset
            .checked_add(done)
            .and_then(|at| libc::off_t::try_from(at).ok());
        let at = at.ok_or_else(|| Error::Io(io::Error::from_raw_os_error(libc::EFBIG)))?;
        match usize::try_from(call(&vectors[..used], at)) {
            Ok(0) => return Ok(done),
            Ok(n) => {
                done += n as u64;
                cursor.advance(n as u64);
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock if done > 0 => return Ok(done),
                    _ => return Err(Error::Io(error)),
                }
            }
        }
    }
}

/// Fills `vectors` from `cursor` on; returns how many are filled and how many bytes they cover.
fn gather(
    memory: &GuestMemoryMmap,
    cursor: Cursor<'_>,
    vectors: &mut [libc::iovec; VECTORS],
) -> Result<(usize, usize), Error> {
    let (mut used, mut bytes, mut skip, mut left) = (0, 0usize, cursor.skip, cursor.left);
    for segment in cursor.segments {
        if left == 0 {
            break;
        }
        let addr = segment
            .addr
            .0
            .checked_add(u64::from(skip))
            .ok_or(Error::OutsideMemory)?;
        let len = u64::from(segment.len - skip).min(left);
        left -= len;
        let len = usize::try_from(len).map_err(|_| Error::OutsideMemory)?;
        // One segment may span two adjacent regions, hence slices in the plural.
        for slice in memory.get_slices(GuestAddress(addr), len) {
            if used == VECTORS {
                return Ok((used, bytes));
            }
            let slice = slice.map_err(|_| Error::OutsideMemory)?;
            let base = slice.ptr_guard_mut().as_ptr().cast();
            vectors[used] = libc::iovec {
                iov_base: base,
                iov_len: slice.len(),
            };
            used += 1;
            bytes = bytes.checked_add(slice.len()).ok_or(Error::OutsideMemory)?;
        }
        skip = 0;
    }
    Ok((used, bytes))
}

fn count(vectors: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(vectors.len()).expect("at most VECTORS")
}

#[cfg(test)]
mod tests;
