//! A guest's driver over real rings: posts buffers, sends packets, and notifies exactly as often as the
//! device asks it to, so that a notification forgotten by the device is a test that hangs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::virtio::{Activation, Interrupt, Position, VirtQueue, VirtioDevice};
use crate::devices::vsock::packet::{HEADER_LEN, Header, MAX_PAYLOAD};
use crate::devices::vsock::{FEATURE_STREAM, QUEUE_SIZES, Vsock};
use crate::memory::GuestMemory;

const EVENT_BUFFERS: u64 = 0xf_0000;
const RX_BUFFERS: u64 = 0x10_0000;
const RX_ROOM: u32 = 4096;
const TX_BUFFERS: u64 = 0x40_0000;
const TX_STRIDE: u64 = 0x1_1000;

/// The driver's side of one queue.
pub(super) struct Ring {
    pub(super) memory: GuestMemory,
    size: u16,
    table: GuestAddress,
    pub(super) avail: GuestAddress,
    pub(super) used: GuestAddress,
    next: u16,
    seen: u16,
    event_idx: bool,
    kick: Arc<EventFd>,
    pub(super) kicks: u64,
}

impl Ring {
    fn new(memory: &GuestMemory, at: u64, size: u16, event_idx: bool) -> (Self, Queue) {
        let table = GuestAddress(at);
        let avail = Self::at(table, 0x1000);
        let used = Self::at(table, 0x2000);
        let ring = Self {
            memory: memory.clone(),
            size,
            table,
            avail,
            used,
            next: 0,
            seen: 0,
            event_idx,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            kicks: 0,
        };
        let queue = ring.queue();
        (ring, queue)
    }

    /// The device's end of it.
    fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.try_set_desc_table_address(self.table).unwrap();
        queue.try_set_avail_ring_address(self.avail).unwrap();
        queue.try_set_used_ring_address(self.used).unwrap();
        queue.set_event_idx(self.event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&self.memory));
        queue
    }

    fn at(base: GuestAddress, offset: u64) -> GuestAddress {
        base.unchecked_add(offset)
    }

    pub(super) fn describe(&self, index: u16, descriptor: Descriptor) {
        let at = Self::at(self.table, u64::from(index) * 16);
        self.memory.write_obj(descriptor, at).unwrap();
    }

    /// Makes a chain available, and notifies if the device wants it.
    pub(super) fn post(&mut self, head: u16) {
        let slot = Self::at(self.avail, 4 + 2 * u64::from(self.next % self.size));
        self.memory.write_obj(head, slot).unwrap();
        self.next = self.next.wrapping_add(1);
        self.publish(self.next);
        let wanted = if self.event_idx {
            let event = Self::at(self.used, 4 + 8 * u64::from(self.size));
            let event: u16 = self.memory.load(event, Ordering::SeqCst).unwrap();
            event == self.next.wrapping_sub(1)
        } else {
            let flags: u16 = self.memory.load(self.used, Ordering::SeqCst).unwrap();
            flags & 1 == 0
        };
        if wanted {
            self.kick();
        }
    }

    pub(super) fn publish(&self, index: u16) {
        let at = Self::at(self.avail, 2);
        self.memory.store(index, at, Ordering::SeqCst).unwrap();
    }

    pub(super) fn kick(&mut self) {
        self.kicks += 1;
        self.kick.write(1).unwrap();
    }

    /// The next chain that the device has used: head and length.
    fn take_used(&mut self) -> Option<(u16, u32)> {
        let at = Self::at(self.used, 2);
        let index: u16 = self.memory.load(at, Ordering::SeqCst).unwrap();
        if index == self.seen {
            return None;
        }
        let slot = Self::at(self.used, 4 + 8 * u64::from(self.seen % self.size));
        let [head, len]: [u32; 2] = self.memory.read_obj(slot).unwrap();
        self.seen = self.seen.wrapping_add(1);
        // Interrupt at the next one, please.
        let event = Self::at(self.avail, 4 + 2 * u64::from(self.size));
        self.memory
            .store(self.seen, event, Ordering::SeqCst)
            .unwrap();
        Some((head.try_into().unwrap(), len))
    }
}

/// The driver.
pub(super) struct Driver {
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    pub(super) events: Ring,
    pub(super) interrupt: Interrupt,
    free_tx: Vec<u16>,
}

impl Driver {
    /// Sets the device up and posts all receive buffers.
    pub(super) fn start(device: &mut Vsock, event_idx: bool) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x100_0000)]).unwrap();
        let [rx_size, tx_size, event_size] = QUEUE_SIZES;
        let (mut rx, rx_queue) = Ring::new(&memory, 0x1000, rx_size, event_idx);
        let (tx, tx_queue) = Ring::new(&memory, 0x4000, tx_size, event_idx);
        let (mut event, event_queue) = Ring::new(&memory, 0x7000, event_size, event_idx);
        for slot in 0..event_size {
            let at = EVENT_BUFFERS + u64::from(slot) * 4;
            let flags = u16::try_from(VRING_DESC_F_WRITE).unwrap();
            event.describe(slot, Descriptor::new(at, 4, flags, 0));
            event.post(slot);
        }
        for slot in 0..rx_size {
            rx.describe(slot, rx_descriptor(slot));
            rx.post(slot);
        }
        let interrupt = Interrupt::new().unwrap();
        let queues = [(rx_queue, &rx), (tx_queue, &tx), (event_queue, &event)];
        let queues = queues
            .into_iter()
            .zip(0..)
            .map(|((queue, ring), index)| VirtQueue {
                index,
                queue,
                kick: Arc::clone(&ring.kick),
            });
        let activation = Activation {
            memory: memory.clone(),
            features: FEATURE_STREAM | 1 << 32,
            queues: queues.collect(),
            interrupt: interrupt.clone(),
            resumed: false,
        };
        device.activate(activation).unwrap();
        Self {
            rx,
            tx,
            events: event,
            interrupt,
            free_tx: (0..tx_size / 2).collect(),
        }
    }

    /// Goes on with another device, which continues where the first one stopped.
    pub(super) fn resume(&self, device: &mut Vsock, positions: &[(u16, Position)]) {
        let rings = [&self.rx, &self.tx, &self.events]
            .into_iter()
            .zip(positions);
        let queues = rings.map(|(ring, &(index, position))| {
            let mut queue = ring.queue();
            queue.set_next_avail(position.next_avail);
            queue.set_next_used(position.next_used);
            VirtQueue {
                index,
                queue,
                kick: Arc::clone(&ring.kick),
            }
        });
        let activation = Activation {
            memory: self.rx.memory.clone(),
            features: FEATURE_STREAM | 1 << 32,
            queues: queues.collect(),
            interrupt: self.interrupt.clone(),
            resumed: true,
        };
        device.activate(activation).unwrap();
    }

    /// Takes an event and gives its buffer back.
    pub(super) fn take_event(&mut self) -> Option<u32> {
        let (slot, len) = self.events.take_used()?;
        assert_eq!(len, 4);
        let at = GuestAddress(EVENT_BUFFERS + u64::from(slot) * 4);
        let event = self.events.memory.read_obj(at).unwrap();
        self.events.post(slot);
        Some(event)
    }

    /// True if [`Driver::send`] has a buffer.
    pub(super) fn can_send(&mut self) -> bool {
        while let Some((head, len)) = self.tx.take_used() {
            assert_eq!(len, 0, "the device writes nothing into what it reads");
            self.free_tx.push(head / 2);
        }
        !self.free_tx.is_empty()
    }

    /// Sends one packet: header and payload in descriptors of their own, as Linux does.
    pub(super) fn send(&mut self, header: &Header, payload: &[u8]) {
        assert!(payload.len() <= MAX_PAYLOAD && self.can_send());
        let slot = self.free_tx.pop().unwrap();
        let at = TX_BUFFERS + u64::from(slot) * TX_STRIDE;
        let header = Header {
            len: payload.len().try_into().unwrap(),
            ..*header
        };
        let memory = &self.tx.memory;
        memory
            .write_slice(&header.encode(), GuestAddress(at))
            .unwrap();
        let data = at + 0x1000;
        memory.write_slice(payload, GuestAddress(data)).unwrap();
        let next = u16::try_from(VRING_DESC_F_NEXT).unwrap();
        let (first, second) = (slot * 2, slot * 2 + 1);
        let flags = if payload.is_empty() { 0 } else { next };
        self.tx
            .describe(first, Descriptor::new(at, 44, flags, second));
        self.tx
            .describe(second, Descriptor::new(data, header.len, 0, 0));
        self.tx.post(first);
    }

    /// The next packet from the device; its buffer is posted again.
    pub(super) fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let (slot, used) = self.rx.take_used()?;
        let at = GuestAddress(RX_BUFFERS + u64::from(slot) * u64::from(RX_ROOM));
        let mut bytes = vec![0; used as usize];
        self.rx.memory.read_slice(&mut bytes, at).unwrap();
        self.rx.post(slot);
        let payload = bytes.split_off(HEADER_LEN);
        let header = Header::decode(bytes.first_chunk().unwrap());
        assert_eq!(header.len as usize, payload.len());
        Some((header, payload))
    }

    /// Takes an interrupt, if there was one.
    pub(super) fn interrupted(&self) -> bool {
        self.interrupt.acknowledge(u32::MAX);
        self.interrupt.irqfd().read().is_ok()
    }
}

pub(super) fn rx_descriptor(slot: u16) -> Descriptor {
    let at = RX_BUFFERS + u64::from(slot) * u64::from(RX_ROOM);
    Descriptor::new(at, RX_ROOM, u16::try_from(VRING_DESC_F_WRITE).unwrap(), 0)
}
