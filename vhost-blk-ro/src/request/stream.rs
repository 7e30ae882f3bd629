//! The two byte streams of a chain, whatever descriptors they were cut into.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory};

use super::{Broken, MAX_SEGMENTS, Refusal};
use crate::iov::Segment;

/// What is known of a chain before its content is looked at.
pub(super) struct Collected {
    pub(super) status: Option<GuestAddress>,
    pub(super) refusal: Option<Refusal>,
}

/// Sorts the chain into the two streams and takes the status byte off the second.
pub(super) fn collect(
    chain: impl Iterator<Item = Descriptor>,
    readable: &mut Vec<Segment>,
    writable: &mut Vec<Segment>,
) -> Result<Collected, Broken> {
    readable.clear();
    writable.clear();
    let (mut complete, mut refusal, mut status) = (false, None, None);
    for descriptor in chain {
        complete = !descriptor.has_next();
        let segment = Segment {
            addr: descriptor.addr(),
            len: descriptor.len(),
        };
        if segment.len == 0 {
            continue;
        }
        let stream = if descriptor.is_write_only() {
            // The address of its last byte, even when there is no room to keep the segment.
            status = Some(segment);
            &mut *writable
        } else {
            if status.is_some() {
                refusal.get_or_insert(Refusal::Order);
            }
            &mut *readable
        };
        if stream.len() < MAX_SEGMENTS {
            stream.push(segment);
        } else {
            refusal.get_or_insert(Refusal::TooManySegments);
        }
    }
    if !complete {
        return Err(Broken::Truncated);
    }
    let status = match status {
        None => None,
        Some(s) => {
            let addr = s.addr.checked_add(u64::from(s.len - 1));
            Some(addr.ok_or(Broken::StatusOutsideMemory(s.addr.0))?)
        }
    };
    if let Some(last) = writable.last_mut() {
        last.len -= 1;
        if last.len == 0 {
            writable.pop();
        }
    }
    Ok(Collected { status, refusal })
}

pub(super) fn length(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.len)).sum()
}

/// Fills `bytes` from the start of the stream, which must be long enough.
pub(super) fn copy_from<M: GuestMemory>(
    memory: &M,
    segments: &[Segment],
    mut bytes: &mut [u8],
) -> Result<(), Refusal> {
    for segment in segments {
        let step = bytes.len().min(segment.len as usize);
        let (now, later) = bytes.split_at_mut(step);
        memory
            .read_slice(now, segment.addr)
            .map_err(|_| Refusal::OutsideMemory)?;
        bytes = later;
        if bytes.is_empty() {
            break;
        }
    }
    Ok(())
}

/// Writes `bytes` at the start of the stream, as far as it reaches.
pub fn copy_to<M: GuestMemory>(
    memory: &M,
    segments: &[Segment],
    mut bytes: &[u8],
) -> Result<(), Refusal> {
    for segment in segments {
        let step = bytes.len().min(segment.len as usize);
        let (now, later) = bytes.split_at(step);
        memory
            .write_slice(now, segment.addr)
            .map_err(|_| Refusal::OutsideMemory)?;
        bytes = later;
    }
    Ok(())
}
