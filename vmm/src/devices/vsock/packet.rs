//! Packets on the wire (virtio 1.2 §5.10.6): the 44-byte header, and descriptor chains as byte streams.
//!
//! A driver may cut header and payload into descriptors as it likes (virtio 1.2 §2.7.4.1), so nothing here
//! looks at single descriptors once a chain is read. A header is copied out of guest memory exactly
//! once; payload bytes are never looked at and go straight between guest memory and the stream.

use std::io;

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    GuestAddress, GuestMemory as _, GuestMemoryError, Permissions, ReadVolatile,
    VolatileMemoryError, VolatileSlice, WriteVolatile,
};

use crate::memory::GuestMemory;

/// Context id of the host (virtio 1.2 §5.10.4).
pub const HOST_CID: u64 = 2;
/// The only socket type on offer: VIRTIO_VSOCK_TYPE_STREAM.
pub const TYPE_STREAM: u16 = 1;
/// Length of a packet header.
pub const HEADER_LEN: usize = 44;
/// The most payload in one packet, either way; Linux drivers send no more.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// SHUTDOWN: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// SHUTDOWN: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;

/// The most descriptors looked at in one chain: 64 KiB in pieces of 64 bytes.
const MAX_DESCRIPTORS: usize = 1024;

/// What is wrong with a chain.
#[derive(Debug, Error)]
pub enum PacketError {
    #[error("descriptor at {address:#x}, {len} bytes, lies outside guest memory")]
    OutsideMemory {
        address: u64,
        len: u32,
        #[source]
        source: GuestMemoryError,
    },
    #[error("chain has more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    #[error("chain of {0} bytes has no room for a header and one byte")]
    TooShort(usize),
    #[error("header announces {} bytes, the chain holds {available}", header.len)]
    PayloadBeyondChain { header: Header, available: usize },
}

/// Operations of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    Request = 1,
    Response = 2,
    Rst = 3,
    Shutdown = 4,
    Rw = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    /// The operation with this number, if there is one.
    #[must_use]
    pub fn from_wire(op: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Rst,
            Self::Shutdown,
            Self::Rw,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|known| known.to_wire() == op)
    }

    /// Its number.
    #[must_use]
    pub const fn to_wire(self) -> u16 {
        self as u16
    }
}

/// struct virtio_vsock_hdr. Every value is the guest's word until checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads the little-endian form.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Writes the little-endian form.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut rest = bytes.as_mut_slice();
        put(&mut rest, self.src_cid.to_le_bytes());
        put(&mut rest, self.dst_cid.to_le_bytes());
        put(&mut rest, self.src_port.to_le_bytes());
        put(&mut rest, self.dst_port.to_le_bytes());
        put(&mut rest, self.len.to_le_bytes());
        put(&mut rest, self.kind.to_le_bytes());
        put(&mut rest, self.op.to_le_bytes());
        put(&mut rest, self.flags.to_le_bytes());
        put(&mut rest, self.buf_alloc.to_le_bytes());
        put(&mut rest, self.fwd_cnt.to_le_bytes());
        bytes
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (field, tail) = rest
        .split_first_chunk()
        .expect("the fields add up to HEADER_LEN");
    *rest = tail;
    *field
}

fn put<const N: usize>(rest: &mut &mut [u8], value: [u8; N]) {
    let (field, tail) = std::mem::take(rest)
        .split_first_chunk_mut()
        .expect("the fields add up to HEADER_LEN");
    *field = value;
    *rest = tail;
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
    fn gather(
        memory: &'m GuestMemory,
        chain: impl Iterator<Item = Descriptor>,
        writable: bool,
        limit: usize,
    ) -> Result<Self, PacketError> {
        let mut bytes = Self::default();
        for (seen, descriptor) in chain.enumerate() {
            if seen == MAX_DESCRIPTORS {
                return Err(PacketError::TooManyDescriptors);
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
    ) -> Result<(), PacketError> {
        let GuestAddress(address) = descriptor.addr();
        let len = descriptor.len();
        let outside = |source| PacketError::OutsideMemory {
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

/// A packet that the guest sent.
#[derive(Debug)]
pub struct TxPacket<'m> {
    pub header: Header,
    /// Exactly `header.len` bytes.
    pub payload: GuestBytes<'m>,
}

impl<'m> TxPacket<'m> {
    /// Reads the packet in a chain of the transmit queue.
    pub fn parse(
        memory: &'m GuestMemory,
        chain: impl Iterator<Item = Descriptor>,
    ) -> Result<Self, PacketError> {
        let bytes = GuestBytes::gather(memory, chain, false, HEADER_LEN + MAX_PAYLOAD)?;
        let mut header = [0; HEADER_LEN];
        if bytes.copy_to(&mut header) < HEADER_LEN {
            return Err(PacketError::TooShort(bytes.len()));
        }
        let header = Header::decode(&header);
        let payload = bytes.after(HEADER_LEN);
        match usize::try_from(header.len) {
            Ok(len) if len <= payload.len() => Ok(Self {
                header,
                payload: payload.first(len),
            }),
            _ => Err(PacketError::PayloadBeyondChain {
                header,
                available: payload.len(),
            }),
        }
    }
}

/// Room that the guest gave for a packet to it.
#[derive(Debug)]
pub struct RxBuffer<'m> {
    bytes: GuestBytes<'m>,
}

impl<'m> RxBuffer<'m> {
    /// Takes the room in a chain of the receive queue. A chain without room for a single byte of
    /// payload is refused: no data could ever pass it.
    pub fn parse(
        memory: &'m GuestMemory,
        chain: impl Iterator<Item = Descriptor>,
    ) -> Result<Self, PacketError> {
        let bytes = GuestBytes::gather(memory, chain, true, HEADER_LEN + MAX_PAYLOAD)?;
        if bytes.len() <= HEADER_LEN {
            return Err(PacketError::TooShort(bytes.len()));
        }
        Ok(Self { bytes })
    }

    /// The room for payload, at most `limit` bytes.
    #[must_use]
    pub fn payload(&self, limit: usize) -> GuestBytes<'m> {
        self.bytes.after(HEADER_LEN).first(limit)
    }

    /// Writes the header; the number of bytes used in the chain.
    #[must_use]
    pub fn finish(&self, header: &Header) -> u32 {
        self.bytes.copy_from(&header.encode());
        header.len + u32::try_from(HEADER_LEN).expect("44 is small")
    }
}

#[cfg(test)]
mod tests;
