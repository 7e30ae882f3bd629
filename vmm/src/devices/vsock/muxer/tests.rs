use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::devices::vsock::packet::{
    HOST_CID, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TxPacket,
};
use crate::devices::vsock::support::{Arena, GUEST_CID, header, pattern};

const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

struct Harness {
    folder: TempDir,
    arena: Arena,
    muxer: Muxer,
    now: Instant,
}

impl Harness {
    fn new(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("v")).unwrap();
        let mut muxer = Muxer::new(GUEST_CID, listener, limits).unwrap();
        muxer.listen().unwrap();
        Self {
            folder,
            arena: Arena::new(),
            muxer,
            now: Instant::now(),
        }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("v{suffix}"))
    }

    fn serve(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path(&format!("_{port}"))).unwrap()
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        let header = Header {
            len: payload.len().try_into().unwrap(),
            ..header
        };
        let chain = self.arena.chain(&header, payload, &[]).into_iter();
        let packet = TxPacket::parse(&self.arena.memory, chain);
        self.muxer.receive(packet, self.now);
    }

    fn op(&mut self, op: Op, host: u32, guest: u32) {
        self.send(header(op, host, guest), &[]);
    }

    fn turn(&mut self) {
        self.muxer.host_events(self.now).unwrap();
        self.muxer.set_timer(self.now).unwrap();
    }

    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        let (buffer, list) = self.arena.room(1000, &[]);
        let used = self.muxer.produce(&buffer, self.now)?;
        let (header, payload) = self.arena.read_room(&list, used);
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
        Some((header, payload))
    }

    /// Everything for the guest: (op, host port, guest port, payload length).
    fn drain(&mut self) -> Vec<(Op, u32, u32, usize)> {
        let mut list = Vec::new();
        while self.muxer.has_packet() {
            let Some((header, payload)) = self.next() else {
                assert!(!self.muxer.has_packet());
                break;
            };
            let op = Op::from_wire(header.op).unwrap();
            list.push((op, header.src_port, header.dst_port, payload.len()));
        }
        list
    }

    /// A program on the host that asks for a guest port.
    fn dial(&mut self, port: u32) -> UnixStream {
        let mut host = UnixStream::connect(self.path("")).unwrap();
        host.write_all(format!("CONNECT {port}\n").as_bytes())
            .unwrap();
        self.turn();
        self.turn();
        host
    }

    /// A connection dialled by the host and accepted by the guest: its end and its host port.
    fn open(&mut self, guest: u32) -> (UnixStream, u32) {
        let mut host = self.dial(guest);
        let list = self.drain();
        let [(Op::Request, port, to, 0)] = list[..] else {
            panic!("{list:?}");
        };
        assert_eq!(to, guest);
        self.op(Op::Response, port, guest);
        assert_eq!(read_line(&mut host), format!("OK {port}\n"));
        (host, port)
    }

    fn total(&mut self, kind: Kind) -> u64 {
        self.muxer.ledger().total(kind)
    }

    /// What must hold at any moment.
    fn check(&self) {
        let muxer = &self.muxer;
        assert!(muxer.resets.len() <= muxer.limits.connections + resets::MAX_STRAY);
        assert!(muxer.streams.len() <= muxer.limits.connections);
        assert!(muxer.ready.len() <= muxer.connections.len());
        let queued = muxer.connections.values().filter(|entry| entry.queued);
        assert_eq!(queued.count(), muxer.ready.len());
        for (_, token) in &muxer.deadlines {
            assert!(muxer.streams.contains_key(token));
        }
    }
}

fn read_line(host: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        if host.read(&mut byte).unwrap() == 0 {
            break;
        }
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn is_closed(host: &mut UnixStream) -> bool {
    host.set_nonblocking(true).unwrap();
    match host.read(&mut [0]) {
        Ok(0) => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
        other => panic!("{other:?}"),
    }
}

#[test]
fn host_and_guest_talk() {
    let mut harness = Harness::new(Limits::default());
    let (mut host, port) = harness.open(1024);
    host.write_all(b"question").unwrap();
    harness.turn();
    assert_eq!(harness.drain(), [(Op::Rw, port, 1024, 8)]);
    harness.send(header(Op::Rw, port, 1024), b"answer");
    let mut answer = [0; 6];
    host.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    harness.op(Op::Rst, port, 1024);
    assert!(is_closed(&mut host));
    assert_eq!(harness.muxer.connections(), 0);
    assert_eq!(harness.drain(), []);
    harness.check();
}

#[test]
fn a_clone_is_dialled_from_other_ports_than_its_template() {
    let mut harness = Harness::new(Limits::default());
    let (_template, before) = harness.open(1024);
    let next = harness.muxer.next_host_port();
    assert_ne!(before, next);
    let mut clone = Harness::new(Limits::default());
    clone.muxer.resume(next);
    assert_eq!(clone.open(1024).1, next);
    let mut clone = Harness::new(Limits::default());
    for nonsense in [0, 1024, u32::MAX] {
        clone.muxer.resume(nonsense);
    }
    assert_eq!(clone.open(1024).1, before);
}

#[test]
fn a_guest_that_refuses_closes_the_hosts_socket() {
    let mut harness = Harness::new(Limits::default());
    let mut host = harness.dial(7);
    let (_, port, ..) = harness.drain()[0];
    assert!(!is_closed(&mut host));
    harness.op(Op::Rst, port, 7);
    assert!(is_closed(&mut host), "no OK, just the end");
    harness.check();
}

#[test]
fn a_guest_dials_who_listens() {
    let mut harness = Harness::new(Limits::default());
    let server = harness.serve(80);
    harness.op(Op::Request, 80, 5);
    assert_eq!(harness.drain(), [(Op::Response, 80, 5, 0)]);
    harness.send(header(Op::Rw, 80, 5), b"hello");
    let (mut host, _) = server.accept().unwrap();
    let mut hello = [0; 5];
    host.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    drop(host);
    harness.turn();
    let list = harness.drain();
    assert_eq!(list, [(Op::Shutdown, 80, 5, 0)]);
    harness.op(Op::Rst, 80, 5);
    assert_eq!(harness.muxer.connections(), 0);
    harness.check();
}

#[test]
fn a_guest_that_dials_nobody_is_refused() {
    let mut harness = Harness::new(Limits::default());
    harness.op(Op::Request, 81, 5);
    drop(harness.serve(82));
    harness.op(Op::Request, 82, 5);
    assert_eq!(
        harness.drain(),
        [(Op::Rst, 81, 5, 0), (Op::Rst, 82, 5, 0)],
        "no file, and a file without a listener"
    );
    assert_eq!(harness.muxer.connections(), 0);
}

#[test]
fn dialling_the_ready_port_is_noticed_with_and_without_a_listener() {
    let mut harness = Harness::new(Limits::default());
    harness.op(Op::Request, 1024, 1);
    harness.op(Op::Rw, READY_PORT, 1);
    assert!(!harness.muxer.take_guest_ready());
    harness.op(Op::Request, READY_PORT, 1);
    assert!(harness.muxer.take_guest_ready());
    assert!(!harness.muxer.take_guest_ready());
}

#[test]
fn requests_beyond_the_limit_are_refused_and_the_rest_lives() {
    let mut harness = Harness::new(Limits {
        connections: 4,
        ..Limits::default()
    });
    let _server = harness.serve(80);
    let (mut first, port) = harness.open(1024);
    for guest in 0..3 {
        harness.op(Op::Request, 80, guest);
    }
    assert_eq!(harness.drain().len(), 3);
    harness.op(Op::Request, 80, 99);
    assert_eq!(harness.drain(), [(Op::Rst, 80, 99, 0)]);
    let mut refused = harness.dial(1024);
    assert!(is_closed(&mut refused));
    assert_eq!(harness.total(Kind::Limit), 2);
    harness.check();
    // One leaves, one may come; the first never noticed.
    harness.op(Op::Rst, 80, 0);
    harness.op(Op::Request, 80, 99);
    assert_eq!(harness.drain(), [(Op::Response, 80, 99, 0)]);
    harness.send(header(Op::Rw, port, 1024), b"x");
    assert_eq!(first.read(&mut [0; 9]).unwrap(), 1);
}

#[test]
fn packets_for_others_are_dropped() {
    let mut harness = Harness::new(Limits::default());
    let (_host, port) = harness.open(1024);
    let good = header(Op::Rw, port, 1024);
    for (src_cid, dst_cid) in [(GUEST_CID, 0), (GUEST_CID, GUEST_CID), (4, HOST_CID)] {
        let bad = Header {
            src_cid,
            dst_cid,
            ..good
        };
        harness.send(bad, b"x");
    }
    let upper_bits = Header {
        src_cid: GUEST_CID | 1 << 32,
        ..good
    };
    harness.send(upper_bits, b"x");
    assert_eq!(harness.total(Kind::BadHeader), 4);
    assert_eq!(harness.drain(), []);
    assert_eq!(harness.muxer.connections(), 1);
}

#[test]
fn an_unknown_type_is_answered_in_kind() {
    let mut harness = Harness::new(Limits::default());
    let (_host, port) = harness.open(1024);
    let mut odd = Header {
        kind: 2,
        ..header(Op::Request, port, 1024)
    };
    harness.send(odd, &[]);
    let (reset, _) = harness.next().unwrap();
    assert_eq!((reset.op, reset.kind), (Op::Rst.to_wire(), 2));
    odd.op = Op::Rst.to_wire();
    harness.send(odd, &[]);
    assert_eq!(harness.drain(), [], "a reset is never answered");
    assert_eq!(harness.muxer.connections(), 1);
}

#[test]
fn one_bad_connection_does_not_disturb_the_others() {
    let mut harness = Harness::new(Limits::default());
    let (mut good, good_port) = harness.open(1024);
    let unknown_op = Header {
        op: 77,
        ..header(Op::Rw, 0, 9)
    };
    let lie = Header {
        fwd_cnt: 5,
        ..header(Op::CreditUpdate, 0, 9)
    };
    let twice = header(Op::Request, 0, 9);
    let too_much = vec![0; 64 * 1024];
    for (packet, payload, times) in [
        (unknown_op, &[][..], 1),
        (lie, &[][..], 1),
        (twice, &[][..], 1),
        (header(Op::Rw, 0, 9), &too_much[..], 3),
    ] {
        let (mut bad, port) = harness.open(9);
        for _ in 0..times {
            let packet = Header {
                dst_port: port,
                ..packet
            };
            harness.send(packet, payload);
        }
        // The program on the host had not read: what it was sent before stays readable.
        bad.set_nonblocking(true).unwrap();
        while bad.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {}
        assert!(is_closed(&mut bad));
        let list = harness.drain();
        assert_eq!(list.last(), Some(&(Op::Rst, port, 9, 0)));
        harness.send(header(Op::Rw, good_port, 1024), b"fine");
        assert_eq!(good.read(&mut [0; 9]).unwrap(), 4);
        harness.check();
    }
    // A length beyond its chain leaves a hole in the stream.
    let (mut bad, port) = harness.open(9);
    let long = Header {
        len: 100,
        ..header(Op::Rw, port, 9)
    };
    let chain = harness.arena.chain(&long, b"short", &[]);
    let packet = TxPacket::parse(&harness.arena.memory, chain.into_iter());
    harness.muxer.receive(packet, harness.now);
    assert!(is_closed(&mut bad));
    assert_eq!(harness.drain(), [(Op::Rst, port, 9, 0)]);
    assert_eq!(harness.muxer.connections(), 1);
    assert_eq!(harness.total(Kind::BadChain), 1);
}

#[test]
fn data_after_a_reset_is_reset_again() {
    let mut harness = Harness::new(Limits::default());
    let (_host, port) = harness.open(9);
    harness.op(Op::Rst, port, 9);
    harness.send(header(Op::Rw, port, 9), b"late");
    harness.op(Op::CreditUpdate, port, 9);
    harness.op(Op::Rst, port, 9);
    assert_eq!(
        harness.drain(),
        [(Op::Rst, port, 9, 0), (Op::Rst, port, 9, 0)]
    );
}

#[test]
fn storms_without_buffers_are_bounded() {
    let mut harness = Harness::new(Limits {
        connections: 400,
        ..Limits::default()
    });
    let server = harness.serve(80);
    server.set_nonblocking(true).unwrap();
    for round in 0..20_000_u32 {
        harness.op(Op::Rw, 81, round);
        // Live connections opened and broken: their resets take their places.
        harness.op(Op::Request, 80, round);
        harness.op(Op::Request, 80, round);
        harness.op(Op::Request, 80, round);
        harness.op(Op::Rst, 80, round);
        drop(server.accept());
        if round % 1000 == 0 {
            harness.turn();
            harness.check();
        }
        // A few buffers let new connections in, and their resets take their places.
        if round % 10 == 0 {
            harness.next();
        }
    }
    harness.check();
    assert!(harness.total(Kind::ResetDropped) > 10_000);
    assert!(harness.total(Kind::Violation) > 200);
    assert!(harness.drain().len() <= 400 + resets::MAX_STRAY);
    let (mut host, port) = harness.open(1024);
    harness.send(header(Op::Rw, port, 1024), b"fine");
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 4);
}

#[test]
fn a_guest_that_never_answers_is_given_up() {
    let mut harness = Harness::new(Limits::default());
    let mut host = harness.dial(7);
    let (_, port, ..) = harness.drain()[0];
    harness.now += DIAL_TIME - Duration::from_millis(1);
    harness.turn();
    assert!(!is_closed(&mut host));
    harness.now += Duration::from_millis(1);
    harness.turn();
    assert!(is_closed(&mut host));
    assert_eq!(harness.drain(), [(Op::Rst, port, 7, 0)]);
    harness.op(Op::Response, port, 7);
    assert_eq!(harness.drain(), [(Op::Rst, port, 7, 0)], "too late");
}

#[test]
fn a_guest_that_never_confirms_the_end_is_given_up() {
    let mut harness = Harness::new(Limits::default());
    let (host, port) = harness.open(7);
    drop(host);
    harness.turn();
    assert_eq!(harness.drain(), [(Op::Shutdown, port, 7, 0)]);
    // Whatever else it says does not prolong it.
    harness.now += CLOSE_TIME / 2;
    harness.op(Op::CreditUpdate, port, 7);
    harness.now += CLOSE_TIME / 2;
    harness.turn();
    assert_eq!(harness.drain(), [(Op::Rst, port, 7, 0)]);
    assert_eq!(harness.muxer.connections(), 0);
    harness.check();
}

#[test]
fn half_closed_connections_are_left_alone() {
    let mut harness = Harness::new(Limits::default());
    let (mut host, port) = harness.open(7);
    host.shutdown(Shutdown::Write).unwrap();
    harness.turn();
    assert_eq!(harness.drain(), [(Op::Shutdown, port, 7, 0)]);
    harness.now += DIAL_TIME * 10;
    harness.turn();
    harness.send(header(Op::Rw, port, 7), b"still here");
    assert_eq!(host.read(&mut [0; 99]).unwrap(), 10);
    let end = Header {
        flags: BOTH,
        ..header(Op::Shutdown, port, 7)
    };
    harness.send(end, &[]);
    assert_eq!(harness.drain(), [(Op::Rst, port, 7, 0)]);
    assert!(is_closed(&mut host));
}

#[test]
fn the_timer_wakes_the_poller() {
    let mut harness = Harness::new(Limits::default());
    let _host = harness.dial(7);
    harness.drain();
    // Make it due in a moment of real time.
    harness.now = Instant::now() + DIAL_TIME;
    harness.muxer.timer = None;
    harness.muxer.set_timer(harness.now).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let events = harness.muxer.poller.events().unwrap();
    assert!(events.contains(&super::super::poller::Event::Timer));
}

#[test]
fn a_client_that_says_nothing_is_dropped() {
    let mut harness = Harness::new(Limits::default());
    let mut silent = UnixStream::connect(harness.path("")).unwrap();
    let mut wrong = UnixStream::connect(harness.path("")).unwrap();
    wrong.write_all(b"GET /\n").unwrap();
    harness.turn();
    harness.turn();
    assert!(is_closed(&mut wrong));
    assert!(!is_closed(&mut silent));
    harness.now += DIAL_TIME;
    harness.turn();
    assert!(is_closed(&mut silent));
    harness.check();
}

#[test]
fn what_a_closed_guest_sent_reaches_a_slow_host() {
    let mut harness = Harness::new(Limits::default());
    let server = harness.serve(80);
    harness.op(Op::Request, 80, 5);
    harness.drain();
    let (mut host, _) = server.accept().unwrap();
    // More than a socket holds unread, by credit as it comes.
    let total = 256 * 1024;
    let mut sent = 0;
    while sent < total {
        let len = (total - sent).min(32 * 1024);
        harness.send(header(Op::Rw, 80, 5), &pattern(sent as u64, len));
        harness.drain();
        sent += len;
    }
    let end = Header {
        flags: BOTH,
        ..header(Op::Shutdown, 80, 5)
    };
    harness.send(end, &[]);
    assert_eq!(harness.drain(), [(Op::Rst, 80, 5, 0)]);
    assert_eq!(harness.muxer.streams.len(), 1, "the remainder");
    // The same ports again, at once.
    harness.op(Op::Request, 80, 5);
    assert_eq!(harness.drain(), [(Op::Response, 80, 5, 0)]);
    let (mut second, _) = server.accept().unwrap();
    harness.send(header(Op::Rw, 80, 5), b"new");
    assert_eq!(second.read(&mut [0; 9]).unwrap(), 3);
    host.set_nonblocking(true).unwrap();
    let mut got = Vec::new();
    let mut buffer = vec![0; 10_000];
    loop {
        harness.turn();
        match host.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => got.extend_from_slice(&buffer[..read]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(got == pattern(0, total));
    harness.check();
}

#[test]
fn busy_connections_take_turns() {
    let mut harness = Harness::new(Limits::default());
    let (mut one, one_port) = harness.open(1);
    let (mut two, two_port) = harness.open(2);
    one.write_all(&[1; 20_000]).unwrap();
    two.write_all(&[2; 2000]).unwrap();
    harness.turn();
    let order: Vec<u32> = harness.drain().iter().map(|packet| packet.1).collect();
    for pair in order[..4].chunks(2) {
        assert!(pair.contains(&one_port) && pair.contains(&two_port));
    }
    assert_eq!(order.len(), 22);
}

#[test]
fn many_clients_at_once_are_all_served() {
    let mut harness = Harness::new(Limits::default());
    let mut clients: Vec<UnixStream> = (0..100)
        .map(|port| {
            let mut client = UnixStream::connect(harness.path("")).unwrap();
            writeln!(client, "CONNECT {port}").unwrap();
            client
        })
        .collect();
    for _ in 0..8 {
        harness.turn();
    }
    let requests = harness.drain();
    assert_eq!(requests.len(), 100);
    for (_, host, guest, _) in requests {
        harness.op(Op::Response, host, guest);
        let client = &mut clients[guest as usize];
        assert_eq!(read_line(client), format!("OK {host}\n"));
    }
}

#[test]
fn a_reset_device_forgets_and_starts_again() {
    let mut harness = Harness::new(Limits::default());
    let (mut host, _) = harness.open(1);
    let mut dialling = harness.dial(2);
    harness.muxer.reset_all();
    harness.check();
    assert!(is_closed(&mut host) && is_closed(&mut dialling));
    assert!(!harness.muxer.has_packet());
    // Nobody is accepted until the driver is back; then the wait is over.
    let mut early = UnixStream::connect(harness.path("")).unwrap();
    writeln!(early, "CONNECT 5").unwrap();
    harness.turn();
    assert_eq!(harness.drain(), []);
    harness.muxer.listen().unwrap();
    harness.turn();
    harness.turn();
    assert_eq!(harness.drain().len(), 1);
}
