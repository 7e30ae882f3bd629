//! The virtio MMIO transport, version 2 (virtio 1.2 §4.2.2), one per device.
//!
//! Everything a guest writes here is hostile until proven otherwise. Registers are plain numbers until
//! the driver says DRIVER_OK; only then are queues made from them, and checked. Accesses that the
//! specification does not know (odd widths, read-only registers, wrong moment) change nothing.
//!
//! Lock order: the registers, then the device.

mod registers;
pub mod state;

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::bindings::virtio_config as config;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::registers::{QueueRegisters, Registers, set_driver_features, set_queue_register};
pub use self::registers::{register, status};
use super::{
    ActivateError, Activation, INTERRUPT_USED, Interrupt, Position, VirtQueue, VirtioDevice,
};
use crate::bus::BusDevice;
use crate::lock::lock;
use crate::memory::GuestMemory;
use crate::outcome::{Outcome, with_causes};

/// "virt"
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "rund"
const VENDOR: u32 = 0x646e_7572;

const VERSION_1: u64 = 1 << config::VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// How often one device may complain about its driver in the log.
const COMPLAINTS: u32 = 8;

/// One device's registers, its queues' doorbells and its interrupt.
pub struct MmioTransport {
    device: Arc<Mutex<dyn VirtioDevice>>,
    memory: GuestMemory,
    interrupt: Interrupt,
    doorbells: Vec<Arc<EventFd>>,
    registers: Mutex<Registers>,
    complaints: AtomicU32,
    // What of the device never changes, so that most accesses need not lock it.
    device_id: u32,
    features: u64,
    queue_sizes: Vec<u16>,
    signalled_by_backend: bool,
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device_id", &self.device_id)
            .field("registers", &self.registers)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// A transport in its reset state. The device may use all of `memory`.
    pub fn new(device: Arc<Mutex<dyn VirtioDevice>>, memory: GuestMemory) -> io::Result<Self> {
        let guard = lock(&device);
        let (device_id, queue_sizes) = (guard.device_id(), guard.queue_sizes().to_vec());
        let (features, signalled_by_backend) = (guard.features(), guard.signalled_by_backend());
        drop(guard);
        let doorbells = queue_sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new))
            .collect::<io::Result<_>>()?;
        let transport = Self {
            device,
            memory,
            interrupt: Interrupt::new()?,
            doorbells,
            registers: Mutex::default(),
            complaints: AtomicU32::new(0),
            device_id,
            features: features | VERSION_1,
            queue_sizes,
            signalled_by_backend,
        };
        lock(&transport.registers).queues = transport.fresh_queues();
        Ok(transport)
    }

    /// The interrupt, to be wired to KVM.
    #[must_use]
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// The eventfds that stand for a write of their queue number to QueueNotify.
    pub fn doorbells(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        (0_u32..).zip(self.doorbells.iter().map(|doorbell| &**doorbell))
    }

    fn fresh_queues(&self) -> Vec<QueueRegisters> {
        let fresh = |&size| QueueRegisters {
            size,
            ..Default::default()
        };
        self.queue_sizes.iter().map(fresh).collect()
    }

    fn read_register(&self, offset: u64) -> u32 {
        let registers = lock(&self.registers);
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.device_id,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => word(self.features, registers.device_features_sel),
            register::QUEUE_NUM_MAX => usize::try_from(registers.queue_sel)
                .ok()
                .and_then(|at| self.queue_sizes.get(at))
                .map_or(0, |&size| u32::from(size)),
            register::QUEUE_READY => registers
                .selected()
                .map_or(0, |queue| u32::from(queue.ready)),
            register::INTERRUPT_STATUS => self.interrupt_status(),
            register::STATUS => registers.status,
            // No shared memory regions: length -1 (§4.2.2).
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            register::CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    /// A backend that signals the interrupt itself leaves no trace here, so a used buffer is always
    /// possible: the driver looks, and finds its ring as it is.
    fn interrupt_status(&self) -> u32 {
        let always = if self.signalled_by_backend {
            INTERRUPT_USED
        } else {
            0
        };
        self.interrupt.status() | always
    }

    fn write_register(&self, offset: u64, value: u32) {
        let mut registers = lock(&self.registers);
        match offset {
            register::DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            register::DRIVER_FEATURES => set_driver_features(&mut registers, value),
            register::QUEUE_SEL => registers.queue_sel = value,
            register::QUEUE_NOTIFY => self.ring_doorbell(value),
            register::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::STATUS => self.set_status(&mut registers, value),
            register::QUEUE_NUM..=register::QUEUE_DEVICE_HIGH => {
                set_queue_register(&mut registers, offset, value);
            }
            _ => {}
        }
    }

    /// KVM does this without us; only a guest whose doorbells are not wired comes here.
    fn ring_doorbell(&self, queue: u32) {
        let doorbell = usize::try_from(queue)
            .ok()
            .and_then(|at| self.doorbells.get(at));
        if let Some(Err(error)) = doorbell.map(|doorbell| doorbell.write(1)) {
            self.complain(&format!("doorbell: {error}"));
        }
    }

    /// Device status (virtio 1.2 §2.1, §3.1.1): the driver adds bits in order, or writes zero.
    fn set_status(&self, registers: &mut Registers, value: u32) {
        if value == 0 {
            lock(&self.device).reset();
            self.interrupt.acknowledge(u32::MAX);
            *registers = Registers {
                queues: self.fresh_queues(),
                ..Default::default()
            };
            return;
        }
        let before = registers.status;
        let value = value & status::BY_DRIVER;
        if value & before != before & status::BY_DRIVER {
            return self.complain("driver took back a status bit without a reset");
        }
        let mut added = value & !before;
        if added & status::FEATURES_OK != 0 && !self.features_acceptable(value, registers) {
            added &= !(status::FEATURES_OK | status::DRIVER_OK);
        }
        if (before | added) & status::FEATURES_OK == 0 {
            added &= !status::DRIVER_OK;
        }
        registers.status |= added;
        if added & status::DRIVER_OK != 0 {
            self.activate(registers);
        }
    }

    fn features_acceptable(&self, status: u32, registers: &Registers) -> bool {
        let introduced = status::ACKNOWLEDGE | status::DRIVER;
        let chosen = registers.driver_features;
        status & introduced == introduced && chosen & !self.features == 0 && chosen & VERSION_1 != 0
    }

    fn activate(&self, registers: &mut Registers) {
        let mut device = lock(&self.device);
        let live = self.make_queues(registers, &[]).and_then(|queues| {
            device.activate(Activation {
                memory: self.memory.clone(),
                features: registers.driver_features,
                queues,
                interrupt: self.interrupt.clone(),
                resumed: false,
            })
        });
        if let Err(error) = live {
            device.reset();
            drop(device);
            registers.status |= status::NEEDS_RESET;
            self.interrupt.signal_config();
            self.complain(&with_causes(&error));
        }
    }

    /// Turns the registers of ready queues into queues; none of them can point outside guest memory.
    /// Those with a position go on from there.
    fn make_queues(
        &self,
        registers: &Registers,
        positions: &[Option<Position>],
    ) -> Result<Vec<VirtQueue>, ActivateError> {
        let mut queues = Vec::with_capacity(registers.queues.len());
        let sizes = self.queue_sizes.iter().zip(&self.doorbells);
        for (index, (wanted, (&max, kick))) in (0_u16..).zip(registers.queues.iter().zip(sizes)) {
            if !wanted.ready {
                continue;
            }
            let bad = |source| ActivateError::Queue { index, source };
            let mut queue = Queue::new(max).map_err(bad)?;
            queue.try_set_size(wanted.size).map_err(bad)?;
            queue
                .try_set_desc_table_address(GuestAddress(wanted.desc))
                .map_err(bad)?;
            queue
                .try_set_avail_ring_address(GuestAddress(wanted.driver))
                .map_err(bad)?;
            queue
                .try_set_used_ring_address(GuestAddress(wanted.device))
                .map_err(bad)?;
            queue.set_event_idx(registers.driver_features & EVENT_IDX != 0);
            queue.set_ready(true);
            if let Some(Some(position)) = positions.get(usize::from(index)) {
                queue.set_next_avail(position.next_avail);
                queue.set_next_used(position.next_used);
            }
            // Address zero is how virtio-queue marks a ring that was never set.
            if wanted.driver == 0 || !queue.is_valid(&self.memory) {
                return Err(ActivateError::OutsideMemory { index });
            }
            queues.push(VirtQueue {
                index,
                queue,
                kick: Arc::clone(kick),
            });
        }
        Ok(queues)
    }

    fn complain(&self, what: &str) {
        let before = self.complaints.fetch_add(1, Ordering::Relaxed);
        if before < COMPLAINTS {
            log::warn!("virtio device {}: {what}", self.device_id);
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            lock(&self.device).read_config(offset, data);
        } else if let (Ok(data), true) = (<&mut [u8; 4]>::try_from(data), offset.is_multiple_of(4))
        {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> ControlFlow<Outcome> {
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            lock(&self.device).write_config(offset, data);
        } else if let (Ok(data), true) = (<&[u8; 4]>::try_from(data), offset.is_multiple_of(4)) {
            self.write_register(offset, u32::from_le_bytes(*data));
        }
        ControlFlow::Continue(())
    }
}

/// The `select`th 32 bits of the feature bits.
fn word(features: u64, select: u32) -> u32 {
    let bytes = features.to_le_bytes();
    let at = match select {
        0 => 0,
        1 => 4,
        _ => return 0,
    };
    bytes
        .get(at..at + 4)
        .and_then(|half| half.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests;
