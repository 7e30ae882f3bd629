//! What a virtio device is to the transport (virtio 1.2 §2), and what the transport hands it.
//!
//! Threads: registers are written by vCPU threads, queue events are handled by the main thread. A
//! device therefore lives behind one mutex; [`VirtioDevice`] methods and [`Subscriber::ready`] all
//! run under it, so they never overlap, and none may block on the guest. Lock order: transport, then
//! device. An [`Interrupt`] is lock-free and may be signalled under any of them.
//!
//! Life of a device: built from its spec → [`VirtioDevice::attach`] (event loop is there) →
//! any number of [`VirtioDevice::activate`] / [`VirtioDevice::reset`] pairs, as the guest likes →
//! [`VirtioDevice::stop`] if the sandbox becomes a template.

pub mod mmio;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::events::{Registrar, Subscriber};
use crate::memory::GuestMemory;

/// InterruptStatus: the device used a buffer (virtio 1.2 §4.2.2).
pub const INTERRUPT_USED: u32 = 1;
/// InterruptStatus: the configuration changed.
pub const INTERRUPT_CONFIG: u32 = 2;

/// Why a device did not go live. The guest sees DEVICE_NEEDS_RESET, the log sees this.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// The driver set up fewer queues than the device cannot do without.
    #[error("driver made {ready} of {needed} queues ready")]
    MissingQueues { ready: usize, needed: usize },
    /// A queue register holds what no queue can have.
    #[error("queue {index} cannot be set up so")]
    Queue {
        index: u16,
        #[source]
        source: virtio_queue::Error,
    },
    /// A ring does not lie in guest memory.
    #[error("queue {index}: a ring lies outside guest memory")]
    OutsideMemory { index: u16 },
    /// A ring lies where this device must not go.
    #[error("queue {index}: {what} at {address:#x} lies outside the I/O window")]
    OutsideWindow {
        index: u16,
        what: &'static str,
        address: u64,
    },
    /// The kernel refused something.
    #[error("cannot {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// The device's backend refused.
    #[error("backend refused {what}")]
    Backend {
        what: &'static str,
        #[source]
        source: vhost::Error,
    },
}

/// A backend did not give a queue back.
#[derive(Debug, Error)]
#[error("the backend did not stop queue {index}")]
pub struct StopError {
    /// The queue's number at the device.
    pub index: u16,
    #[source]
    pub source: vhost::Error,
}

/// How far a device is with a queue: the places in the available and the used ring that come next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub next_avail: u16,
    pub next_used: u16,
}

/// One virtio device behind a transport.
pub trait VirtioDevice: Subscriber + std::fmt::Debug {
    /// Device ID (virtio 1.2 §5).
    fn device_id(&self) -> u32;

    /// Feature bits on offer. VIRTIO_F_VERSION_1 is added by the transport.
    fn features(&self) -> u64;

    /// The largest size of each queue, in queue order; each a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads configuration space. `data` is pre-filled with zeroes; bytes past the end stay zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes configuration space; what is not writable is ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// True if another process raises the interrupt (irqfd given away), so that this process never
    /// learns of a used buffer: InterruptStatus then always reports one.
    fn signalled_by_backend(&self) -> bool {
        false
    }

    /// Called once, before any vCPU runs: keep the registrar, watch what must be watched from the
    /// start (a listening socket, a backend's connection).
    fn attach(&mut self, events: Registrar) -> io::Result<()>;

    /// The driver wrote DRIVER_OK: take the queues, watch their kicks. Kicks before this moment are
    /// not lost, they wait in the eventfd.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Finishes what was taken from the queues, takes no more, and says how far each queue is, by its number.
    /// The device is as after a reset then. Called with all vCPUs paused, to save the sandbox; what says
    /// nothing was not active.
    fn stop(&mut self) -> Result<Vec<(u16, Position)>, StopError>;

    /// The driver wrote status 0, or the last activation failed half-way: when this returns, the
    /// device touches no queue and no guest memory any more. Also called when not active.
    fn reset(&mut self);
}

/// Everything a device needs to work, handed over when the driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// All guest RAM.
    pub memory: GuestMemory,
    /// Feature bits that driver and device agreed on.
    pub features: u64,
    /// The queues that the driver made ready, in ascending order of `index`.
    pub queues: Vec<VirtQueue>,
    /// How to tell the guest.
    pub interrupt: Interrupt,
    /// The driver is in the middle of its life: this is a clone of the sandbox in which it was ready.
    pub resumed: bool,
}

impl Activation {
    /// Takes the queues of a device that needs every one of its `N`.
    pub fn take_queues<const N: usize>(&mut self) -> Result<[VirtQueue; N], ActivateError> {
        std::mem::take(&mut self.queues)
            .try_into()
            .map_err(|queues: Vec<_>| ActivateError::MissingQueues {
                ready: queues.len(),
                needed: N,
            })
    }
}

/// A live queue: its addresses were valid in guest memory when the driver was ready.
#[derive(Debug)]
pub struct VirtQueue {
    /// The queue's number at the device.
    pub index: u16,
    /// Ring access; event index is switched on already if it was negotiated.
    pub queue: Queue,
    /// Readable when the driver has written QueueNotify (KVM signals it without this process).
    /// Shared by all activations of the queue.
    pub kick: Arc<EventFd>,
}

impl VirtQueue {
    /// How far the device is with it.
    #[must_use]
    pub fn position(&self) -> (u16, Position) {
        let position = Position {
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        };
        (self.index, position)
    }
}

/// A device's interrupt line and the InterruptStatus register.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<Line>);

#[derive(Debug)]
struct Line {
    status: AtomicU32,
    generation: AtomicU32,
    irqfd: EventFd,
}

impl Interrupt {
    /// A line nobody listens to until its irqfd is given to KVM.
    pub fn new() -> io::Result<Self> {
        let irqfd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self(Arc::new(Line {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            irqfd,
        })))
    }

    /// Tells the driver that buffers were used.
    pub fn signal_used(&self) {
        self.raise(INTERRUPT_USED);
    }

    /// Tells the driver that the configuration space changed.
    pub fn signal_config(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(INTERRUPT_CONFIG);
    }

    /// The eventfd that is the line: written to by whoever signals, read by KVM.
    #[must_use]
    pub fn irqfd(&self) -> &EventFd {
        &self.0.irqfd
    }

    /// InterruptStatus.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.0.status.load(Ordering::Acquire)
    }

    /// ConfigGeneration.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Sets the registers to what they were.
    pub(super) fn restore(&self, status: u32, generation: u32) {
        self.0.status.store(status, Ordering::Release);
        self.0.generation.store(generation, Ordering::Release);
    }

    /// InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        self.0.status.fetch_and(!bits, Ordering::AcqRel);
    }

    fn raise(&self, bits: u32) {
        self.0.status.fetch_or(bits, Ordering::AcqRel);
        // The only failure is a counter that is full, and then the line is raised anyway.
        if let Err(error) = self.0.irqfd.write(1) {
            log::warn!("interrupt line: {error}");
        }
    }
}
