//! The entropy device (virtio 1.2 §5.4): the host's getrandom(2), a little at a time.
//!
//! A guest that asks without end costs its own vCPU an exit per queue-full; the work per wake-up of the
//! main thread is bounded.

use std::io;
use std::ops::ControlFlow;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::Bytes;

use super::virtio::{
    ActivateError, Activation, Interrupt, Position, StopError, VirtQueue, VirtioDevice,
};
use crate::events::{EventSet, Registrar, Subscriber};
use crate::memory::GuestMemory;
use crate::outcome::Outcome;

const QUEUE_SIZES: [u16; 1] = [64];
/// Bytes per request; the device may give less than asked for. getrandom(2) never gives fewer than
/// asked up to this size. Linux asks for 64.
const MOST: usize = 256;
const KICK: u32 = 0;

/// The device.
#[derive(Debug, Default)]
pub struct Rng {
    events: Option<Registrar>,
    live: Option<Live>,
}

#[derive(Debug)]
struct Live {
    memory: GuestMemory,
    queue: VirtQueue,
    interrupt: Interrupt,
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn attach(&mut self, events: Registrar) -> io::Result<()> {
        self.events = Some(events);
        Ok(())
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let [queue] = activation.take_queues()?;
        if let Some(events) = &self.events {
            events
                .add(&*queue.kick, KICK, EventSet::IN)
                .map_err(|source| ActivateError::Io {
                    what: "watch the doorbell",
                    source,
                })?;
        }
        let Activation {
            memory, interrupt, ..
        } = activation;
        self.live = Some(Live {
            memory,
            queue,
            interrupt,
        });
        Ok(())
    }

    fn stop(&mut self) -> Result<Vec<(u16, Position)>, StopError> {
        let position = self.live.as_ref().map(|live| live.queue.position());
        self.reset();
        Ok(position.into_iter().collect())
    }

    fn reset(&mut self) {
        if let (Some(live), Some(events)) = (self.live.take(), &self.events)
            && let Err(error) = events.remove(&*live.queue.kick)
        {
            log::warn!("rng: cannot stop watching the doorbell: {error}");
        }
    }
}

impl Subscriber for Rng {
    fn ready(&mut self, token: u32, _: EventSet) -> ControlFlow<Outcome> {
        if let (KICK, Some(live)) = (token, &mut self.live) {
            live.drain();
        }
        ControlFlow::Continue(())
    }
}

impl Live {
    /// Answers what is in the queue, at most one queue-full; more waits for the next wake-up.
    fn drain(&mut self) {
        // An empty eventfd means that somebody else took the kick.
        let _ = self.queue.kick.read();
        if let Err(error) = self.answer() {
            // The rings lie in memory, or there would be no queue; the guest hurt only itself.
            log::debug!("rng: {error}");
        }
    }

    /// A ring whose index runs away is an error here, not a ring without end.
    fn answer(&mut self) -> Result<(), virtio_queue::Error> {
        let Self {
            memory,
            queue,
            interrupt,
        } = self;
        let mut used = false;
        let mut budget = queue.queue.size();
        loop {
            queue.queue.disable_notification(memory)?;
            while budget > 0
                && let Some(chain) = queue.queue.iter(&*memory)?.next()
            {
                budget -= 1;
                let head = chain.head_index();
                let len = fill(memory, chain);
                queue.queue.add_used(memory, head, len)?;
                used = true;
            }
            if budget == 0 {
                // Come back: the eventfd takes one more, it was just emptied.
                let _ = queue.kick.write(1);
                break;
            }
            if !queue.queue.enable_notification(memory)? {
                break;
            }
        }
        if used && queue.queue.needs_notification(memory)? {
            interrupt.signal_used();
        }
        Ok(())
    }
}

/// Random bytes into the writable part of a chain; returns how many.
fn fill(memory: &GuestMemory, chain: DescriptorChain<&GuestMemory>) -> u32 {
    let mut random = [0; MOST];
    let Ok(have) = getrandom(&mut random, GetRandomFlags::empty()) else {
        return 0;
    };
    let mut left = random.get(..have).unwrap_or_default();
    let mut done = 0;
    for descriptor in chain.writable() {
        let count = left
            .len()
            .min(usize::try_from(descriptor.len()).unwrap_or(MOST));
        let (now, later) = left.split_at(count);
        if memory.write_slice(now, descriptor.addr()).is_err() {
            break;
        }
        done += u32::try_from(count).unwrap_or(0);
        left = later;
        if left.is_empty() {
            break;
        }
    }
    done
}

#[cfg(test)]
mod tests;
