//! Telling a resumed driver that its connections are gone.
//!
//! Linux handles the event on a work queue of its own, beside the one for packets. A connection made before
//! that would be among those it then resets, so new ones wait until it has given the event's buffer back,
//! which it does when it is through.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::devices::virtio::VirtQueue;
use crate::memory::GuestMemory;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET as struct virtio_vsock_event (virtio 1.2 §5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

/// The index of the available ring at which the buffer is back; nothing if none is waited for.
#[derive(Debug)]
pub(super) struct Farewell(Option<Wrapping<u16>>);

impl Farewell {
    /// There were no connections.
    pub(super) fn not_needed() -> Self {
        Self(None)
    }

    /// Puts the event into the queue. A driver without a buffer for it cannot be told; then its old
    /// connections end by time, which is its own choice.
    pub(super) fn send(queue: &mut VirtQueue, memory: &GuestMemory) -> Self {
        let sent = send(queue, memory);
        Self(
            sent.inspect_err(|error| log::warn!("vsock: no event for the guest: {error}"))
                .ok()
                .flatten(),
        )
    }

    /// True if nothing has to be waited for any more.
    pub(super) fn is_over(&mut self, queue: &VirtQueue, memory: &GuestMemory) -> bool {
        let now = queue.queue.avail_idx(memory, Ordering::Acquire).ok();
        if self.0.is_some() && self.0 != now {
            self.0 = None;
        }
        self.0.is_none()
    }
}

/// The index that the available ring has until the driver has taken note.
fn send(
    queue: &mut VirtQueue,
    memory: &GuestMemory,
) -> Result<Option<Wrapping<u16>>, virtio_queue::Error> {
    let ring = &mut queue.queue;
    let Some(chain) = ring.iter(memory)?.next() else {
        log::warn!("vsock: the guest has no buffer for events");
        return Ok(None);
    };
    let head = chain.head_index();
    let target = chain.writable().next();
    let target = target.filter(|target| target.len() as usize >= TRANSPORT_RESET.len());
    let Some(target) = target else {
        log::warn!("vsock: the guest's buffer for events is none");
        return Ok(None);
    };
    let failed = virtio_queue::Error::GuestMemory;
    memory
        .write_slice(&TRANSPORT_RESET, target.addr())
        .map_err(failed)?;
    let now = ring.avail_idx(memory, Ordering::Acquire)?;
    if ring.event_idx_enabled() {
        // Ask for the kick at the next buffer, however many are there already: avail_event, behind the
        // used ring's entries (virtio 1.2 §2.7.8).
        let at = ring.used_ring() + 4 + 8 * u64::from(ring.size());
        memory
            .write_slice(&now.0.to_le_bytes(), GuestAddress(at))
            .map_err(failed)?;
    }
    let len = u32::try_from(TRANSPORT_RESET.len()).expect("four");
    ring.add_used(memory, head, len)?;
    Ok(Some(now))
}
