//! What the targets share: an input read as a program, and the driver's side of a virtqueue.
//!
//! Bytes picked at random seldom make a valid ring, so a target reads its input as a short program of
//! driver actions: most of them sensible, each with a way to put any value in any place. `seeds.py`
//! writes the same programs.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::signal::block_signal;

/// Makes a write to a closed socket an error instead of the end. A Rust program starts out like this; here
/// libFuzzer's `main` starts.
pub fn no_sigpipe() {
    const SIGPIPE: i32 = 13;
    block_signal(SIGPIPE).expect("a signal that can be blocked");
}

/// VIRTQ_DESC_F_NEXT.
pub const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub const INDIRECT: u16 = 4;

/// The rest of the input. Reading past the end gives zeroes.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let have = self.bytes(N);
        bytes[..have.len()].copy_from_slice(have);
        bytes
    }

    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// At most `count` bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(count.min(self.0.len()));
        self.0 = later;
        now
    }

    /// `usual`, or for one byte in sixteen any number.
    pub fn mostly(&mut self, usual: u64) -> u64 {
        match self.u8() {
            255 => self.u64(),
            254 => u64::from(self.u32()),
            253 => u64::MAX - u64::from(self.u8()),
            252 => usual.wrapping_add(1),
            251 => usual.wrapping_sub(1),
            250 => u64::from(u32::MAX) - u64::from(self.u8()),
            249 => 0,
            248 => 1 << (self.u8() % 64),
            247 => usual ^ 1 << (self.u8() % 64),
            _ => usual,
        }
    }
}

/// The driver's side of a split virtqueue whose parts lie a page apart.
#[derive(Debug)]
pub struct Ring {
    memory: GuestMemoryMmap<()>,
    base: u64,
    size: u16,
    next: u16,
    seen: u16,
}

impl Ring {
    /// A ring of zeroes at `base`.
    pub fn new(memory: &GuestMemoryMmap<()>, base: u64, size: u16) -> Self {
        let zeroes = [0; 0x3000];
        memory
            .write_slice(&zeroes, GuestAddress(base))
            .expect("rings lie in memory");
        Self {
            memory: memory.clone(),
            base,
            size,
            next: 0,
            seen: 0,
        }
    }

    pub fn table(&self) -> u64 {
        self.base
    }

    pub fn avail(&self) -> u64 {
        self.base + 0x1000
    }

    pub fn used(&self) -> u64 {
        self.base + 0x2000
    }

    /// The device's side of it.
    pub fn queue(&self, max: u16, event_idx: bool) -> Queue {
        let mut queue = Queue::new(max).expect("a valid size");
        queue.set_size(self.size);
        queue
            .try_set_desc_table_address(GuestAddress(self.table()))
            .expect("aligned");
        queue
            .try_set_avail_ring_address(GuestAddress(self.avail()))
            .expect("aligned");
        queue
            .try_set_used_ring_address(GuestAddress(self.used()))
            .expect("aligned");
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }

    /// Writes a descriptor into the table.
    pub fn describe(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.base + 16 * u64::from(index % self.size);
        describe_at(&self.memory, at, addr, len, flags, next);
    }

    /// Makes a chain available.
    pub fn post(&mut self, head: u16) {
        let slot = self.avail() + 4 + 2 * u64::from(self.next % self.size);
        self.store(head, slot);
        self.next = self.next.wrapping_add(1);
        self.publish(self.next);
    }

    /// Sets the available index, to any value.
    pub fn publish(&mut self, index: u16) {
        self.next = index;
        self.store(index, self.avail() + 2);
    }

    /// How many chains are available and not used.
    pub fn outstanding(&self) -> u16 {
        self.next.wrapping_sub(self.used_index())
    }

    pub fn used_index(&self) -> u16 {
        self.memory
            .load(GuestAddress(self.used() + 2), Ordering::Acquire)
            .expect("rings lie in memory")
    }

    /// The next used chain: head and length.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.seen {
            return None;
        }
        let slot = self.used() + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        // Interrupt at the next one.
        let event = self.avail() + 4 + 2 * u64::from(self.size);
        self.store(self.seen, event);
        let [head, len]: [u32; 2] = self
            .memory
            .read_obj(GuestAddress(slot))
            .expect("rings lie in memory");
        Some((head, len))
    }

    fn store(&self, value: u16, at: u64) {
        self.memory
            .store(value, GuestAddress(at), Ordering::Release)
            .expect("rings lie in memory");
    }
}

/// Writes a descriptor anywhere, as far as there is memory.
pub fn describe_at(
    memory: &GuestMemoryMmap<()>,
    at: u64,
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    poke(memory, at, &bytes);
}

/// Writes bytes anywhere, as far as there is memory.
pub fn poke(memory: &GuestMemoryMmap<()>, at: u64, bytes: &[u8]) {
    // A guest's store outside its memory goes nowhere, too.
    let _ = memory.write_slice(bytes, GuestAddress(at).unchecked_add(0));
}
