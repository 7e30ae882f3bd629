use std::sync::{Arc, Mutex};

use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::events::EventLoop;

/// Descriptor flags (virtio 1.2 §2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const BUFFERS: u64 = 0x10_0000;

struct Rig {
    memory: GuestMemory,
    kick: Arc<EventFd>,
    events: EventLoop,
    interrupt: Interrupt,
}

/// A live device over `descriptors`, driven by a real event loop.
fn with_chains(
    descriptors: &[(u64, u32, u16)],
    run: impl FnOnce(&mut Rig, &MockSplitQueue<'_, GuestMemory>),
) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let mock = MockSplitQueue::new(&memory, 64);
    let chain: Vec<RawDescriptor> = descriptors
        .iter()
        .zip(1..)
        .map(|(&(at, len, flags), next)| RawDescriptor::from(Descriptor::new(at, len, flags, next)))
        .collect();
    mock.add_desc_chains(&chain, 0).unwrap();
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let interrupt = Interrupt::new().unwrap();
    let mut events = EventLoop::new().unwrap();
    let device = Arc::new(Mutex::new(Rng::default()));
    let registrar = events.subscribe(device.clone());
    device.lock().unwrap().attach(registrar).unwrap();
    let queue = VirtQueue {
        index: 0,
        queue: mock.create_queue().unwrap(),
        kick: Arc::clone(&kick),
    };
    let activation = Activation {
        memory: memory.clone(),
        features: 0,
        queues: vec![queue],
        interrupt: interrupt.clone(),
        resumed: false,
    };
    device.lock().unwrap().activate(activation).unwrap();
    let mut rig = Rig {
        memory: memory.clone(),
        kick,
        events,
        interrupt,
    };
    run(&mut rig, &mock);
    device.lock().unwrap().reset();
    rig.kick.write(1).unwrap();
    assert!(
        rig.events.turn(0).unwrap().is_continue(),
        "a reset device watches nothing"
    );
    assert_eq!(rig.kick.read().unwrap(), 1);
}

fn bytes(memory: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn a_request_is_filled_with_bytes_that_differ() {
    with_chains(&[(BUFFERS, 64, WRITE)], |rig, mock| {
        rig.kick.write(1).unwrap();
        assert!(rig.events.turn(1000).unwrap().is_continue());
        assert_eq!(mock.used().idx().load(), 1);
        let used = mock.used().ring().ref_at(0).unwrap().load();
        assert_eq!((used.id(), used.len()), (0, 64));
        let random = bytes(&rig.memory, BUFFERS, 128);
        assert_ne!(random[..32], random[32..64]);
        assert_eq!(random[64..], [0; 64]);
        assert_eq!(rig.interrupt.status(), 1);
    });
}

#[test]
fn greedy_and_nonsensical_requests_get_little() {
    let requests = [
        (BUFFERS, u32::MAX, WRITE),
        (BUFFERS, 64, 0),
        (u64::MAX - 8, 64, WRITE),
        (BUFFERS, 0, WRITE | NEXT),
        (BUFFERS, 16, WRITE),
    ];
    with_chains(&requests, |rig, mock| {
        rig.kick.write(1).unwrap();
        assert!(rig.events.turn(1000).unwrap().is_continue());
        assert_eq!(mock.used().idx().load(), 4);
        let given: Vec<u32> = (0..4)
            .map(|i| mock.used().ring().ref_at(i).unwrap().load().len())
            .collect();
        assert_eq!(given, [256, 0, 0, 16]);
    });
}

#[test]
fn an_index_that_runs_away_does_not_hold_the_main_thread() {
    with_chains(&[(BUFFERS, 64, WRITE)], |rig, mock| {
        mock.avail().idx().store(0x8000);
        rig.kick.write(1).unwrap();
        assert!(rig.events.turn(1000).unwrap().is_continue());
        assert_eq!(mock.used().idx().load(), 0);
    });
}
