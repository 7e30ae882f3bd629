//! The registers of a transport as plain numbers, and when a driver may write which (virtio 1.2 §4.2.2,
//! §3.1.1). Nothing here is checked beyond that: what the numbers are good for is found out when the
//! device is activated.

use virtio_bindings::bindings::virtio_config as config;

/// Register offsets (virtio 1.2 §4.2.2, table 4.1).
pub mod register {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_LEN_HIGH: u64 = 0x0b4;
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Device status bits (virtio 1.2 §2.1).
pub mod status {
    use super::config;
    pub const ACKNOWLEDGE: u32 = config::VIRTIO_CONFIG_S_ACKNOWLEDGE;
    pub const DRIVER: u32 = config::VIRTIO_CONFIG_S_DRIVER;
    pub const DRIVER_OK: u32 = config::VIRTIO_CONFIG_S_DRIVER_OK;
    pub const FEATURES_OK: u32 = config::VIRTIO_CONFIG_S_FEATURES_OK;
    pub const NEEDS_RESET: u32 = config::VIRTIO_CONFIG_S_NEEDS_RESET;
    pub const FAILED: u32 = config::VIRTIO_CONFIG_S_FAILED;
    pub(crate) const BY_DRIVER: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// What the driver said about one queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct QueueRegisters {
    pub(super) size: u16,
    pub(super) ready: bool,
    pub(super) desc: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

#[derive(Debug, Default)]
pub(super) struct Registers {
    pub(super) status: u32,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) driver_features: u64,
    pub(super) queue_sel: u32,
    pub(super) queues: Vec<QueueRegisters>,
}

impl Registers {
    pub(super) fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// The selected queue while the driver may still set it up (virtio 1.2 §3.1.1 step 7).
    fn selected_mut(&mut self) -> Option<&mut QueueRegisters> {
        let at = usize::try_from(self.queue_sel).ok()?;
        let open = self.status & (status::FEATURES_OK | status::DRIVER_OK) == status::FEATURES_OK;
        self.queues.get_mut(at).filter(|_| open)
    }
}

/// Driver features count until FEATURES_OK.
pub(super) fn set_driver_features(registers: &mut Registers, value: u32) {
    if registers.status & (status::DRIVER | status::FEATURES_OK) != status::DRIVER {
        return;
    }
    let features = &mut registers.driver_features;
    match registers.driver_features_sel {
        0 => set_low(features, value),
        1 => set_high(features, value),
        // Features past 64 do not exist; a driver that sets one is not talking to this device.
        _ => {}
    }
}

/// A queue can be changed until it is ready.
pub(super) fn set_queue_register(registers: &mut Registers, offset: u64, value: u32) {
    let Some(queue) = registers.selected_mut() else {
        return;
    };
    if offset == register::QUEUE_READY {
        queue.ready = value == 1;
        return;
    }
    if queue.ready {
        return;
    }
    match offset {
        // Too large a number becomes one that no queue takes.
        register::QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
        register::QUEUE_DESC_LOW => set_low(&mut queue.desc, value),
        register::QUEUE_DESC_HIGH => set_high(&mut queue.desc, value),
        register::QUEUE_DRIVER_LOW => set_low(&mut queue.driver, value),
        register::QUEUE_DRIVER_HIGH => set_high(&mut queue.driver, value),
        register::QUEUE_DEVICE_LOW => set_low(&mut queue.device, value),
        register::QUEUE_DEVICE_HIGH => set_high(&mut queue.device, value),
        _ => {}
    }
}

fn set_low(target: &mut u64, value: u32) {
    *target = *target & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(target: &mut u64, value: u32) {
    *target = *target & u64::from(u32::MAX) | u64::from(value) << 32;
}
