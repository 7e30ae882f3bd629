use std::sync::Arc;

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;

use super::*;
use crate::disk::Serial;
use crate::image::{Image, Source};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const DATA: u64 = 0x8000;

struct Bench {
    _dir: tempfile::TempDir,
    memory: GuestMemoryMmap,
    disk: Disk,
    context: Context,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![7; 8192]).unwrap();
        let disk = Disk::Image(Arc::new(Image::new(Source::open(&path).unwrap())));
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let context = Context {
            serial: Serial::new("x").unwrap(),
            write_through: false,
        };
        Self {
            _dir: dir,
            memory,
            disk,
            context,
        }
    }

    fn ring(&self, size: u16) -> (MockSplitQueue<'_, GuestMemoryMmap>, Queue) {
        let ring = MockSplitQueue::new(&self.memory, size);
        let queue = ring.create_queue().unwrap();
        (ring, queue)
    }

    fn batch(&self, queue: &mut Queue, call: Option<&File>) -> Result<Progress, Error> {
        let work = Work {
            disk: &self.disk,
            context: self.context,
        };
        Drain::default().batch(queue, &self.memory, &work, call)
    }
}

/// Header, one data buffer, status: descriptors `first` to `first + 2`.
fn read(bench: &Bench, first: u16, sector: u64, len: u32) -> [RawDescriptor; 3] {
    let at = DATA + u64::from(first) * 0x2000;
    bench.memory.write_obj(0u32, GuestAddress(at)).unwrap();
    bench
        .memory
        .write_obj(sector, GuestAddress(at + 8))
        .unwrap();
    bench
        .memory
        .write_obj(0xffu8, GuestAddress(at + 16))
        .unwrap();
    [
        Descriptor::new(at, 16, NEXT, first + 1).into(),
        Descriptor::new(at + 0x1000, len, NEXT | WRITE, first + 2).into(),
        Descriptor::new(at + 16, 1, WRITE, 0).into(),
    ]
}

fn status(bench: &Bench, first: u16) -> u8 {
    let at = DATA + u64::from(first) * 0x2000 + 16;
    bench.memory.read_obj(GuestAddress(at)).unwrap()
}

fn poke(bench: &Bench, at: u64, value: u16) {
    bench.memory.write_obj(value, GuestAddress(at)).unwrap();
}

fn peek(bench: &Bench, at: u64) -> u16 {
    bench.memory.read_obj(GuestAddress(at)).unwrap()
}

fn event() -> File {
    use rustix::event::{EventfdFlags, eventfd};
    File::from(eventfd(0, EventfdFlags::NONBLOCK).unwrap())
}

fn interrupts(call: &File) -> u64 {
    let mut count = [0; 8];
    match std::io::Read::read(&mut &*call, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

#[test]
fn answers_are_in_order_with_one_interrupt() {
    let bench = Bench::new();
    let (ring, mut queue) = bench.ring(16);
    let mut descriptors = Vec::new();
    for (first, sector) in [(0, 0), (3, 100), (6, 1)] {
        descriptors.extend(read(&bench, first, sector, 512));
    }
    ring.add_desc_chains(&descriptors, 0).unwrap();
    let call = event();
    assert_eq!(
        bench.batch(&mut queue, Some(&call)).unwrap(),
        Progress::Drained
    );
    assert_eq!([0, 3, 6].map(|first| status(&bench, first)), [0, 1, 0]);
    assert_eq!(ring.used().idx().load(), 3);
    let used = [0, 1, 2].map(|i| ring.used().ring().ref_at(i).unwrap().load());
    assert_eq!(
        used.map(|u| (u.id(), u.len())),
        [(0, 513), (3, 1), (6, 513)]
    );
    assert_eq!(interrupts(&call), 1);
    assert_eq!(
        bench.batch(&mut queue, Some(&call)).unwrap(),
        Progress::Drained
    );
    assert_eq!(interrupts(&call), 0, "nothing done, nobody told");
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let bench = Bench::new();
    let (ring, mut queue) = bench.ring(16);
    ring.add_desc_chains(&read(&bench, 0, 0, 512), 0).unwrap();
    poke(&bench, queue.avail_ring(), NO_INTERRUPT);
    let call = event();
    bench.batch(&mut queue, Some(&call)).unwrap();
    assert_eq!((status(&bench, 0), interrupts(&call)), (0, 0));
}

#[test]
fn the_event_index_says_when_to_interrupt() {
    let bench = Bench::new();
    let (ring, mut queue) = bench.ring(16);
    queue.set_event_idx(true);
    let mut descriptors = read(&bench, 0, 0, 512).to_vec();
    descriptors.extend(read(&bench, 3, 0, 512));
    ring.add_desc_chains(&descriptors, 0).unwrap();
    // After the third answer: two are not enough.
    poke(&bench, queue.avail_ring() + 4 + 2 * 16, 2);
    let call = event();
    bench.batch(&mut queue, Some(&call)).unwrap();
    assert_eq!((ring.used().idx().load(), interrupts(&call)), (2, 0));
}

#[test]
fn a_full_batch_leaves_the_rest() {
    let bench = Bench::new();
    let (ring, mut queue) = bench.ring(512);
    let mut descriptors = Vec::new();
    for first in 0..=u16::try_from(BATCH.requests).unwrap() {
        // All share their buffers: only the number counts here.
        let [header, data, status] = read(&bench, 0, 0, 512);
        let next = |raw: RawDescriptor, by: u16| {
            let d = Descriptor::from(raw);
            RawDescriptor::from(Descriptor::new(
                d.addr().0,
                d.len(),
                d.flags(),
                first * 3 + by,
            ))
        };
        descriptors.extend([next(header, 1), next(data, 2), next(status, 0)]);
    }
    ring.add_desc_chains(&descriptors, 0).unwrap();
    let call = event();
    assert_eq!(
        bench.batch(&mut queue, Some(&call)).unwrap(),
        Progress::More
    );
    assert_eq!(usize::from(ring.used().idx().load()), BATCH.requests);
    assert_eq!(
        interrupts(&call),
        u64::try_from(BATCH.requests / NEWS.requests).unwrap(),
        "the guest was told while the rest was done"
    );
    assert!(has_work(&queue, &bench.memory).unwrap());
    assert_eq!(bench.batch(&mut queue, None).unwrap(), Progress::Drained);
    assert_eq!(usize::from(ring.used().idx().load()), BATCH.requests + 1);
}

#[test]
fn a_broken_chain_ends_it_but_earlier_answers_stand() {
    let bench = Bench::new();
    let (ring, mut queue) = bench.ring(16);
    ring.add_desc_chains(&read(&bench, 0, 0, 512), 0).unwrap();
    // A second one whose only descriptor is readable, and one with a head outside the table.
    let stray = Descriptor::new(DATA, 16, 0, 0);
    ring.desc_table().store(3, stray.into()).unwrap();
    ring.avail().ring().ref_at(1).unwrap().store(3);
    ring.avail().idx().store(2);
    let call = event();
    let error = bench.batch(&mut queue, Some(&call)).unwrap_err();
    assert!(matches!(error, Error::Chain(Broken::NoStatus)));
    assert_eq!(
        (
            ring.used().idx().load(),
            status(&bench, 0),
            interrupts(&call)
        ),
        (1, 0, 1)
    );
    ring.avail().ring().ref_at(2).unwrap().store(999);
    ring.avail().idx().store(3);
    let error = bench.batch(&mut queue, None).unwrap_err();
    assert!(matches!(error, Error::Chain(Broken::Truncated)));
}

#[test]
fn a_runaway_index_is_an_error() {
    let bench = Bench::new();
    let (ring, mut queue) = bench.ring(16);
    ring.avail().idx().store(17);
    assert!(matches!(bench.batch(&mut queue, None), Err(Error::Ring(_))));
}

#[test]
fn looking_ahead_takes_nothing() {
    let bench = Bench::new();
    let (ring, mut queue) = bench.ring(16);
    let mut descriptors = read(&bench, 0, 0, 512).to_vec();
    descriptors.extend(read(&bench, 3, 1, 512));
    ring.add_desc_chains(&descriptors, 0).unwrap();
    look_ahead(
        &mut queue,
        &bench.memory,
        &bench.disk,
        &mut Buffers::default(),
    );
    assert_eq!(queue.next_avail(), 0);
    assert_eq!(bench.batch(&mut queue, None).unwrap(), Progress::Drained);
    assert_eq!(ring.used().idx().load(), 2);
}

#[test]
fn kicks_are_suppressed_while_looking_and_none_is_lost() {
    let bench = Bench::new();
    let (ring, mut queue) = bench.ring(16);
    kicks_off(&mut queue, &bench.memory).unwrap();
    assert_eq!(peek(&bench, queue.used_ring()), 1);
    assert!(!kicks_on(&mut queue, &bench.memory).unwrap());
    assert_eq!(peek(&bench, queue.used_ring()), 0);
    ring.add_desc_chains(&read(&bench, 0, 0, 512), 0).unwrap();
    assert!(kicks_on(&mut queue, &bench.memory).unwrap());
}

#[test]
fn a_ring_outside_the_memory_is_noticed() {
    let bench = Bench::new();
    let (_ring, mut queue) = bench.ring(16);
    assert!(is_mapped(&queue, &bench.memory));
    queue
        .try_set_used_ring_address(GuestAddress((1 << 20) - 8))
        .unwrap();
    assert!(!is_mapped(&queue, &bench.memory));
    queue
        .try_set_used_ring_address(GuestAddress(0x1000))
        .unwrap();
    queue.try_set_desc_table_address(GuestAddress(!15)).unwrap();
    assert!(!is_mapped(&queue, &bench.memory));
}

#[test]
#[should_panic(expected = "dropped without an answer")]
fn losing_a_request_is_loud() {
    drop(Inflight::new(3));
}

#[test]
fn a_full_event_counter_is_no_error() {
    let call = event();
    (&call).write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
    interrupt(Some(&call)).unwrap();
}
