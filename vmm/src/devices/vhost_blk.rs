//! The front end of a vhost-user block device (virtio 1.2 §5.2; QEMU's vhost-user specification).
//!
//! This process only introduces guest and backend to each other: the backend gets the I/O window (and
//! no other memory), the guest's doorbells and its interrupt line, and from then on the two talk without
//! us. The guest is offered VIRTIO_F_ACCESS_PLATFORM, on which our kernel keeps rings and data of such a
//! device inside the window; rings elsewhere are refused here, data elsewhere by the backend, which
//! cannot see it.
//!
//! In the messages "user addresses" are guest-physical ones: they name places in the memory table, and
//! a backend need not learn where this process keeps its memory.

pub mod backend;
pub mod watch;

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;

use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_ACCESS_PLATFORM;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueT;

use self::backend::{Backend, PROTOCOL_FEATURES};
use self::watch::Deadline;
use super::virtio::{
    ActivateError, Activation, Interrupt, Position, StopError, VirtQueue, VirtioDevice,
};
use crate::events::{EventSet, Registrar, Subscriber};
use crate::memory::Window;
use crate::outcome::Outcome;

const ACCESS_PLATFORM: u64 = 1 << VIRTIO_F_ACCESS_PLATFORM;

/// The device.
pub struct VhostBlk {
    frontend: Frontend,
    features: u64,
    config: Vec<u8>,
    queue_sizes: Vec<u16>,
    reply_ack: bool,
    window: Window,
    deadline: Deadline,
    /// Rings that the backend works on.
    live: Vec<usize>,
}

impl std::fmt::Debug for VhostBlk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostBlk")
            .field("features", &self.features)
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

impl VhostBlk {
    /// A device on a negotiated connection.
    #[must_use]
    pub fn new(backend: Backend, window: Window, deadline: Deadline) -> Self {
        let Backend {
            frontend,
            features,
            config,
            queue_sizes,
            reply_ack,
        } = backend;
        Self {
            frontend,
            features,
            config,
            queue_sizes,
            reply_ack,
            window,
            deadline,
            live: Vec::new(),
        }
    }

    fn connect_rings(&mut self, activation: &Activation) -> Result<(), ActivateError> {
        let refused = |what| move |source| ActivateError::Backend { what, source };
        for queue in &activation.queues {
            self.check_window(queue)?;
        }
        self.acknowledge(false);
        let features = activation.features & !ACCESS_PLATFORM | PROTOCOL_FEATURES;
        self.frontend
            .set_features(features)
            .map_err(refused("the features"))?;
        let window = VhostUserMemoryRegionInfo {
            guest_phys_addr: self.window.range.start,
            memory_size: self.window.range.len,
            userspace_addr: self.window.range.start,
            mmap_offset: 0,
            mmap_handle: self.window.file.as_raw_fd(),
        };
        self.frontend
            .set_mem_table(&[window])
            .map_err(refused("the I/O window"))?;
        for (number, queue) in (1..).zip(&activation.queues) {
            self.connect_ring(queue, &activation.interrupt)?;
            // Messages are handled in order: the answer to the last one says that all went well.
            self.acknowledge(number == activation.queues.len());
            let ring = usize::from(queue.index);
            self.frontend
                .set_vring_enable(ring, true)
                .map_err(refused("to start a queue"))?;
            self.live.push(ring);
        }
        Ok(())
    }

    fn connect_ring(&self, queue: &VirtQueue, interrupt: &Interrupt) -> Result<(), ActivateError> {
        let refused = |what| move |source| ActivateError::Backend { what, source };
        let (ring, frontend, VirtQueue { queue, kick, .. }) =
            (usize::from(queue.index), &self.frontend, queue);
        let addresses = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: queue.desc_table(),
            used_ring_addr: queue.used_ring(),
            avail_ring_addr: queue.avail_ring(),
            log_addr: None,
        };
        frontend
            .set_vring_num(ring, queue.size())
            .map_err(refused("a queue's size"))?;
        frontend
            .set_vring_addr(ring, &addresses)
            .map_err(refused("a queue's addresses"))?;
        frontend
            .set_vring_base(ring, queue.next_avail())
            .map_err(refused("a queue's start"))?;
        frontend
            .set_vring_call(ring, interrupt.irqfd())
            .map_err(refused("the interrupt"))?;
        frontend
            .set_vring_kick(ring, kick)
            .map_err(refused("a doorbell"))
    }

    /// Ring sizes as in virtio 1.2 §2.7: 16 bytes a descriptor, 6 + 2 and 6 + 8 for the rings.
    fn check_window(&self, queue: &VirtQueue) -> Result<(), ActivateError> {
        let size = u64::from(queue.queue.size());
        let parts = [
            ("the descriptor table", queue.queue.desc_table(), 16 * size),
            ("the available ring", queue.queue.avail_ring(), 6 + 2 * size),
            ("the used ring", queue.queue.used_ring(), 6 + 8 * size),
        ];
        for (what, address, len) in parts {
            if !self.window.range.contains(address, len) {
                return Err(ActivateError::OutsideWindow {
                    index: queue.index,
                    what,
                    address,
                });
            }
        }
        Ok(())
    }

    /// Whether the backend shall answer the next messages.
    fn acknowledge(&self, wanted: bool) {
        let flags = if wanted && self.reply_ack {
            VhostUserHeaderFlag::NEED_REPLY
        } else {
            VhostUserHeaderFlag::empty()
        };
        self.frontend.set_hdr_flags(flags);
    }

    /// Stops one ring. When the backend has answered, every request it took is done, and it touches the
    /// ring no more; the answer is how many it took.
    fn disconnect_ring(&mut self, ring: usize) -> vhost::Result<u32> {
        self.frontend.set_vring_enable(ring, false)?;
        self.frontend.get_vring_base(ring)
    }

    /// The configuration space, which a driver has read once and relies on.
    #[must_use]
    pub fn config(&self) -> &[u8] {
        &self.config
    }
}

impl VirtioDevice for VhostBlk {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        self.features | ACCESS_PLATFORM
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let known = self.config.get(start..).unwrap_or_default();
        for (byte, value) in data.iter_mut().zip(known) {
            *byte = *value;
        }
    }

    fn signalled_by_backend(&self) -> bool {
        true
    }

    /// The connection is watched by [`watch::Watch`], which needs no lock of this device.
    fn attach(&mut self, _: Registrar) -> io::Result<()> {
        Ok(())
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.deadline.arm().map_err(|source| ActivateError::Io {
            what: "arm the backend's deadline",
            source,
        })?;
        let connected = self.connect_rings(&activation);
        self.deadline.disarm();
        connected
    }

    fn stop(&mut self) -> Result<Vec<(u16, Position)>, StopError> {
        self.acknowledge(false);
        let mut positions = Vec::with_capacity(self.live.len());
        for ring in std::mem::take(&mut self.live) {
            let index = u16::try_from(ring).expect("the spec limits queues");
            let failed = |source| StopError { index, source };
            let base = self.disconnect_ring(ring).map_err(failed)?;
            // Of the number only the ring's index is meant; what was taken was used.
            let base = u16::try_from(base & u32::from(u16::MAX)).expect("16 bits");
            let position = Position {
                next_avail: base,
                next_used: base,
            };
            positions.push((index, position));
        }
        Ok(positions)
    }

    fn reset(&mut self) {
        if self.live.is_empty() {
            return;
        }
        if let Err(error) = self.deadline.arm() {
            log::error!("vhost-user-blk: cannot arm the backend's deadline: {error}");
        }
        self.acknowledge(false);
        for ring in std::mem::take(&mut self.live) {
            if let Err(error) = self.disconnect_ring(ring) {
                // A broken connection is noticed by the watch, and ends the sandbox.
                log::warn!("vhost-user-blk: cannot stop queue {ring}: {error}");
            }
        }
        self.deadline.disarm();
    }
}

impl Subscriber for VhostBlk {
    fn ready(&mut self, _: u32, _: EventSet) -> ControlFlow<Outcome> {
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests;
