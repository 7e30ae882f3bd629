//! The data path of one virtqueue: take chains, execute them in order, answer, interrupt once
//! (virtio 1.2 §2.7). The notification rule of both directions lives here and nowhere else.
//!
//! Must hold:
//! * Requests are answered in the order they were made available. The used index therefore says
//!   exactly which of them are done, and a front end that reconnects to a fresh daemon resumes from
//!   it with nothing lost and nothing answered twice.
//! * A batch is bounded in requests and bytes, so control messages are never kept waiting long.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::disk::Disk;
use crate::execute::{Context, Failure, execute};
use crate::request::{Broken, Buffers, Request, Status, parse};
use crate::stats::Stats;

/// A batch: after it the control side gets its turn. About a millisecond of copying.
const BATCH: Amount = Amount {
    requests: 64,
    bytes: 4 << 20,
};
/// What the guest is told of as soon as it is done. The guest has to copy the data out of its window: it
/// does so while the next requests are read here, so neither waits for the other. Smaller news would cost
/// more in interrupts than it saves.
const NEWS: Amount = Amount {
    requests: 16,
    bytes: 128 << 10,
};
/// Reads announced to the kernel when one has to wait for the medium.
const LOOK_AHEAD: usize = 64;

/// Requests done, and the bytes that they moved.
#[derive(Debug, Clone, Copy, Default)]
struct Amount {
    requests: usize,
    bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.requests += 1;
        self.bytes += bytes;
    }

    /// In one of the two.
    fn reaches(self, limit: Self) -> bool {
        self.requests >= limit.requests || self.bytes >= limit.bytes
    }
}

/// A driver or front end that broke the ring itself. Ends the session.
#[derive(Debug, Error)]
pub enum Error {
    #[error("ring is outside the shared memory, or its index runs away")]
    Ring(#[source] virtio_queue::Error),
    #[error("unanswerable request")]
    Chain(#[source] Broken),
    #[error("status byte cannot be written")]
    Status(#[source] vm_memory::GuestMemoryError),
    #[error("cannot interrupt the guest")]
    Interrupt(#[source] io::Error),
}

/// What a batch left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing more to do right now.
    Drained,
    /// The batch was full.
    More,
}

/// A request taken from the ring. It must be answered or abandoned; losing it would hang the guest.
#[derive(Debug)]
struct Inflight {
    head: u16,
    settled: bool,
}

impl Inflight {
    fn new(head: u16) -> Self {
        Self {
            head,
            settled: false,
        }
    }

    fn answer(
        mut self,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
        len: u32,
    ) -> Result<(), Error> {
        self.settled = true;
        queue.add_used(memory, self.head, len).map_err(Error::Ring)
    }

    /// For a session that ends here: whoever serves the ring next finds the request still open.
    fn abandon(mut self) {
        self.settled = true;
    }
}

impl Drop for Inflight {
    fn drop(&mut self) {
        if !self.settled && !std::thread::panicking() {
            log::error!(
                "request at descriptor {} was dropped without an answer",
                self.head
            );
            debug_assert!(false, "request dropped without an answer");
        }
    }
}

/// What requests are executed against.
#[derive(Debug)]
pub struct Work<'a> {
    pub disk: &'a Disk,
    pub context: Context,
}

/// Everything a queue's thread keeps between batches.
#[derive(Debug, Default)]
pub struct Drain {
    buffers: Buffers,
    ahead: Buffers,
    pub stats: Stats,
}

impl Drain {
    /// Executes one batch from `queue` and interrupts the guest, if it wants to know, whenever enough is
    /// done for it to work on.
    pub fn batch(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
        work: &Work<'_>,
        call: Option<&File>,
    ) -> Result<Progress, Error> {
        let (mut batch, mut untold) = (Amount::default(), Amount::default());
        let result = loop {
            if batch.reaches(BATCH) {
                break Ok(Progress::More);
            }
            if untold.reaches(NEWS) {
                tell(queue, memory, call)?;
                untold = Amount::default();
            }
            match self.one(queue, memory, work) {
                Ok(None) => break Ok(Progress::Drained),
                Ok(Some(moved)) => {
                    batch.add(moved);
                    untold.add(moved);
                }
                Err(error) => break Err(error),
            }
        };
        if untold.requests > 0 {
            tell(queue, memory, call)?;
        }
        result
    }

    /// Executes the next request; returns the bytes it moved, or nothing when there was none.
    fn one(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
        work: &Work<'_>,
    ) -> Result<Option<u64>, Error> {
        let Some(chain) = next_chain(queue, memory)? else {
            return Ok(None);
        };
        let inflight = Inflight::new(chain.head_index());
        let parsed = match parse(chain, memory, &mut self.buffers) {
            Ok(parsed) => parsed,
            Err(broken) => {
                inflight.abandon();
                return Err(Error::Chain(broken));
            }
        };
        let (ahead, mut missed) = (&mut self.ahead, false);
        let mut on_miss = || {
            missed = true;
            look_ahead(queue, memory, work.disk, ahead);
        };
        let outcome = match &parsed.request {
            Ok(request) => {
                self.stats.counts.count(request);
                execute(request, work.disk, memory, &work.context, &mut on_miss)
            }
            Err(refusal) => Err(Failure::Refused(*refusal)),
        };
        let (status, written) = match outcome {
            Ok(written) => (Status::Ok, written),
            Err(failure) => {
                self.stats.failed(&failure);
                (failure.status(), 0)
            }
        };
        if let Err(error) = memory.write_obj(status.byte(), parsed.status) {
            inflight.abandon();
            return Err(Error::Status(error));
        }
        let moved = match parsed.request {
            Ok(Request::Read { bytes, .. }) => {
                if matches!(status, Status::Ok) && work.disk.tells_misses() {
                    self.stats.counts.cached(missed);
                }
                bytes
            }
            Ok(Request::Write { bytes, .. }) => bytes,
            _ => 0,
        };
        // The status byte counts as written.
        let len = u32::try_from(written + 1).unwrap_or(u32::MAX);
        inflight.answer(queue, memory, len)?;
        Ok(Some(moved))
    }
}

/// A read is about to wait for the medium: announce it and the reads queued behind it, so that the
/// medium works on all of them at once while they are still answered in order.
fn look_ahead(queue: &mut Queue, memory: &GuestMemoryMmap, disk: &Disk, buffers: &mut Buffers) {
    let here = queue.next_avail();
    for _ in 0..LOOK_AHEAD {
        let Ok(Some(chain)) = next_chain(queue, memory) else {
            break;
        };
        let Ok(parsed) = parse(chain, memory, buffers) else {
            break;
        };
        if let Ok(Request::Read { sector, bytes, .. }) = parsed.request
            && let Some(extent) = disk.capacity().extent(sector, bytes)
        {
            disk.prefetch(extent);
        }
    }
    queue.set_next_avail(here);
}

fn next_chain<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
) -> Result<Option<DescriptorChain<&'m GuestMemoryMmap>>, Error> {
    Ok(queue.iter(memory).map_err(Error::Ring)?.next())
}

/// Whether the driver has made something available that was not taken yet.
pub fn has_work(queue: &Queue, memory: &GuestMemoryMmap) -> Result<bool, Error> {
    let index = queue
        .avail_idx(memory, Ordering::Acquire)
        .map_err(Error::Ring)?;
    Ok(index.0 != queue.next_avail())
}

/// Asks the driver not to kick while we look at the ring anyway.
pub fn kicks_off(queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<(), Error> {
    queue.disable_notification(memory).map_err(Error::Ring)
}

/// Asks for a kick again; true when something arrived in between and no kick will come for it.
pub fn kicks_on(queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<bool, Error> {
    queue.enable_notification(memory).map_err(Error::Ring)
}

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (§2.7.7).
const NO_INTERRUPT: u16 = 1;

fn wants_interrupt(queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<bool, Error> {
    if queue.event_idx_enabled() {
        return queue.needs_notification(memory).map_err(Error::Ring);
    }
    // The used index must be visible before the flag is read.
    fence(Ordering::SeqCst);
    let flags: u16 = memory
        .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
        .map_err(|error| Error::Ring(virtio_queue::Error::GuestMemory(error)))?;
    Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
}

/// Interrupts the guest, if it wants to know.
fn tell(queue: &mut Queue, memory: &GuestMemoryMmap, call: Option<&File>) -> Result<(), Error> {
    if wants_interrupt(queue, memory)? {
        interrupt(call)?;
    }
    Ok(())
}

fn interrupt(call: Option<&File>) -> Result<(), Error> {
    let Some(mut call) = call else { return Ok(()) };
    match call.write(&1u64.to_ne_bytes()) {
        Ok(_) => Ok(()),
        // The counter is full: the guest has been told more often than it listened.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(Error::Interrupt(error)),
    }
}

/// Whether all three parts of the ring lie in the shared memory.
pub fn is_mapped(queue: &Queue, memory: &GuestMemoryMmap) -> bool {
    let size = usize::from(queue.size());
    // Table, available ring and used ring with their event fields (§2.7).
    [
        (queue.desc_table(), 16 * size),
        (queue.avail_ring(), 6 + 2 * size),
        (queue.used_ring(), 6 + 8 * size),
    ]
    .into_iter()
    .all(|(base, bytes)| memory.check_range(GuestAddress(base), bytes))
}

#[cfg(test)]
mod tests;
