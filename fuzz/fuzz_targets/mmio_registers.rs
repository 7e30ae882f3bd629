//! virtio-mmio registers written by a hostile guest, with the real entropy and vsock devices behind them
//! and the real event loop serving their doorbells.
//!
//! Checked: registers that identify the device never change; a reset leaves nothing behind, and the
//! device comes up after it; no write ends the sandbox, or keeps the event loop from its next turn.

#![no_main]

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use rundlet_fuzz::{Input, Ring, WRITE, describe_at, no_sigpipe, poke};
use rundlet_vmm::bus::BusDevice;
use rundlet_vmm::devices::rng::Rng;
use rundlet_vmm::devices::virtio::VirtioDevice;
use rundlet_vmm::devices::virtio::mmio::{MmioTransport, register, status};
use rundlet_vmm::devices::vsock::Vsock;
use rundlet_vmm::events::EventLoop;
use rundlet_vmm::spec::VsockSpec;
use tempfile::TempDir;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const BYTES: usize = 0x4_0000;
const ACTIONS: usize = 300;
/// Places of the rings; see `Ring`.
const RINGS: u64 = 0x1000;
const STRIDE: u64 = 0x4000;
const BUFFERS: u64 = 0x2_0000;
/// Turns of the event loop at the end: whatever the guest left for it to do.
const TURNS: usize = 8;

/// Registers that a driver writes, then some that it must not.
const WRITABLE: [u64; 20] = [
    register::DEVICE_FEATURES_SEL,
    register::DRIVER_FEATURES,
    register::DRIVER_FEATURES_SEL,
    register::QUEUE_SEL,
    register::QUEUE_NUM,
    register::QUEUE_READY,
    register::QUEUE_NOTIFY,
    register::INTERRUPT_ACK,
    register::STATUS,
    register::QUEUE_DESC_LOW,
    register::QUEUE_DESC_HIGH,
    register::QUEUE_DRIVER_LOW,
    register::QUEUE_DRIVER_HIGH,
    register::QUEUE_DEVICE_LOW,
    register::QUEUE_DEVICE_HIGH,
    register::MAGIC,
    register::DEVICE_ID,
    register::QUEUE_NUM_MAX,
    register::CONFIG_GENERATION,
    register::CONFIG,
];

struct Machine {
    transport: MmioTransport,
    id: u32,
    queues: u32,
}

struct Bench {
    machines: [Machine; 2],
    events: EventLoop,
    memory: GuestMemoryMmap<()>,
    _folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        no_sigpipe();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let memory = GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), 0x9000),
            (GuestAddress(0x9000), BYTES - 0x9000),
        ])
        .expect("memory");
        let spec = VsockSpec {
            cid: 3,
            socket: folder.path().join("v"),
        };
        let mut events = EventLoop::new().expect("an epoll");
        let rng = Arc::new(Mutex::new(Rng::default()));
        let vsock = Vsock::new(&spec, Box::new(|| {})).expect("a device");
        let vsock = Arc::new(Mutex::new(vsock));
        attach(&rng, &mut events);
        attach(&vsock, &mut events);
        let machine = |transport: std::io::Result<MmioTransport>, id, queues| Machine {
            transport: transport.expect("eventfds"),
            id,
            queues,
        };
        Self {
            machines: [
                machine(MmioTransport::new(rng, memory.clone()), 4, 1),
                machine(MmioTransport::new(vsock, memory.clone()), 19, 3),
            ],
            events,
            memory,
            _folder: folder,
        }
    }

    fn run(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        for _ in 0..ACTIONS {
            if input.is_empty() {
                break;
            }
            let machine = usize::from(input.u8() & 1);
            self.act(machine, &mut input);
        }
        self.settle();
        for machine in &self.machines {
            machine.check_reset();
            machine.set_up(&self.memory, &mut Input::new(&[]));
            let live =
                status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
            assert_eq!(machine.read(register::STATUS), live, "came up again");
            machine.check_reset();
        }
        self.settle();
    }

    fn act(&mut self, index: usize, input: &mut Input<'_>) {
        let machine = &self.machines[index];
        match input.u8() {
            0..=79 => {
                let at = usize::from(input.u8()) % WRITABLE.len();
                let usual = u64::from(input.u8());
                machine.write(WRITABLE[at], input.mostly(usual) as u32);
            }
            80..=99 => {
                let (offset, len) = (u64::from(input.u16() % 0x1010), usize::from(input.u8() % 9));
                let flow = machine.transport.write(offset, input.bytes(len));
                assert!(flow.is_continue());
            }
            100..=119 => {
                let mut data = [0xff; 8];
                let (offset, len) = (u64::from(input.u16() % 0x1010), usize::from(input.u8() % 9));
                machine.transport.read(offset, &mut data[..len]);
            }
            120..=149 => machine.set_up(&self.memory, input),
            150..=199 => self.chain(index, input),
            200..=209 => {
                let at = u64::from(input.u32() % 0x4_0000);
                poke(&self.memory, at, input.bytes(16));
            }
            210..=239 => self.turn(),
            _ => machine.write(register::QUEUE_NOTIFY, u32::from(input.u8() % 4)),
        }
    }

    /// Makes a chain of one or two descriptors available in one of the rings.
    fn chain(&mut self, index: usize, input: &mut Input<'_>) {
        let queue = u32::from(input.u8()) % self.machines[index].queues;
        let base = ring_base(index, queue);
        let slot = u16::from(input.u8() % 8);
        let usual = BUFFERS + 4096 * u64::from(input.u8() % 16);
        let addr = input.mostly(usual);
        let len = input.mostly(256) as u32;
        let flags = input.mostly(u64::from(WRITE)) as u16;
        let next = input.mostly(u64::from(slot)) as u16;
        describe_at(
            &self.memory,
            base + 16 * u64::from(slot),
            addr,
            len,
            flags,
            next,
        );
        let usual = u64::from(input.u8() % 16);
        let available = input.mostly(usual) as u16;
        let at = base + 0x1000;
        poke(
            &self.memory,
            at + 4 + 2 * u64::from(available.wrapping_sub(1) % 8),
            &slot.to_le_bytes(),
        );
        poke(&self.memory, at + 2, &available.to_le_bytes());
        self.machines[index].write(register::QUEUE_NOTIFY, queue);
    }

    /// Lets the main thread work, once.
    fn turn(&mut self) {
        let flow = self.events.turn(0).expect("epoll");
        assert!(flow.is_continue(), "{flow:?}");
    }

    fn settle(&mut self) {
        for _ in 0..TURNS {
            self.turn();
        }
    }
}

fn attach<D: VirtioDevice + 'static>(device: &Arc<Mutex<D>>, events: &mut EventLoop) {
    let registrar = events.subscribe(device.clone());
    let mut guard = device.lock().expect("nobody panicked");
    guard.attach(registrar).expect("epoll takes it");
}

fn ring_base(machine: usize, queue: u32) -> u64 {
    RINGS + STRIDE * (3 * machine as u64 + u64::from(queue))
}

impl Machine {
    fn write(&self, register: u64, value: u32) {
        let flow = self.transport.write(register, &value.to_le_bytes());
        assert!(flow.is_continue(), "{flow:?}");
    }

    fn read(&self, register: u64) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    /// What a driver does to bring the device up, with a slip here and there.
    fn set_up(&self, memory: &GuestMemoryMmap<()>, input: &mut Input<'_>) {
        self.write(register::STATUS, 0);
        self.write(register::STATUS, input.mostly(1) as u32);
        self.write(register::STATUS, input.mostly(3) as u32);
        let low = u64::from(input.u8()) << 24 & 0x2000_0000;
        for (half, usual) in [(0, low), (1, 1)] {
            self.write(register::DRIVER_FEATURES_SEL, half);
            self.write(register::DRIVER_FEATURES, input.mostly(usual) as u32);
        }
        self.write(register::STATUS, input.mostly(11) as u32);
        for queue in 0..self.queues {
            let machine = usize::from(self.id == 19);
            let ring = Ring::new(memory, ring_base(machine, queue), 8);
            self.write(register::QUEUE_SEL, queue);
            self.write(register::QUEUE_NUM, input.mostly(8) as u32);
            let parts = [
                (register::QUEUE_DESC_LOW, ring.table()),
                (register::QUEUE_DRIVER_LOW, ring.avail()),
                (register::QUEUE_DEVICE_LOW, ring.used()),
            ];
            for (low, usual) in parts {
                let address = input.mostly(usual);
                self.write(low, address as u32);
                self.write(low + 4, (address >> 32) as u32);
            }
            self.write(register::QUEUE_READY, input.mostly(1) as u32);
        }
        self.write(register::STATUS, input.mostly(15) as u32);
    }

    fn check_reset(&self) {
        self.write(register::STATUS, 0);
        assert_eq!(self.read(register::STATUS), 0);
        assert_eq!(self.read(register::MAGIC), 0x7472_6976);
        assert_eq!(self.read(register::VERSION), 2);
        assert_eq!(self.read(register::DEVICE_ID), self.id);
        assert_eq!(self.read(register::INTERRUPT_STATUS), 0);
        for queue in 0..4 {
            self.write(register::QUEUE_SEL, queue);
            assert_eq!(self.read(register::QUEUE_READY), 0);
            let exists = self.read(register::QUEUE_NUM_MAX) != 0;
            assert_eq!(exists, queue < self.queues);
        }
    }
}

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench::new());
}

fuzz_target!(|data: &[u8]| {
    BENCH.with_borrow_mut(|bench| bench.run(data));
});
