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

/// Reads from `offset` on into `segments`. The count is short only at the end of the file or where
/// `wait` said to stop.
pub fn read(
    file: &File,
    offset: u64,
    memory: &GuestMemoryMmap,
    segments: &[Segment],
    wait: Wait,
) -> Result<u64, Error> {
    let flags = match wait {
        Wait::Yes => 0,
        Wait::No => libc::RWF_NOWAIT,
    };
    transfer(memory, Cursor::new(segments), offset, |vectors, at| {
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
    let wanted: u64 = segments.iter().map(|s| u64::from(s.len)).sum();
    let done = transfer(memory, Cursor::new(segments), offset, |vectors, at| {
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
    if done < wanted {
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

/// Where a transfer stands: which segment, and how far into it.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    segments: &'a [Segment],
    skip: u32,
}

impl<'a> Cursor<'a> {
    fn new(segments: &'a [Segment]) -> Self {
        Self { segments, skip: 0 }
    }

    fn advance(&mut self, mut bytes: usize) {
        while let Some((first, rest)) = self.segments.split_first() {
            let left = first.len - self.skip;
            let step = u32::try_from(bytes).map_or(left, |b| b.min(left));
            bytes -= step as usize;
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
                cursor.advance(n);
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
    let (mut used, mut bytes, mut skip) = (0, 0usize, cursor.skip);
    for segment in cursor.segments {
        let addr = segment
            .addr
            .0
            .checked_add(u64::from(skip))
            .ok_or(Error::OutsideMemory)?;
        // One segment may span two adjacent regions, hence slices in the plural.
        for slice in memory.get_slices(GuestAddress(addr), (segment.len - skip) as usize) {
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
mod tests {
    use std::io::{Read, Seek, Write};

    use vm_memory::Bytes;

    use super::*;

    fn segment(addr: u64, len: u32) -> Segment {
        Segment {
            addr: GuestAddress(addr),
            len,
        }
    }

    fn memory() -> GuestMemoryMmap {
        // Two adjacent regions, then a hole.
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x40000)])
            .unwrap()
    }

    #[test]
    fn any_split_reads_the_same_bytes() {
        let data: Vec<u8> = (0..0x4000u32).map(|i| (i * 7 % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&data).unwrap();
        let memory = memory();
        // 200 segments: more than one call's worth; the first spans both regions.
        let mut segments = vec![segment(0xf80, 0x100)];
        segments.extend((0..199).map(|i| segment(0x4000 + i * 0x80, 0x40)));
        let n = read(&file, 3, &memory, &segments, Wait::Yes).unwrap();
        assert_eq!(n, 0x100 + 199 * 0x40);
        let mut seen = Vec::new();
        for s in &segments {
            let mut piece = vec![0; s.len as usize];
            memory.read_slice(&mut piece, s.addr).unwrap();
            seen.extend(piece);
        }
        assert_eq!(seen, data[3..3 + seen.len()]);
    }

    #[test]
    fn the_end_of_the_file_is_a_short_count() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 100]).unwrap();
        assert_eq!(
            read(&file, 60, &memory(), &[segment(0, 512)], Wait::Yes).unwrap(),
            40
        );
        assert_eq!(
            read(&file, 100, &memory(), &[segment(0, 512)], Wait::Yes).unwrap(),
            0
        );
    }

    #[test]
    fn outside_the_memory_is_refused() {
        let file = tempfile::tempfile().unwrap();
        for bad in [
            segment(0x40fff, 2),
            segment(u64::MAX, 2),
            segment(1 << 40, 1),
        ] {
            let error = write(&file, 0, &memory(), &[segment(0, 16), bad], Sync::No);
            assert!(matches!(error, Err(Error::OutsideMemory)), "{bad:?}");
        }
    }

    #[test]
    fn writes_arrive_whole() {
        let memory = memory();
        memory
            .write_slice(b"hello world", GuestAddress(0xffa))
            .unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let pieces = [segment(0xffa, 3), segment(0xffd, 8)];
        write(&file, 5, &memory, &pieces, Sync::Data).unwrap();
        let mut text = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut text).unwrap();
        assert_eq!(text, b"\0\0\0\0\0hello world");
    }

    #[test]
    fn a_read_only_file_cannot_be_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let file = File::open(file.path()).unwrap();
        let error = write(&file, 0, &memory(), &[segment(0, 16)], Sync::No);
        assert!(matches!(error, Err(Error::Io(_))));
    }

    #[test]
    fn advance_skips_across_segments() {
        let mut list = [segment(0, 10), segment(100, 10), segment(200, 10)];
        assert_eq!(advance(&mut list, 16), [segment(106, 4), segment(200, 10)]);
        assert!(advance(&mut list, 1000).is_empty());
        let mut list = [segment(0, 16), segment(100, 10)];
        assert_eq!(advance(&mut list, 16), [segment(100, 10)]);
    }
}
