//! The vsock device between a hostile guest and busy programs on the host.
//!
//! Checked: packets to the guest are well formed and fit their buffers; nothing the guest does
//! ends the sandbox; and whatever happened, after a reset the device serves a connection as on the
//! first day.

#![no_main]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use rundlet_fuzz::{Input, NEXT, Ring, WRITE, no_sigpipe, poke};
use rundlet_vmm::devices::virtio::{Activation, Interrupt, VirtQueue, VirtioDevice};
use rundlet_vmm::devices::vsock::Vsock;
use rundlet_vmm::devices::vsock::packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use rundlet_vmm::events::{EventSet, Subscriber};
use rundlet_vmm::spec::VsockSpec;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const CID: u64 = 3;
const RX: usize = 0;
const TX: usize = 1;
const EVENTS: usize = 2;
const SIZE: u16 = 64;
const RX_BUFFERS: u64 = 0x2_0000;
const TX_BUFFERS: u64 = 0x8_0000;
const BYTES: usize = 0x20_0000;
/// A host port that a program listens on.
const SERVED: u32 = 80;
const ACTIONS: usize = 200;
const STREAMS: usize = 12;

/// Tokens of the device at its event loop.
const TOKENS: [u32; 4] = [0, 1, 2, 3];

struct Bench {
    device: Vsock,
    folder: TempDir,
    server: UnixListener,
    memory: GuestMemoryMmap<()>,
    interrupt: Interrupt,
    kicks: [Arc<EventFd>; 3],
}

impl Bench {
    fn new() -> Self {
        no_sigpipe();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let spec = VsockSpec {
            cid: 3,
            socket: folder.path().join("v"),
        };
        let server = UnixListener::bind(folder.path().join("v_80")).expect("a socket");
        server.set_nonblocking(true).expect("a socket");
        let kick = || Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        Self {
            device: Vsock::new(&spec, Box::new(|| {})).expect("a device"),
            folder,
            server,
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), BYTES)]).expect("memory"),
            interrupt: Interrupt::new().expect("an eventfd"),
            kicks: [kick(), kick(), kick()],
        }
    }

    /// Sets the device up with fresh rings.
    fn start(&mut self, event_idx: bool) -> [Ring; 3] {
        self.device.reset();
        while self.server.accept().is_ok() {}
        let rings = [0x1000, 0x5000, 0x9000].map(|base| Ring::new(&self.memory, base, SIZE));
        let queues = rings.iter().zip(&self.kicks).zip(0..);
        let queues = queues.map(|((ring, kick), index)| VirtQueue {
            index,
            queue: ring.queue(SIZE, event_idx),
            kick: Arc::clone(kick),
        });
        let activation = Activation {
            memory: self.memory.clone(),
            features: 1 << 32,
            queues: queues.collect(),
            interrupt: self.interrupt.clone(),
            resumed: false,
        };
        self.device.activate(activation).expect("three queues");
        rings
    }

    fn run(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        let event_idx = input.u8() & 1 != 0;
        let rings = self.start(event_idx);
        let mut guest = Guest::new(self, rings);
        for _ in 0..ACTIONS {
            if input.is_empty() {
                break;
            }
            guest.act(&mut input);
        }
        drop(guest);
        self.still_works(event_idx);
    }

    /// A host program connects, the guest accepts, a byte goes each way.
    fn still_works(&mut self, event_idx: bool) {
        let rings = self.start(event_idx);
        let mut guest = Guest::new(self, rings);
        for _ in 0..8 {
            guest.buffer(4096);
        }
        guest.dial(b"CONNECT 7\n");
        // Connections of the past may come first from the backlog, and leave.
        for _ in 0..40 {
            guest.ready(2);
            if !guest.dialled.is_empty() {
                break;
            }
        }
        let (host, port) = *guest.dialled.front().expect("a request for the guest");
        assert_eq!(port, 7);
        guest.send(&guest.header(Op::Response, host, port), &[], 0);
        let mut byte = header(Op::Rw, host, port);
        byte.len = 1;
        guest.send(&byte, b"x", 0);
        guest.ready(1);
        let mut answer = [0; 64];
        let read = guest.hosts[0].read(&mut answer).expect("an answer");
        assert_eq!(&answer[..read], format!("OK {host}\nx").as_bytes());
        guest.hosts[0].write_all(b"y").expect("room for a byte");
        let before = guest.got;
        guest.ready(2);
        assert_eq!(guest.got, before + 1);
    }
}

struct Guest<'a> {
    bench: &'a mut Bench,
    rings: [Ring; 3],
    rx_slot: u16,
    tx_slot: u16,
    /// The rings are as a driver keeps them.
    honest: bool,
    /// Programs on the host: those that dialled, then those that were dialled.
    hosts: Vec<UnixStream>,
    /// Ports of the last connections asked for by the host.
    dialled: VecDeque<(u32, u32)>,
    /// Payload bytes received in all.
    got: u64,
}

fn header(op: Op, host: u32, guest: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        kind: TYPE_STREAM,
        op: op.to_wire(),
        buf_alloc: 256 * 1024,
        ..Header::default()
    }
}

impl<'a> Guest<'a> {
    fn new(bench: &'a mut Bench, rings: [Ring; 3]) -> Self {
        Self {
            bench,
            rings,
            rx_slot: 0,
            tx_slot: 0,
            honest: true,
            hosts: Vec::new(),
            dialled: VecDeque::new(),
            got: 0,
        }
    }

    fn header(&self, op: Op, host: u32, guest: u32) -> Header {
        header(op, host, guest)
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let action = input.u8();
        match action & 0x7f {
            0..=39 => self.packet(input),
            40..=49 => (0..=input.u8() % 8).for_each(|_| self.buffer(4096)),
            50..=52 => {
                let room = input.mostly(45) as u32;
                self.buffer(room);
            }
            53..=57 => self.dial(format!("CONNECT {}\n", input.u8() % 4).as_bytes()),
            58 => {
                let count = usize::from(input.u8() % 40);
                self.dial(input.bytes(count));
            }
            59..=64 => self.answer(),
            65..=74 => self.host_writes(input),
            75..=82 => self.host_reads(input),
            83..=87 => self.host_ends(input),
            88..=90 => self.accept(),
            91..=99 => self.ready(TOKENS[usize::from(input.u8() % 4)]),
            100..=103 => self.mischief(action & 3, input),
            104 => {
                self.hosts.clear();
                self.rings = self.bench.start(input.u8() & 1 != 0);
                self.honest = true;
                self.rx_slot = 0;
            }
            _ => {}
        }
        if action & 0x80 == 0 {
            self.ready(1);
            self.ready(2);
        }
    }

    /// Lets the device work on one of its descriptors, and takes what it has for us.
    fn ready(&mut self, token: u32) {
        let flow = self.bench.device.ready(token, EventSet::IN);
        assert!(flow.is_continue(), "{flow:?}");
        while self.rings[TX].take_used().is_some() {}
        while self.rings[EVENTS].take_used().is_some() {}
        while let Some((head, len)) = self.rings[RX].take_used() {
            self.received(head, len);
        }
    }

    fn received(&mut self, slot: u32, used: u32) {
        // With its rings overwritten, a guest reads what it wrote itself.
        assert!(slot < u32::from(SIZE) || !self.honest);
        if used == 0 || slot >= u32::from(SIZE) {
            return;
        }
        let at = RX_BUFFERS + u64::from(slot) * 4096;
        let mut bytes = [0; HEADER_LEN];
        let memory = &self.bench.memory;
        memory
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("within memory");
        let header = Header::decode(&bytes);
        if self.honest {
            assert_eq!(Some(used), header.len.checked_add(44));
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
            let op = Op::from_wire(header.op).expect("an operation");
            assert!(op == Op::Rw || header.len == 0);
        }
        self.got = self.got.wrapping_add(u64::from(header.len));
        if header.op == Op::Request.to_wire() {
            self.dialled.push_front((header.src_port, header.dst_port));
            self.dialled.truncate(8);
        }
    }

    /// Offers one receive buffer.
    fn buffer(&mut self, room: u32) {
        if self.rings[RX].outstanding() >= SIZE {
            return;
        }
        let slot = self.rx_slot % SIZE;
        self.rx_slot = self.rx_slot.wrapping_add(1) % SIZE;
        let at = RX_BUFFERS + u64::from(slot) * 4096;
        self.rings[RX].describe(slot, at, room.min(4096), WRITE, 0);
        self.rings[RX].post(slot);
    }

    fn ports(&self, input: &mut Input<'_>) -> (u32, u32) {
        let (choice, guest) = (input.u8(), u32::from(input.u8() % 4));
        let known = |index: usize| self.dialled.get(index).copied();
        match choice {
            0..=79 => (SERVED, guest),
            80..=99 => (1025, guest),
            100..=199 => known(0).unwrap_or((SERVED, guest)),
            200..=239 => known(usize::from(choice % 8)).unwrap_or((SERVED, guest)),
            _ => (input.u32(), input.u32()),
        }
    }

    fn packet(&mut self, input: &mut Input<'_>) {
        let (host, guest) = self.ports(input);
        let op = u64::from(input.u8() % 7 + 1);
        let op = input.mostly(op) as u16;
        let len = match input.u8() {
            large @ 240..=255 => usize::from(large - 239) * 5000,
            small => usize::from(small),
        };
        let len = if op == Op::Rw.to_wire() { len } else { 0 };
        let grant = 1_u64 << (input.u8() % 20);
        // Mostly from far behind, which is an honest guest's habit, too.
        let consumed = self.got.saturating_sub(u64::from(input.u8()));
        let base = header(Op::Rw, host, guest);
        let header = Header {
            src_cid: input.mostly(CID),
            dst_cid: input.mostly(HOST_CID),
            len: input.mostly(len as u64) as u32,
            kind: input.mostly(u64::from(TYPE_STREAM)) as u16,
            op,
            flags: u32::from(input.u8()),
            buf_alloc: input.mostly(grant) as u32,
            fwd_cnt: input.mostly(consumed) as u32,
            ..base
        };
        let cut = input.u8();
        self.send(&header, &vec![0x5a; len], cut);
    }

    /// Sends a packet in one to three descriptors.
    fn send(&mut self, header: &Header, payload: &[u8], cut: u8) {
        if self.rings[TX].outstanding() > SIZE - 4 {
            return;
        }
        let at = TX_BUFFERS + u64::from(self.tx_slot % 8) * 0x2_0000;
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(payload);
        poke(&self.bench.memory, at, &bytes);
        let total = bytes.len() as u32;
        let first = match cut {
            0 => 44,
            1..=99 => u32::from(cut).min(total),
            _ => total,
        };
        let (head, next) = (self.tx_slot % SIZE, (self.tx_slot + 1) % SIZE);
        self.tx_slot = (self.tx_slot + 2) % SIZE;
        let ring = &mut self.rings[TX];
        ring.describe(head, at, first, NEXT, next);
        ring.describe(next, at + u64::from(first), total - first, 0, 0);
        ring.post(head);
    }

    /// Anything in any ring. What a buffer holds is no longer known then.
    fn mischief(&mut self, kind: u8, input: &mut Input<'_>) {
        self.honest = false;
        let ring = &mut self.rings[usize::from(input.u8() % 3)];
        match kind {
            0 => {
                let index = input.u16();
                let (addr, len) = (input.mostly(TX_BUFFERS), input.mostly(44) as u32);
                ring.describe(index, addr, len, input.u16(), input.u16());
                ring.post(index);
            }
            1 => ring.publish(input.u16()),
            2 => ring.post(input.u16()),
            _ => {
                let at = ring.table() + u64::from(input.u16()) % 0x3000;
                poke(&self.bench.memory, at, input.bytes(8));
            }
        }
    }

    /// Accepts what the host last asked for.
    fn answer(&mut self) {
        if let Some(&(host, guest)) = self.dialled.front() {
            self.send(&header(Op::Response, host, guest), &[], 0);
        }
    }

    fn dial(&mut self, line: &[u8]) {
        if self.hosts.len() == STREAMS {
            self.hosts.remove(0);
        }
        let path = self.bench.folder.path().join("v");
        let mut host = UnixStream::connect(path).expect("the device listens");
        host.set_nonblocking(true).expect("a socket");
        host.write_all(line).expect("room for a line");
        self.hosts.push(host);
    }

    fn accept(&mut self) {
        if let Ok((host, _)) = self.bench.server.accept() {
            host.set_nonblocking(true).expect("a socket");
            if self.hosts.len() == STREAMS {
                self.hosts.remove(0);
            }
            self.hosts.push(host);
        }
    }

    fn host(&mut self, input: &mut Input<'_>) -> Option<&mut UnixStream> {
        let index = usize::from(input.u8()) % self.hosts.len().max(1);
        self.hosts.get_mut(index)
    }

    fn host_writes(&mut self, input: &mut Input<'_>) {
        let len = usize::from(input.u16());
        if let Some(host) = self.host(input) {
            let _ = host.write(&vec![0xc3; len]);
        }
    }

    fn host_reads(&mut self, input: &mut Input<'_>) {
        let len = usize::from(input.u16());
        if let Some(host) = self.host(input) {
            let _ = host.read(&mut vec![0; len]);
        }
    }

    fn host_ends(&mut self, input: &mut Input<'_>) {
        let how = input.u8();
        if let Some(host) = self.host(input) {
            let _ = match how % 3 {
                0 => host.shutdown(Shutdown::Read),
                1 => host.shutdown(Shutdown::Write),
                _ => host.shutdown(Shutdown::Both),
            };
            if how & 0x80 != 0 {
                let index = usize::from(input.u8()) % self.hosts.len();
                self.hosts.remove(index);
            }
        }
    }
}

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench::new());
}

fuzz_target!(|data: &[u8]| {
    BENCH.with_borrow_mut(|bench| bench.run(data));
});
