//! From a descriptor chain to a block request, and back to the status byte (virtio 1.2 §5.2.6).
//!
//! A chain is read as two byte streams, device-readable then device-writable; how the driver cut
//! them into descriptors means nothing (§2.7.4.2). The last writable byte is the status. No disk is
//! involved here, and nothing is allocated per request once the buffers have grown.
//!
//! Must hold: the chain is hostile. A chain that cannot be answered at all is [`Broken`] and ends
//! its session; every other mistake is a [`Refusal`], which the guest gets as a status.

mod stream;

use thiserror::Error;
use virtio_bindings::virtio_blk as abi;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::disk::{SECTOR_BYTES, Sector, Serial};
use crate::iov::{Segment, advance};
pub use stream::copy_to;
use stream::{collect, copy_from, length};

/// Segments of one request, header and status included. What the configuration space promises is
/// lower; a driver that goes past even this is refused, so that one chain cannot hold up a queue.
pub const MAX_SEGMENTS: usize = 1024;

/// Data bytes of one request: promised segments times promised segment size.
pub const MAX_DATA_BYTES: u64 = SEGMENT_BYTES_MAX as u64 * SEGMENTS_MAX as u64;

/// `size_max` of the configuration space.
pub const SEGMENT_BYTES_MAX: u32 = 1 << 20;

/// `seg_max` of the configuration space: a queue of 128 without header and status.
pub const SEGMENTS_MAX: u32 = 126;

/// `max_discard_seg` and `max_write_zeroes_seg` of the configuration space.
pub const RANGES_MAX: u32 = 32;

/// `max_discard_sectors` and `max_write_zeroes_sectors`: 1 GiB in one range.
pub const RANGE_SECTORS_MAX: u32 = 1 << 21;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;

/// A chain that has no place for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Broken {
    #[error("descriptor chain is cut off: bad index, loop, or table outside the shared memory")]
    Truncated,
    #[error("descriptor chain has no byte for the status")]
    NoStatus,
    #[error("status byte at {0:#x} is outside the shared memory")]
    StatusOutsideMemory(u64),
}

/// A request that gets an error status without touching the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("a device-readable descriptor follows a device-writable one")]
    Order,
    #[error("more than {MAX_SEGMENTS} descriptors in one request")]
    TooManySegments,
    #[error("more than {MAX_DATA_BYTES} bytes in one request")]
    TooLarge,
    #[error("header shorter than {HEADER_BYTES} bytes")]
    ShortHeader,
    #[error("buffer outside the shared memory")]
    OutsideMemory,
    #[error("data of the wrong direction or length for request type {0}")]
    Shape(u32),
    #[error("request type {0} is not supported")]
    UnknownType(u32),
    #[error("flags {0:#x} are not allowed in a discard or write-zeroes range")]
    RangeFlags(u32),
    #[error("more ranges or sectors than the device offers for discard or write-zeroes")]
    RangeLimits,
}

impl Refusal {
    pub fn status(self) -> Status {
        match self {
            Self::UnknownType(_) | Self::RangeFlags(_) => Status::Unsupported,
            _ => Status::IoError,
        }
    }
}

/// The status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    pub fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::IoError => 1,
            Self::Unsupported => 2,
        }
    }
}

/// One range of a discard or write-zeroes request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub sector: Sector,
    pub sectors: u32,
    pub unmap: bool,
}

impl Range {
    pub fn bytes(self) -> u64 {
        u64::from(self.sectors) * SECTOR_BYTES
    }
}

/// What the guest wants. Segments are where data goes to or comes from, header and status removed.
#[derive(Debug, PartialEq, Eq)]
pub enum Request<'a> {
    Read {
        sector: Sector,
        bytes: u64,
        into: &'a [Segment],
    },
    Write {
        sector: Sector,
        bytes: u64,
        from: &'a [Segment],
    },
    Flush,
    GetId {
        bytes: usize,
        into: &'a [Segment],
    },
    Discard {
        ranges: &'a [Range],
    },
    WriteZeroes {
        ranges: &'a [Range],
    },
}

/// A chain that can be answered: where the status goes, and what to do.
#[derive(Debug)]
pub struct Parsed<'a> {
    pub status: GuestAddress,
    pub request: Result<Request<'a>, Refusal>,
}

/// Room for one parsed chain, used again for the next.
#[derive(Debug, Default)]
pub struct Buffers {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    ranges: Vec<Range>,
}

/// Reads one chain. `chain` ends early when its structure is bad, as `DescriptorChain` does.
pub fn parse<'a, M: GuestMemory>(
    chain: impl Iterator<Item = Descriptor>,
    memory: &M,
    buffers: &'a mut Buffers,
) -> Result<Parsed<'a>, Broken> {
    let Buffers {
        readable,
        writable,
        ranges,
    } = buffers;
    let collected = collect(chain, readable, writable)?;
    let status = collected.status.ok_or(Broken::NoStatus)?;
    if !memory.check_range(status, 1, Permissions::Write) {
        return Err(Broken::StatusOutsideMemory(status.0));
    }
    let request = match collected.refusal {
        Some(refusal) => Err(refusal),
        None => decode(memory, readable, writable, ranges),
    };
    Ok(Parsed { status, request })
}

fn decode<'a, M: GuestMemory>(
    memory: &M,
    readable: &'a mut [Segment],
    writable: &'a [Segment],
    ranges: &'a mut Vec<Range>,
) -> Result<Request<'a>, Refusal> {
    let mut header = [0; HEADER_BYTES];
    if length(readable) < HEADER_BYTES as u64 {
        return Err(Refusal::ShortHeader);
    }
    copy_from(memory, readable, &mut header)?;
    let kind = u32_at(&header, 0);
    let sector = Sector(u64_at(&header, 8));
    let input: &[Segment] = advance(readable, HEADER_BYTES as u64);
    let (in_bytes, out_bytes) = (length(input), length(writable));
    if in_bytes.max(out_bytes) > MAX_DATA_BYTES {
        return Err(Refusal::TooLarge);
    }
    let shape = |fits: bool| {
        if fits {
            Ok(())
        } else {
            Err(Refusal::Shape(kind))
        }
    };
    match kind {
        abi::VIRTIO_BLK_T_IN => {
            shape(in_bytes == 0 && out_bytes.is_multiple_of(SECTOR_BYTES))?;
            Ok(Request::Read {
                sector,
                bytes: out_bytes,
                into: writable,
            })
        }
        abi::VIRTIO_BLK_T_OUT => {
            shape(out_bytes == 0 && in_bytes.is_multiple_of(SECTOR_BYTES))?;
            Ok(Request::Write {
                sector,
                bytes: in_bytes,
                from: input,
            })
        }
        abi::VIRTIO_BLK_T_FLUSH => {
            shape(in_bytes == 0 && out_bytes == 0)?;
            Ok(Request::Flush)
        }
        abi::VIRTIO_BLK_T_GET_ID => {
            shape(in_bytes == 0 && out_bytes > 0)?;
            let bytes = usize::try_from(out_bytes).map_or(Serial::BYTES, |n| n.min(Serial::BYTES));
            Ok(Request::GetId {
                bytes,
                into: writable,
            })
        }
        abi::VIRTIO_BLK_T_DISCARD | abi::VIRTIO_BLK_T_WRITE_ZEROES => {
            shape(out_bytes == 0 && in_bytes > 0 && in_bytes.is_multiple_of(RANGE_BYTES as u64))?;
            let zeroes = kind == abi::VIRTIO_BLK_T_WRITE_ZEROES;
            read_ranges(memory, input, zeroes, ranges)?;
            Ok(match zeroes {
                true => Request::WriteZeroes { ranges },
                false => Request::Discard { ranges },
            })
        }
        other => Err(Refusal::UnknownType(other)),
    }
}

/// `struct virtio_blk_discard_write_zeroes[]`, checked against what the device offers.
fn read_ranges<M: GuestMemory>(
    memory: &M,
    input: &[Segment],
    zeroes: bool,
    ranges: &mut Vec<Range>,
) -> Result<(), Refusal> {
    let bytes = usize::try_from(length(input)).map_err(|_| Refusal::RangeLimits)?;
    let mut raw = [0; RANGE_BYTES * RANGES_MAX as usize];
    let raw = raw.get_mut(..bytes).ok_or(Refusal::RangeLimits)?;
    copy_from(memory, input, raw)?;
    // Only write-zeroes may say "unmap" (§5.2.6.2).
    let allowed = if zeroes {
        abi::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
    } else {
        0
    };
    ranges.clear();
    for range in raw.chunks_exact(RANGE_BYTES) {
        let (sectors, flags) = (u32_at(range, 8), u32_at(range, 12));
        if flags & !allowed != 0 {
            return Err(Refusal::RangeFlags(flags));
        }
        if sectors > RANGE_SECTORS_MAX {
            return Err(Refusal::RangeLimits);
        }
        ranges.push(Range {
            sector: Sector(u64_at(range, 0)),
            sectors,
            unmap: flags != 0,
        });
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests;
