mod driver;
mod resume;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes};

use self::driver::{Driver, rx_descriptor};
use super::packet::{Header, MAX_PAYLOAD, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::support::{GUEST_CID, header, pattern};
use super::*;
use crate::events::EventLoop;

const TOTAL: usize = 64 << 20;
/// A prime, so that no power of two that gets lost goes unnoticed.
const PERIOD: usize = 1_048_573;
const PATIENCE: Duration = Duration::from_secs(100);

/// A device in its event loop, its driver, and one socket of the guest.
struct Machine {
    folder: TempDir,
    device: Arc<Mutex<Vsock>>,
    events: EventLoop,
    driver: Driver,
    readies: Arc<AtomicU32>,
    started: Instant,
}

fn boot(event_idx: bool) -> Machine {
    let folder = tempfile::tempdir().unwrap();
    let spec = VsockSpec {
        cid: u32::try_from(GUEST_CID).unwrap(),
        socket: folder.path().join("v"),
    };
    let readies = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&readies);
    let ready = Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let device = Arc::new(Mutex::new(Vsock::new(&spec, ready).unwrap()));
    let mut events = EventLoop::new().unwrap();
    let registrar = events.subscribe(device.clone());
    device.lock().unwrap().attach(registrar).unwrap();
    let driver = Driver::start(&mut device.lock().unwrap(), event_idx);
    Machine {
        folder,
        device,
        events,
        driver,
        readies,
        started: Instant::now(),
    }
}

impl Machine {
    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("v{suffix}"))
    }

    fn turn(&mut self) {
        assert!(self.started.elapsed() < PATIENCE, "nothing moves any more");
        let outcome = self.events.turn(5).unwrap();
        assert!(outcome.is_continue(), "{outcome:?}");
    }

    /// Waits for a packet; what the driver does not see it was told by an interrupt.
    fn expect(&mut self, op: Op) -> (Header, Vec<u8>) {
        loop {
            if let Some((header, payload)) = self.driver.receive() {
                assert_eq!(Op::from_wire(header.op), Some(op));
                assert!(self.driver.interrupted());
                return (header, payload);
            }
            self.turn();
        }
    }

    fn send(&mut self, op: Op, host: u32, payload: &[u8]) {
        self.driver.send(&header(op, host, 1024), payload);
        self.turn();
    }

    fn connect(&mut self) -> (UnixStream, u32) {
        let mut host = UnixStream::connect(self.path("")).unwrap();
        host.write_all(b"CONNECT 1024\n").unwrap();
        let (request, _) = self.expect(Op::Request);
        let port = request.src_port;
        self.send(Op::Response, port, &[]);
        let mut line = vec![0; format!("OK {port}\n").len()];
        host.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("OK {port}\n").as_bytes());
        (host, port)
    }
}

/// The guest's end of one connection, sending and receiving [`TOTAL`] bytes by the rules.
struct Flow<'a> {
    data: &'a [u8],
    base: Header,
    sent: usize,
    got: usize,
    told: usize,
    credit: usize,
}

impl Flow<'_> {
    const BUFFER: usize = 256 * 1024;

    fn header(&mut self, op: Op) -> Header {
        self.told = self.got;
        Header {
            op: op.to_wire(),
            buf_alloc: Self::BUFFER.try_into().unwrap(),
            fwd_cnt: self.got.try_into().unwrap(),
            ..self.base
        }
    }

    /// One step of a driver that was interrupted; false if there was nothing to do.
    fn step(&mut self, driver: &mut Driver) -> bool {
        let mut busy = false;
        while let Some((header, payload)) = driver.receive() {
            busy = true;
            let at = self.got % PERIOD;
            assert!(payload == self.data[at..at + payload.len()]);
            self.got += payload.len();
            assert!(self.got - self.told <= Self::BUFFER, "more than granted");
            self.credit = header.fwd_cnt as usize + header.buf_alloc as usize;
        }
        if self.got - self.told > Self::BUFFER / 2 && driver.can_send() {
            let update = self.header(Op::CreditUpdate);
            driver.send(&update, &[]);
        }
        while self.sent < TOTAL && self.sent < self.credit && driver.can_send() {
            busy = true;
            let len = MAX_PAYLOAD
                .min(self.credit - self.sent)
                .min(TOTAL - self.sent);
            let at = self.sent % PERIOD;
            let packet = self.header(Op::Rw);
            driver.send(&packet, &self.data[at..at + len]);
            self.sent += len;
        }
        busy
    }
}

fn data() -> Arc<Vec<u8>> {
    let mut data = pattern(0, PERIOD);
    data.extend_from_within(..MAX_PAYLOAD * 2);
    Arc::new(data)
}

/// A program on the host that writes and reads [`TOTAL`] bytes at once.
fn host_program(mut host: UnixStream, data: &Arc<Vec<u8>>) -> Vec<JoinHandle<()>> {
    let mut reader = host.try_clone().unwrap();
    let (sent, expected) = (Arc::clone(data), Arc::clone(data));
    let writer = thread::spawn(move || {
        let mut done = 0;
        while done < TOTAL {
            let at = done % PERIOD;
            let len = (TOTAL - done).min(100_000);
            done += host.write(&sent[at..at + len]).unwrap();
        }
        host.shutdown(Shutdown::Write).unwrap();
    });
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; 100_000];
        let mut done = 0;
        loop {
            let read = reader.read(&mut buffer).unwrap();
            if read == 0 {
                break;
            }
            let at = done % PERIOD;
            assert!(buffer[..read] == expected[at..at + read], "at {done}");
            done += read;
        }
        assert_eq!(done, TOTAL);
    });
    vec![writer, reader]
}

/// 64 MiB each way at the same time, every byte compared.
fn transfer(event_idx: bool) {
    let mut machine = boot(event_idx);
    let (host, port) = machine.connect();
    let data = data();
    let started = Instant::now();
    let threads = host_program(host, &data);
    let mut flow = Flow {
        data: &data,
        base: header(Op::Rw, port, 1024),
        sent: 0,
        got: 0,
        told: 0,
        credit: 128 * 1024,
    };
    while flow.sent < TOTAL || flow.got < TOTAL {
        flow.step(&mut machine.driver);
        machine.turn();
    }
    let end = Header {
        flags: SHUTDOWN_SEND | SHUTDOWN_RECEIVE,
        ..flow.header(Op::Shutdown)
    };
    machine.driver.send(&end, &[]);
    while threads.iter().any(|thread| !thread.is_finished()) {
        machine.driver.receive();
        machine.turn();
    }
    for thread in threads {
        thread.join().unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    let kicks = (machine.driver.rx.kicks, machine.driver.tx.kicks);
    println!("event index {event_idx}: {seconds:.2} s, kicks (rx, tx) {kicks:?}");
    let device = &mut machine.device.lock().unwrap();
    assert_eq!(device.muxer.connections(), 0);
}

#[test]
fn large_transfers_are_lossless() {
    transfer(false);
}

#[test]
fn large_transfers_are_lossless_with_event_index() {
    transfer(true);
}

#[test]
fn the_guest_is_ready_when_it_dials() {
    let mut machine = boot(true);
    machine.send(Op::Request, 1024, &[]);
    machine.expect(Op::Rst);
    assert_eq!(machine.readies.load(Ordering::Relaxed), 0);
    for _ in 0..3 {
        machine.send(Op::Request, muxer::READY_PORT, &[]);
        machine.expect(Op::Rst);
    }
    let server = UnixListener::bind(machine.path("_1025")).unwrap();
    machine.send(Op::Request, muxer::READY_PORT, &[]);
    machine.expect(Op::Response);
    assert_eq!(machine.readies.load(Ordering::Relaxed), 1);
    server.accept().unwrap();
}

#[test]
fn what_is_due_before_the_first_command_is_done_before_the_guest_hears_of_it() {
    let mut machine = boot(true);
    let done = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&done);
    let then = Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    machine.device.lock().unwrap().before_first_command(then);
    let _renewal = machine.connect();
    assert_eq!(done.load(Ordering::Relaxed), 0);
    let mut commands = Vec::new();
    for _ in 0..2 {
        let mut host = UnixStream::connect(machine.path("")).unwrap();
        host.write_all(b"CONNECT 1024\n").unwrap();
        commands.push(host);
        machine.expect(Op::Request);
        assert_eq!(done.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn packets_wait_for_buffers_and_buffers_wake_them() {
    for event_idx in [false, true] {
        let mut machine = boot(event_idx);
        let mut host = UnixStream::connect(machine.path("")).unwrap();
        host.write_all(b"CONNECT 1024\n").unwrap();
        let (request, _) = machine.expect(Op::Request);
        // Credit for everything at once: the guest's only further part is to give buffers.
        let total = 2 << 20;
        let answer = Header {
            buf_alloc: total,
            ..header(Op::Response, request.src_port, 1024)
        };
        machine.driver.send(&answer, &[]);
        let writer = thread::spawn(move || {
            host.write_all(&vec![1; total as usize]).unwrap();
            host
        });
        let mut got = 0;
        while got < total {
            // Let it use up every buffer before there are new ones.
            for _ in 0..20 {
                machine.turn();
            }
            while let Some((found, _)) = machine.driver.receive() {
                got += found.len;
            }
        }
        writer.join().unwrap();
    }
}

#[test]
fn a_buffer_taken_in_vain_is_not_lost() {
    let mut machine = boot(true);
    let (mut host, _) = machine.connect();
    // After each message the socket is asked for more, and has none.
    for message in [b"one", b"two"] {
        host.write_all(message).unwrap();
        let (_, payload) = machine.expect(Op::Rw);
        assert_eq!(payload, message);
        let device = machine.device.lock().unwrap();
        let queue = &device.live.as_ref().unwrap().rx.queue;
        assert_eq!(queue.next_avail(), queue.next_used());
    }
}

#[test]
fn work_beyond_the_budget_is_done_without_a_kick() {
    let mut machine = boot(true);
    let server = UnixListener::bind(machine.path("_80")).unwrap();
    machine.send(Op::Request, 80, &[]);
    machine.expect(Op::Response);
    let (mut host, _) = server.accept().unwrap();
    // News of the fresh socket would be a reason to work, too.
    for _ in 0..4 {
        machine.turn();
    }
    // A chain of two descriptors each: what the ring holds of them is within the budget, so the
    // same descriptors are offered several times.
    machine.driver.send(&header(Op::Rw, 80, 1024), b"x");
    let ring = &mut machine.driver.tx;
    let head: u16 = ring.memory.read_obj(ring.avail.unchecked_add(6)).unwrap();
    for _ in 0..BUDGET {
        ring.post(head);
    }
    let kicks = ring.kicks;
    for _ in 0..4 {
        machine.turn();
    }
    assert_eq!(machine.driver.tx.kicks, kicks);
    let mut got = vec![0; BUDGET + 2];
    host.set_nonblocking(true).unwrap();
    assert_eq!(host.read(&mut got).unwrap(), BUDGET + 1);
}

#[test]
fn configuration_is_the_context_id() {
    let machine = boot(true);
    let device = machine.device.lock().unwrap();
    let mut whole = [0; 8];
    device.read_config(0, &mut whole);
    assert_eq!(u64::from_le_bytes(whole), GUEST_CID);
    let mut past = [0; 8];
    device.read_config(4, &mut past);
    assert_eq!(past, [0; 8]);
    device.read_config(u64::MAX, &mut past);
    assert_eq!(past, [0; 8]);
    assert_eq!(device.device_id(), 19);
}

#[test]
fn unusable_receive_buffers_are_given_back() {
    let mut machine = boot(true);
    // The driver swaps its next buffers for some with no room, then one outside memory.
    machine
        .driver
        .rx
        .describe(0, Descriptor::new(0x10_0000, 44, 2, 0));
    machine
        .driver
        .rx
        .describe(1, Descriptor::new(u64::MAX, 4096, 2, 0));
    machine.send(Op::Request, 81, &[]);
    let ring = &machine.driver.rx;
    let used: u16 = ring.memory.read_obj(ring.used.unchecked_add(2)).unwrap();
    assert_eq!(used, 3, "two given back, one with the reset");
    let lengths: Vec<u32> = (0..3)
        .map(|slot| {
            let at = ring.used.unchecked_add(8 + slot * 8);
            ring.memory.read_obj(at).unwrap()
        })
        .collect();
    assert_eq!(lengths, [0, 0, 44]);
}

#[test]
fn broken_rings_stop_the_device_and_a_reset_revives_it() {
    let mut machine = boot(true);
    let (mut host, port) = machine.connect();
    // More chains than the ring has entries.
    machine.driver.tx.publish(0x8000);
    machine.driver.tx.kick();
    machine.turn();
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 0, "its connections end");
    assert!(machine.device.lock().unwrap().live.is_none());
    machine.driver.tx.kick();
    machine.turn();
    machine.device.lock().unwrap().reset();
    machine.driver = Driver::start(&mut machine.device.lock().unwrap(), true);
    let (_host, second) = machine.connect();
    assert_ne!(port, second);
}

#[test]
fn a_head_beyond_the_table_is_no_packet() {
    let mut machine = boot(true);
    machine.driver.tx.post(u16::MAX);
    machine.driver.tx.kick();
    machine.turn();
    assert!(machine.device.lock().unwrap().live.is_none());
    machine.device.lock().unwrap().reset();
    machine.driver = Driver::start(&mut machine.device.lock().unwrap(), false);
    machine.driver.rx.describe(0, rx_descriptor(0));
    machine.connect();
}

#[test]
fn the_socket_goes_with_the_device() {
    let machine = boot(true);
    let path = machine.path("");
    assert!(path.exists());
    drop((machine.device, machine.events));
    assert!(!path.exists());
}
