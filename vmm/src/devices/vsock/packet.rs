//! Packets on the wire (virtio 1.2 §5.10.6): the 44-byte header, and the payload after it.
//!
//! A header is copied out of guest memory exactly once, so that what was checked is what is used;
//! payload bytes are never looked at.

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;

use super::bytes::{BytesError, GuestBytes};
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

/// What is wrong with a chain.
#[derive(Debug, Error)]
pub enum PacketError {
    #[error(transparent)]
    Chain(#[from] BytesError),
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
