//! Descriptor chains as runs of bytes, in place in guest memory.
//!
//! A driver may cut what it sends into descriptors as it likes (virtio 1.2 §2.7.4.1), so nobody looks at
//! single descriptors once a chain is read. Bytes move between guest memory and a socket without a
//! copy here, one system call for each piece; Linux drivers make one piece of a payload.

use std::io;

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    GuestAddress, GuestMemory as _, GuestMemoryError, Permissions, ReadVolatile,
    VolatileMemoryError, VolatileSlice, WriteVolatile,
};

use crate::memory::GuestMemory;

/// The most descriptors looked at in one chain: 64 KiB in pieces of 64 bytes.
const MAX_DESCRIPTORS: usize = 1024;

/// What is wrong with a chain.
#[derive(Debug, Error)]
pub enum BytesError {
    #[error("descriptor at {address:#x}, {len} bytes, lies outside guest memory")]
    OutsideMemory {
        address: u64,
        len: u32,
        #[source]
        source: GuestMemoryError,
    },
    #[error("chain has more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
}

/// Pieces of guest memory that make up one run of bytes. No piece is empty.
#[derive(Debug, Default)]
pub struct GuestBytes<'m> {
    pieces: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> GuestBytes<'m> {
    /// The first `limit` bytes of a chain's readable or writable part. Readable descriptors come
    /// first in a chain (virtio 1.2 §2.7.4.2), so one after a writable one does not count.
    pub fn gather(
        memory: &'m GuestMemory,
        chain: impl Iterator<Item = Descriptor>,
        writable: bool,
        limit: usize,
    ) -> Result<Self, BytesError> {
        let mut bytes = Self::default();
        for (seen, descriptor) in chain.enumerate() {
            if seen == MAX_DESCRIPTORS {
                return Err(BytesError::TooManyDescriptors);
            }
            match (descriptor.is_write_only(), writable) {
                (true, false) => break,
                (false, true) => continue,
                _ => bytes.push(memory, descriptor, limit)?,
            }
            if bytes.len == limit {
                break;
            }
        }
        Ok(bytes)
    }

    fn push(
        &mut self,
        memory: &'m GuestMemory,
        descriptor: Descriptor,
        limit: usize,
    ) -> Result<(), BytesError> {
        let GuestAddress(address) = descriptor.addr();
        let len = descriptor.len();
        let outside = |source| BytesError::OutsideMemory {
            address,
            len,
            source,
        };
        let wanted = usize::try_from(len)
            .unwrap_or(usize::MAX)
            .min(limit - self.len);
        let slices = memory
            .get_slices(descriptor.addr(), wanted, Permissions::ReadWrite)
            .map_err(outside)?;
        for slice in slices {
            let slice = slice.map_err(outside)?;
            self.len += slice.len();
            self.pieces.push(slice);
        }
        Ok(())
    }

    /// How many bytes these are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same bytes without the first `count` (or none, if there are fewer).
    #[must_use]
    pub fn after(&self, count: usize) -> Self {
        let mut skip = count;
        let mut rest = Self::default();
        for piece in &self.pieces {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            if skipped < piece.len() {
                rest.add(piece.offset(skipped).expect("skipped less than its length"));
            }
        }
        rest
    }

    /// The first `count` bytes (or all, if there are fewer).
    #[must_use]
    pub fn first(&self, count: usize) -> Self {
        let mut start = Self::default();
        for piece in &self.pieces {
            let kept = (count - start.len).min(piece.len());
            if kept == 0 {
                break;
            }
            start.add(
                piece
                    .subslice(0, kept)
                    .expect("kept no more than its length"),
            );
        }
        start
    }

    fn add(&mut self, piece: VolatileSlice<'m>) {
        self.len += piece.len();
        self.pieces.push(piece);
    }

    /// Copies the first bytes out, as many as both sides have.
    pub fn copy_to(&self, mut target: &mut [u8]) -> usize {
        let before = target.len();
        for piece in &self.pieces {
            let copied = piece.copy_to(target);
            target = &mut target[copied..];
        }
        before - target.len()
    }

    /// Copies bytes in at the front, as many as both sides have.
    pub fn copy_from(&self, mut source: &[u8]) {
        for piece in &self.pieces {
            let part = source.len().min(piece.len());
            piece.copy_from(&source[..part]);
            source = &source[part..];
        }
    }

    /// Fills them from `source` until it has no more for now; as read(2), 0 is its end. An error
    /// after some bytes is left for the next call to find.
    pub fn read_from(&self, source: &mut impl ReadVolatile) -> io::Result<usize> {
        self.transfer(|piece| source.read_volatile(&mut piece.clone()))
    }

    /// Writes them to `target` until it takes no more for now. An error after some bytes is left
    /// for the next call to find.
    pub fn write_to(&self, target: &mut impl WriteVolatile) -> io::Result<usize> {
        self.transfer(|piece| target.write_volatile(piece))
    }

    fn transfer(
        &self,
        mut step: impl FnMut(&VolatileSlice<'m>) -> Result<usize, VolatileMemoryError>,
    ) -> io::Result<usize> {
        let mut total = 0;
        for piece in &self.pieces {
            let count = loop {
                match step(piece).map_err(into_io) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if total == 0 => return Err(error),
                    Err(_) => return Ok(total),
                    Ok(count) => break count,
                }
            };
            total += count;
            if count < piece.len() {
                break;
            }
        }
        Ok(total)
    }
}

fn into_io(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}
