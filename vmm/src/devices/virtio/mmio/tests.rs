use std::ops::ControlFlow;

use proptest::prelude::*;
use vm_memory::GuestMemoryBackend;

use super::*;
use crate::devices::virtio::StopError;
use crate::events::{EventSet, Registrar, Subscriber};

const SIZES: [u16; 3] = [128, 16, 8];
const OFFERED: u64 = 1 << 5 | 1 << 33 | EVENT_IDX;
const MEMORY: u64 = 1 << 20;
const CONFIG: [u8; 6] = [1, 2, 3, 4, 5, 6];

/// Notes what the transport asks of it, and checks what it is given.
#[derive(Debug, Default)]
pub(super) struct Probe {
    active: Option<Vec<(u16, u16)>>,
    features: u64,
    pub(super) activations: u32,
    refuse: bool,
    by_backend: bool,
    /// Where the device stands with its queues; how it was made active.
    pub(super) positions: Vec<(u16, Position)>,
    pub(super) resumed: bool,
}

impl Subscriber for Probe {
    fn ready(&mut self, _: u32, _: EventSet) -> ControlFlow<Outcome> {
        ControlFlow::Continue(())
    }
}

impl VirtioDevice for Probe {
    fn device_id(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        OFFERED
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(CONFIG.get(start..).unwrap_or_default()) {
            *to = *from;
        }
    }

    fn signalled_by_backend(&self) -> bool {
        self.by_backend
    }

    fn attach(&mut self, _: Registrar) -> io::Result<()> {
        Ok(())
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert!(self.active.is_none(), "activated twice without a reset");
        assert_eq!(
            activation.features & !(OFFERED | VERSION_1),
            0,
            "features never offered"
        );
        assert_ne!(activation.features & VERSION_1, 0);
        for queue in &activation.queues {
            let (ring, size) = (&queue.queue, u64::from(queue.queue.size()));
            assert!(size.is_power_of_two() && ring.size() <= SIZES[usize::from(queue.index)]);
            let parts = [
                (ring.desc_table(), 16 * size),
                (ring.avail_ring(), 6 + 2 * size),
                (ring.used_ring(), 6 + 8 * size),
            ];
            for (start, len) in parts {
                assert!(
                    start.checked_add(len).is_some_and(|end| end <= MEMORY),
                    "{start:#x}"
                );
            }
        }
        self.activations += 1;
        self.resumed = activation.resumed;
        let positions = activation.queues.iter().map(VirtQueue::position);
        self.positions = positions.collect();
        self.features = activation.features;
        self.active = Some(
            activation
                .queues
                .iter()
                .map(|q| (q.index, q.queue.size()))
                .collect(),
        );
        if self.refuse {
            return Err(ActivateError::MissingQueues {
                ready: 0,
                needed: 1,
            });
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<Vec<(u16, Position)>, StopError> {
        self.active = None;
        Ok(self.positions.drain(..).collect())
    }

    fn reset(&mut self) {
        self.active = None;
    }
}

pub(super) fn transport(probe: Probe) -> (MmioTransport, Arc<Mutex<Probe>>) {
    let memory =
        GuestMemory::from_ranges(&[(GuestAddress(0), usize::try_from(MEMORY).unwrap())]).unwrap();
    assert_eq!(memory.last_addr().0, MEMORY - 1);
    let device = Arc::new(Mutex::new(probe));
    (MmioTransport::new(device.clone(), memory).unwrap(), device)
}

fn read(transport: &MmioTransport, offset: u64) -> u32 {
    let mut data = [0xff; 4];
    transport.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(transport: &MmioTransport, offset: u64, value: u32) {
    assert!(transport.write(offset, &value.to_le_bytes()).is_continue());
}

fn negotiate(transport: &MmioTransport, low: u32, high: u32) -> u32 {
    for status in [0, status::ACKNOWLEDGE, status::ACKNOWLEDGE | status::DRIVER] {
        write(transport, register::STATUS, status);
    }
    for (select, word) in [(0, low), (1, high)] {
        write(transport, register::DRIVER_FEATURES_SEL, select);
        write(transport, register::DRIVER_FEATURES, word);
    }
    let chosen = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
    write(transport, register::STATUS, chosen);
    read(transport, register::STATUS)
}

fn set_up_queue(transport: &MmioTransport, index: u32, size: u32, base: u32) {
    write(transport, register::QUEUE_SEL, index);
    write(transport, register::QUEUE_NUM, size);
    write(transport, register::QUEUE_DESC_LOW, base);
    write(transport, register::QUEUE_DRIVER_LOW, base + 0x1000);
    write(transport, register::QUEUE_DEVICE_LOW, base + 0x2000);
    write(transport, register::QUEUE_READY, 1);
}

fn driver_ok(transport: &MmioTransport) -> u32 {
    let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    write(transport, register::STATUS, all);
    read(transport, register::STATUS)
}

/// A transport with two live queues.
pub(super) fn live() -> (MmioTransport, Arc<Mutex<Probe>>) {
    let (transport, device) = transport(Probe::default());
    negotiate(&transport, 1 << 5, 1);
    set_up_queue(&transport, 0, 64, 0x1_0000);
    set_up_queue(&transport, 2, 8, 0x2_0000);
    assert_eq!(driver_ok(&transport), 0xf);
    (transport, device)
}

#[test]
fn a_driver_that_keeps_to_the_book_gets_its_device() {
    let (transport, device) = transport(Probe::default());
    let identity = [register::MAGIC, register::VERSION, register::DEVICE_ID];
    assert_eq!(
        identity.map(|offset| read(&transport, offset)),
        [MAGIC, 2, 42]
    );
    write(&transport, register::DEVICE_FEATURES_SEL, 1);
    assert_eq!(
        read(&transport, register::DEVICE_FEATURES),
        0b11,
        "VERSION_1, ACCESS_PLATFORM"
    );
    write(&transport, register::DEVICE_FEATURES_SEL, 2);
    assert_eq!(read(&transport, register::DEVICE_FEATURES), 0);
    assert_ne!(negotiate(&transport, 1 << 5, 1) & status::FEATURES_OK, 0);
    set_up_queue(&transport, 0, 64, 0x1_0000);
    assert_eq!(read(&transport, register::QUEUE_NUM_MAX), 128);
    assert_eq!(read(&transport, register::QUEUE_READY), 1);
    set_up_queue(&transport, 2, 8, 0x2_0000);
    assert_eq!(driver_ok(&transport), 0xf);
    let probe = device.lock().unwrap();
    assert_eq!(probe.active, Some(vec![(0, 64), (2, 8)]));
    assert_eq!(probe.features, 1 << 5 | VERSION_1);
}

#[test]
fn reset_forgets_everything() {
    let (transport, device) = transport(Probe::default());
    negotiate(&transport, 1 << 5, 1);
    set_up_queue(&transport, 0, 64, 0x1_0000);
    driver_ok(&transport);
    transport.interrupt().signal_used();
    write(&transport, register::STATUS, 0);
    assert_eq!(device.lock().unwrap().active, None);
    let zeroes = [
        register::STATUS,
        register::INTERRUPT_STATUS,
        register::QUEUE_READY,
    ];
    assert_eq!(zeroes.map(|offset| read(&transport, offset)), [0; 3]);
    // The queue's addresses are gone, too: making it ready alone does not give a queue.
    negotiate(&transport, 1 << 5, 1);
    write(&transport, register::QUEUE_SEL, 0);
    write(&transport, register::QUEUE_READY, 1);
    assert_ne!(driver_ok(&transport) & status::NEEDS_RESET, 0);
    assert_eq!(device.lock().unwrap().activations, 1);
}

#[test]
fn features_must_have_been_offered_and_include_version_1() {
    for (low, high, good) in [
        (1 << 5, 1, true),
        (1 << 6, 1, false),
        (0, 0, false),
        (0, 1 << 2 | 1, false),
    ] {
        let (transport, device) = transport(Probe::default());
        let status = negotiate(&transport, low, high);
        assert_eq!(
            status & status::FEATURES_OK != 0,
            good,
            "{low:#x} {high:#x}"
        );
        driver_ok(&transport);
        assert_eq!(device.lock().unwrap().activations, u32::from(good));
    }
}

#[test]
fn features_and_queues_are_fixed_once_agreed() {
    let (transport, device) = transport(Probe::default());
    negotiate(&transport, 0, 1);
    write(&transport, register::DRIVER_FEATURES_SEL, 0);
    write(&transport, register::DRIVER_FEATURES, 1 << 5);
    set_up_queue(&transport, 0, 64, 0x1_0000);
    write(&transport, register::QUEUE_NUM, 32);
    write(&transport, register::QUEUE_DESC_LOW, 0xffff_fff0);
    driver_ok(&transport);
    set_up_queue(&transport, 1, 16, 0x3_0000);
    let probe = device.lock().unwrap();
    assert_eq!(
        (probe.features, probe.active.clone()),
        (VERSION_1, Some(vec![(0, 64)]))
    );
}

#[test]
fn queues_that_cannot_be_are_refused_at_activation() {
    let misplaced = |size, low, high| {
        let (transport, device) = transport(Probe::default());
        negotiate(&transport, 0, 1);
        set_up_queue(&transport, 1, size, 0x1_0000);
        write(&transport, register::QUEUE_READY, 0);
        write(&transport, register::QUEUE_DEVICE_LOW, low);
        write(&transport, register::QUEUE_DEVICE_HIGH, high);
        write(&transport, register::QUEUE_READY, 1);
        let status = driver_ok(&transport);
        let activations = device.lock().unwrap().activations;
        assert_eq!(activations == 0, status & status::NEEDS_RESET != 0);
        if activations == 0 {
            assert_eq!(
                read(&transport, register::INTERRUPT_STATUS),
                super::super::INTERRUPT_CONFIG
            );
        }
        activations == 0
    };
    assert!(!misplaced(16, 0x2_0000, 0));
    assert!(
        misplaced(32, 0x2_0000, 0),
        "larger than the device's largest"
    );
    assert!(misplaced(12, 0x2_0000, 0), "no power of two");
    assert!(misplaced(0, 0x2_0000, 0));
    assert!(misplaced(0x1_0010, 0x2_0000, 0), "does not wrap to 16");
    assert!(misplaced(16, 0x2_0001, 0), "not aligned");
    assert!(misplaced(16, 0xf_fffc, 0), "runs over the end of memory");
    assert!(misplaced(16, 0x2_0000, 1), "beyond memory");
    assert!(misplaced(16, 0xffff_fffc, u32::MAX), "wraps around");
}

#[test]
fn a_device_that_refuses_is_reset_and_says_so() {
    let (transport, device) = transport(Probe {
        refuse: true,
        ..Probe::default()
    });
    negotiate(&transport, 0, 1);
    set_up_queue(&transport, 0, 64, 0x1_0000);
    assert_ne!(driver_ok(&transport) & status::NEEDS_RESET, 0);
    assert_eq!(device.lock().unwrap().active, None);
    assert_eq!(transport.interrupt().generation(), 1);
}

#[test]
fn a_backend_that_signals_by_itself_always_may_have_used_a_buffer() {
    let (transport, _) = transport(Probe {
        by_backend: true,
        ..Probe::default()
    });
    write(&transport, register::INTERRUPT_ACK, u32::MAX);
    assert_eq!(read(&transport, register::INTERRUPT_STATUS), INTERRUPT_USED);
}

#[test]
fn doorbells_ring_and_unknown_ones_do_not() {
    let (transport, _) = transport(Probe::default());
    for value in [1, 3, u32::MAX] {
        write(&transport, register::QUEUE_NOTIFY, value);
    }
    let rung: Vec<_> = transport
        .doorbells()
        .filter_map(|(i, bell)| bell.read().ok().map(|_| i))
        .collect();
    assert_eq!(rung, [1]);
}

#[test]
fn configuration_reads_of_any_width_stop_at_its_end() {
    let (transport, _) = transport(Probe::default());
    let mut data = [0xff; 8];
    transport.read(register::CONFIG + 2, &mut data);
    assert_eq!(data, [3, 4, 5, 6, 0, 0, 0, 0]);
    transport.read(u64::MAX, &mut data);
    assert_eq!(data, [0; 8]);
}

/// One thing a guest can do to a transport.
#[derive(Clone, Debug)]
enum Access {
    Write(u64, Vec<u8>),
    Read(u64, usize),
}

/// Registers mostly, since random offsets would hardly ever hit one, and plausible values among wild ones:
/// with these about one sequence in three gets as far as an activation.
fn accesses() -> impl Strategy<Value = Vec<Access>> {
    let registers = (0_u64..0x140).prop_map(|offset| offset & !3);
    let offset = prop_oneof![8 => registers, 1 => 0_u64..0x1008, 1 => any::<u64>()];
    let value = prop_oneof![
        4 => prop::sample::select(vec![0_u32, 1, 2, 3, 8, 0xb, 0xf, 16, 64, 128]),
        3 => (0_u32..0x110).prop_map(|page| page << 12),
        1 => any::<u32>(),
    ];
    let word =
        (offset.clone(), value).prop_map(|(o, v)| Access::Write(o, v.to_le_bytes().to_vec()));
    let bytes = (offset.clone(), prop::collection::vec(any::<u8>(), 0..9))
        .prop_map(|(o, bytes)| Access::Write(o, bytes));
    let look = (offset, 0_usize..9).prop_map(|(o, len)| Access::Read(o, len));
    let status = prop::sample::select(vec![0_u32, 1, 3, 0xb, 0xf, 0x40, 0x8b])
        .prop_map(|v| Access::Write(register::STATUS, v.to_le_bytes().to_vec()));
    let one = prop_oneof![6 => word, 4 => status, 1 => bytes, 2 => look];
    prop::collection::vec(one, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a guest writes, in any order and width: nothing panics, the probe's own checks hold, the
    /// registers agree with the device, and a reset always leads back to the start.
    #[test]
    fn any_accesses_leave_transport_and_device_in_step(
        prefix in prop::bool::ANY,
        accesses in accesses(),
    ) {
        let (transport, device) = transport(Probe::default());
        if prefix {
            negotiate(&transport, 0, 1);
            set_up_queue(&transport, 0, 64, 0x1_0000);
        }
        for access in accesses {
            match access {
                Access::Write(offset, data) => prop_assert!(transport.write(offset, &data).is_continue()),
                Access::Read(offset, len) => transport.read(offset, &mut vec![0; len]),
            }
            let status = read(&transport, register::STATUS);
            let live = device.lock().unwrap().active.is_some();
            prop_assert_eq!(
                live,
                status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
            );
            prop_assert!(status & status::DRIVER_OK == 0 || status & status::FEATURES_OK != 0);
        }
        negotiate(&transport, 0, 1);
        set_up_queue(&transport, 0, 64, 0x1_0000);
        prop_assert_eq!(driver_ok(&transport), 0xf);
        prop_assert_eq!(device.lock().unwrap().active.clone(), Some(vec![(0, 64)]));
    }
}
