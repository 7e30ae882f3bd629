//! Against a scripted backend on the other end of a socket.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use virtio_queue::Queue;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::{BackendError, Connecting};
use super::watch::{Chaperone, Watch};
use super::*;
use crate::events::EventLoop;
use crate::memory::GuestRam;
use crate::memory::layout::WINDOW;
use crate::spec::{DiskSpec, MemorySpec};

const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;

const NEED_REPLY: u32 = 8;
const REPLY: u32 = 1 | 4;

/// VERSION_1, PROTOCOL_FEATURES, RO, BLK_SIZE, CONFIG_WCE.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 5 | 1 << 6 | 1 << 11;
/// MQ, REPLY_ACK, CONFIG and a few that must not be taken.
const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 9 | 1 << 5 | 1 << 15;

/// How this backend differs from a good one.
#[derive(Clone, Copy)]
struct Script {
    features: u64,
    protocol: u64,
    /// Hang up instead of handling this request.
    hang_up_at: u32,
    /// Stop answering at this request, but stay connected.
    freeze_at: u32,
    /// How far it is with every ring.
    base: u32,
}

const GOOD: Script = Script {
    features: FEATURES,
    protocol: PROTOCOL,
    hang_up_at: 0,
    freeze_at: 0,
    base: 0x1_0007,
};

/// Requests as they came: number and body.
type Journal = Arc<Mutex<Vec<(u32, Vec<u8>)>>>;

fn serve(mut stream: UnixStream, script: Script, journal: &Journal) {
    let mut header = [0; 12];
    while stream.read_exact(&mut header).is_ok() {
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let (request, flags, size) = (word(0), word(4), word(8));
        let mut body = vec![0; usize::try_from(size).unwrap()];
        stream.read_exact(&mut body).unwrap();
        if request == script.hang_up_at {
            return;
        }
        if request == script.freeze_at {
            let _ = stream.read(&mut header);
            return;
        }
        let number = |value: u64| value.to_le_bytes().to_vec();
        let answer = match request {
            1 => Some(number(script.features)),
            15 => Some(number(script.protocol)),
            17 => Some(number(2)),
            GET_VRING_BASE => Some([&body[..4], &script.base.to_le_bytes()].concat()),
            GET_CONFIG => Some([&body[..12], &(0..60).collect::<Vec<u8>>()].concat()),
            _ if flags & NEED_REPLY != 0 => Some(number(0)),
            _ => None,
        };
        journal.lock().unwrap().push((request, body));
        if let Some(answer) = answer {
            let size = u32::try_from(answer.len()).unwrap();
            let head = [request, REPLY, size].map(u32::to_le_bytes).concat();
            stream.write_all(&[head, answer].concat()).unwrap();
        }
    }
}

struct Rig {
    _directory: tempfile::TempDir,
    disk: DiskSpec,
    journal: Journal,
}

fn rig(script: Script) -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("disk.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let journal = Journal::default();
    let copy = Arc::clone(&journal);
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            serve(stream, script, &copy);
        }
    });
    let disk = DiskSpec {
        id: "root".to_owned(),
        socket,
        read_only: true,
        queues: 2,
        queue_size: 64,
    };
    Rig {
        _directory: directory,
        disk,
        journal,
    }
}

fn device(rig: &Rig) -> (VhostBlk, Watch, GuestRam) {
    let (backend, stream) = Connecting::start(&rig.disk).unwrap().wait().unwrap();
    let ram = GuestRam::allocate(&MemorySpec {
        mib: 64,
        window_mib: 1,
    })
    .unwrap();
    let watch = Watch::new("root", stream).unwrap();
    (
        VhostBlk::new(backend, ram.window().clone(), watch.deadline()),
        watch,
        ram,
    )
}

/// A queue of 64 with its rings at `base`.
fn queue(index: u16, base: u64) -> VirtQueue {
    let mut queue = Queue::new(64).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(base))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(base + 0x400))
        .unwrap();
    queue
        .try_set_used_ring_address(GuestAddress(base + 0x800))
        .unwrap();
    queue.set_ready(true);
    VirtQueue {
        index,
        queue,
        kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
    }
}

fn activation(ram: &GuestRam, queues: Vec<VirtQueue>) -> Activation {
    let features = 1 << 32 | 1 << 33 | 1 << 5;
    let interrupt = Interrupt::new().unwrap();
    Activation {
        memory: ram.memory().clone(),
        features,
        queues,
        interrupt,
        resumed: false,
    }
}

fn requests(rig: &Rig) -> Vec<u32> {
    rig.journal
        .lock()
        .unwrap()
        .iter()
        .map(|(request, _)| *request)
        .collect()
}

fn body(rig: &Rig, request: u32) -> Vec<u8> {
    let journal = rig.journal.lock().unwrap();
    journal
        .iter()
        .rev()
        .find(|(r, _)| *r == request)
        .unwrap()
        .1
        .clone()
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

#[test]
fn the_guest_is_offered_what_works_without_us() {
    let rig = rig(GOOD);
    let (device, _, _) = device(&rig);
    assert_eq!(
        device.features(),
        1 << 33 | 1 << 5 | 1 << 6 | 1 << 12,
        "no CONFIG_WCE; MQ for two"
    );
    assert_eq!(device.queue_sizes(), [64, 64]);
    let mut config = [0; 64];
    device.read_config(0, &mut config);
    assert_eq!(
        (config[0], config[33], config[59], config[60]),
        (0, 33, 59, 0)
    );
    assert_eq!(config[34..36], [2, 0], "as many queues as the guest has");
    device.read_config(u64::MAX, &mut config);
}

#[test]
fn the_backend_gets_the_window_and_nothing_else() {
    let rig = rig(GOOD);
    let (mut device, _, ram) = device(&rig);
    let queues = vec![queue(0, WINDOW.start), queue(1, WINDOW.start + 0x1000)];
    device.activate(activation(&ram, queues)).unwrap();
    let table = body(&rig, SET_MEM_TABLE);
    assert_eq!(table[..4], 1_u32.to_le_bytes());
    let region: Vec<u64> = table[8..].chunks(8).map(number).collect();
    assert_eq!(
        region,
        [WINDOW.start, 1 << 20, WINDOW.start, 0],
        "start, length, address, offset"
    );
    assert_eq!(
        number(&body(&rig, SET_FEATURES)),
        1 << 32 | 1 << 30 | 1 << 5,
        "no ACCESS_PLATFORM"
    );
    let addresses: Vec<u64> = body(&rig, SET_VRING_ADDR)[8..]
        .chunks(8)
        .map(number)
        .collect();
    let base = WINDOW.start + 0x1000;
    assert_eq!(
        addresses[..3],
        [base, base + 0x800, base + 0x400],
        "descriptors, used, available"
    );
    assert_eq!(number(&body(&rig, SET_VRING_BASE)), 1, "ring 1 from 0");

    device.reset();
    let all = requests(&rig);
    assert_eq!(all.iter().filter(|&&r| r == GET_VRING_BASE).count(), 2);
    device.reset();
    assert_eq!(requests(&rig), all, "nothing to stop twice");
    device
        .activate(activation(&ram, vec![queue(0, WINDOW.start)]))
        .unwrap();
}

#[test]
fn a_ring_goes_on_where_another_backend_left_it() {
    let (first, second) = (rig(GOOD), rig(GOOD));
    let (mut device_one, _, ram) = device(&first);
    let base = WINDOW.start + 0x1000;
    let queues = vec![queue(1, base)];
    device_one.activate(activation(&ram, queues)).unwrap();
    let positions = device_one.stop().unwrap();
    let position = Position {
        next_avail: 7,
        next_used: 7,
    };
    assert_eq!(positions, [(1, position)], "all that was taken is done");
    let ends: Vec<_> = requests(&first).into_iter().rev().take(2).collect();
    assert_eq!(ends, [GET_VRING_BASE, SET_VRING_ENABLE]);
    assert!(device_one.stop().unwrap().is_empty());

    let (mut device_two, _, _) = device(&second);
    let mut ring = queue(1, base);
    ring.queue.set_next_avail(7);
    device_two.activate(activation(&ram, vec![ring])).unwrap();
    assert_eq!(body(&second, SET_VRING_BASE), [1, 0, 0, 0, 7, 0, 0, 0]);
}

#[test]
fn a_backend_that_does_not_give_its_ring_back_is_cut_off_on_the_main_thread_too() {
    let rig = rig(Script {
        freeze_at: GET_VRING_BASE,
        ..GOOD
    });
    let (mut device, watch, ram) = device(&rig);
    let queues = vec![queue(0, WINDOW.start)];
    device.activate(activation(&ram, queues)).unwrap();
    let chaperone = Chaperone::start(vec![Arc::new(Mutex::new(watch))]).unwrap();
    let error = device.stop().unwrap_err();
    assert_eq!(error.to_string(), "the backend did not stop queue 0");
    drop(chaperone);
}

#[test]
fn rings_outside_the_window_never_reach_the_backend() {
    let rig = rig(GOOD);
    let (mut device, _, ram) = device(&rig);
    let end = WINDOW.start + (1 << 20);
    for base in [
        0,
        WINDOW.start - 0x1000,
        WINDOW.start - 0x400,
        end - 0x800,
        end,
        0x100_0000,
    ] {
        let queues = vec![queue(0, WINDOW.start), queue(1, base)];
        let refused = device.activate(activation(&ram, queues));
        assert!(
            matches!(refused, Err(ActivateError::OutsideWindow { index: 1, .. })),
            "{base:#x}: {refused:?}"
        );
        device.reset();
    }
    assert!(!requests(&rig).contains(&SET_VRING_ADDR));
    assert!(!requests(&rig).contains(&SET_MEM_TABLE));
}

#[test]
fn unusable_backends_are_named_with_their_fault() {
    let fault = |script: Script, change: fn(&mut DiskSpec)| {
        let mut rig = rig(script);
        change(&mut rig.disk);
        Connecting::start(&rig.disk).unwrap().wait().unwrap_err()
    };
    let same = |_: &mut DiskSpec| {};
    let writable = Script {
        features: FEATURES & !(1 << 5),
        ..GOOD
    };
    assert!(matches!(
        fault(writable, same),
        BackendError::Writable { .. }
    ));
    let plain = Script {
        features: 1 << 32 | 1 << 5,
        ..GOOD
    };
    assert!(matches!(fault(plain, same), BackendError::Lacks { .. }));
    let no_config = Script {
        protocol: 1,
        ..GOOD
    };
    assert!(matches!(fault(no_config, same), BackendError::Lacks { .. }));
    let greedy = |disk: &mut DiskSpec| disk.queues = 3;
    assert!(matches!(
        fault(GOOD, greedy),
        BackendError::Queues {
            wanted: 3,
            have: 2,
            ..
        }
    ));
    let dead = Script {
        hang_up_at: GET_CONFIG,
        ..GOOD
    };
    assert!(matches!(
        fault(dead, same),
        BackendError::Talk {
            what: "GET_CONFIG",
            ..
        }
    ));
    let absent = |disk: &mut DiskSpec| disk.socket = PathBuf::from("/nonexistent/disk.sock");
    let error = fault(GOOD, absent);
    assert!(
        error
            .to_string()
            .contains("disk root: cannot connect to /nonexistent/disk.sock")
    );
}

#[test]
fn a_lost_backend_ends_the_sandbox() {
    let rig = rig(Script {
        hang_up_at: SET_VRING_ENABLE,
        ..GOOD
    });
    let (mut device, watch, ram) = device(&rig);
    let mut events = EventLoop::new().unwrap();
    let watch = Arc::new(Mutex::new(watch));
    let registrar = events.subscribe(watch.clone());
    watch.lock().unwrap().attach(&registrar).unwrap();
    assert!(events.turn(0).unwrap().is_continue());
    assert!(
        device
            .activate(activation(&ram, vec![queue(0, WINDOW.start)]))
            .is_err()
    );
    let outcome = events.turn(1000).unwrap().break_value();
    assert!(
        matches!(&outcome, Some(Outcome::BackendLost(why)) if why.contains("disk root")),
        "{outcome:?}"
    );
}

#[test]
fn a_silent_backend_is_cut_off_after_its_time() {
    let rig = rig(Script {
        freeze_at: SET_VRING_ENABLE,
        ..GOOD
    });
    let (mut device, watch, ram) = device(&rig);
    let mut events = EventLoop::new().unwrap();
    let watch = Arc::new(Mutex::new(watch));
    let registrar = events.subscribe(watch.clone());
    watch.lock().unwrap().attach(&registrar).unwrap();
    let activating =
        thread::spawn(move || device.activate(activation(&ram, vec![queue(0, WINDOW.start)])));
    let outcome = events.run().unwrap();
    assert!(
        matches!(&outcome, Outcome::BackendLost(why) if why.contains("within 5 s")),
        "{outcome:?}"
    );
    assert!(
        activating.join().unwrap().is_err(),
        "the waiting thread came back"
    );
}
