use std::io::Read;

use proptest::prelude::*;
use rustix::net::sockopt;

use super::*;
use crate::devices::vsock::packet::MAX_PAYLOAD;
use crate::devices::vsock::support::{Arena, header, pattern};

const PORTS: Ports = Ports {
    host: 5000,
    guest: 1024,
};
const ANY: Readiness = Readiness {
    readable: true,
    writable: true,
    hangup: false,
};
const HANGUP: Readiness = Readiness {
    hangup: true,
    ..ANY
};

/// A guest's socket as the standard wants it, and the program on the host; each end checks that
/// bytes arrive in order, and the guest that its credit is respected.
struct Model {
    arena: Arena,
    connection: Connection,
    host: UnixStream,
    guest_buffer: u32,
    /// Bytes written so far by each end, and read so far by the other.
    host_wrote: u64,
    guest_got: u64,
    guest_consumed: u64,
    guest_sent: u64,
    host_got: u64,
    /// What the guest last heard of its credit.
    peer_grant: u32,
    peer_forwarded: u32,
    last: Option<Header>,
    log: Vec<Op>,
}

impl Model {
    fn new(grant: u32, guest_buffer: u32) -> Self {
        let (host, ours) = UnixStream::pair().unwrap();
        for socket in [&host, &ours] {
            socket.set_nonblocking(true).unwrap();
            // As small as the kernel lets it be: it must fill up.
            sockopt::set_socket_send_buffer_size(socket, 0).unwrap();
        }
        let arena = Arena::new();
        let request = Header {
            buf_alloc: guest_buffer,
            ..header(Op::Request, PORTS.host, PORTS.guest)
        };
        let connection = Connection::dialled_by_guest(PORTS, ours, grant, &request).unwrap();
        Self {
            arena,
            connection,
            host,
            guest_buffer,
            host_wrote: 0,
            guest_got: 0,
            guest_consumed: 0,
            guest_sent: 0,
            host_got: 0,
            peer_grant: 0,
            peer_forwarded: 0,
            last: None,
            log: Vec::new(),
        }
    }

    fn guest_header(&self, op: Op) -> Header {
        Header {
            buf_alloc: self.guest_buffer,
            fwd_cnt: self.guest_consumed.try_into().unwrap(),
            ..header(op, PORTS.host, PORTS.guest)
        }
    }

    fn send(&mut self, header: &Header, payload: &[u8]) -> Verdict {
        let op = Op::from_wire(header.op).unwrap();
        let packet = self.arena.packet(header, payload, &[44]);
        self.connection.receive(op, header, &packet.payload)
    }

    fn guest_credit(&self) -> u32 {
        let on_the_way = u32::try_from(self.guest_sent).unwrap() - self.peer_forwarded;
        self.peer_grant.checked_sub(on_the_way).unwrap()
    }

    fn guest_writes(&mut self, len: usize) {
        let len = len.min(self.guest_credit() as usize).min(MAX_PAYLOAD);
        let data = pattern(self.guest_sent, len);
        let header = Header {
            len: len.try_into().unwrap(),
            ..self.guest_header(Op::Rw)
        };
        assert_eq!(self.send(&header, &data), Verdict::Keep);
        self.guest_sent += len as u64;
    }

    fn guest_consumes(&mut self, len: u64) {
        self.guest_consumed = self.guest_got.min(self.guest_consumed.saturating_add(len));
        let update = self.guest_header(Op::CreditUpdate);
        assert_eq!(self.send(&update, &[]), Verdict::Keep);
    }

    fn host_writes(&mut self, len: usize) {
        match self.host.write(&pattern(self.host_wrote, len)) {
            Ok(written) => self.host_wrote += written as u64,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }

    /// News of the host's socket, which may come late, or twice.
    fn event(&mut self) {
        assert!(self.connection.host_event(ANY));
    }

    /// Returns what read(2) said.
    fn host_reads(&mut self, len: usize) -> Option<usize> {
        let mut buffer = vec![0; len];
        let read = match self.host.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(buffer[..read], pattern(self.host_got, read));
        self.host_got += read as u64;
        Some(read)
    }

    /// Gives a buffer; false if nothing came.
    fn guest_gives(&mut self, room: usize, cuts: &[usize]) -> bool {
        if !self.connection.has_packet() {
            return false;
        }
        let (buffer, list) = self.arena.room(room, cuts);
        let addresses = header(Op::Rst, PORTS.host, PORTS.guest);
        let Some(used) = self.connection.produce(&buffer, &addresses) else {
            assert!(!self.connection.has_packet());
            return false;
        };
        let (found, payload) = self.arena.read_room(&list, used);
        assert_eq!(payload, pattern(self.guest_got, payload.len()));
        self.guest_got += payload.len() as u64;
        let unread = self.guest_got - self.guest_consumed;
        assert!(
            unread <= u64::from(self.guest_buffer),
            "more than was granted"
        );
        (self.peer_grant, self.peer_forwarded) = (found.buf_alloc, found.fwd_cnt);
        let op = Op::from_wire(found.op).unwrap();
        assert!(op == Op::Rw || payload.is_empty());
        self.last = Some(found);
        self.log.push(op);
        true
    }

    /// Runs until nothing moves any more.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            self.event();
            while self.guest_gives(4096, &[44]) {
                moved = true;
            }
            if self.guest_got > self.guest_consumed {
                self.guest_consumes(u64::MAX);
                moved = true;
            }
            while self.host_reads(1 << 20).is_some_and(|read| read > 0) {
                self.event();
                moved = true;
            }
            if !moved {
                return;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    HostWrites(usize),
    HostReads(usize),
    GuestWrites(usize),
    GuestConsumes(u64),
    GuestGives(usize, Vec<usize>),
    GuestAsksCredit,
    Event,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_usize..20_000).prop_map(Step::HostWrites),
        (1_usize..20_000).prop_map(Step::HostReads),
        (0_usize..20_000).prop_map(Step::GuestWrites),
        (0_u64..20_000).prop_map(Step::GuestConsumes),
        (1_usize..5000, prop::collection::vec(0_usize..200, 0..8))
            .prop_map(|(room, cuts)| Step::GuestGives(room, cuts)),
        Just(Step::GuestAsksCredit),
        Just(Step::Event),
        Just(Step::Event),
    ]
}

fn window() -> impl Strategy<Value = u32> {
    prop_oneof![1_u32..16, 1_u32..300, 1_u32..70_000]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn nothing_is_lost_either_way(
        grant in window(),
        guest_buffer in window(),
        steps in prop::collection::vec(step(), 0..80),
        half_close in any::<[bool; 2]>(),
    ) {
        let mut model = Model::new(grant, guest_buffer);
        for step in steps {
            match step {
                Step::HostWrites(len) => model.host_writes(len),
                Step::HostReads(len) => drop(model.host_reads(len)),
                Step::GuestWrites(len) => model.guest_writes(len),
                Step::GuestConsumes(len) => model.guest_consumes(len),
                Step::GuestGives(room, cuts) => drop(model.guest_gives(room, &cuts)),
                Step::GuestAsksCredit => {
                    let ask = model.guest_header(Op::CreditRequest);
                    prop_assert_eq!(model.send(&ask, &[]), Verdict::Keep);
                }
                Step::Event => model.event(),
            }
            prop_assert!(model.connection.backlog.len() <= grant as usize);
        }
        let [host_ends, guest_ends] = half_close;
        if host_ends {
            model.host.shutdown(Shutdown::Write).unwrap();
            model.connection.host_event(ANY);
        }
        if guest_ends {
            let end = Header { flags: SHUTDOWN_SEND, ..model.guest_header(Op::Shutdown) };
            prop_assert_eq!(model.send(&end, &[]), Verdict::Keep);
        }
        model.settle();
        prop_assert_eq!(model.guest_got, model.host_wrote);
        prop_assert_eq!(model.host_got, model.guest_sent);
        prop_assert!(model.connection.backlog.is_empty());
        // Ends come through, and only where they were sent.
        prop_assert_eq!(model.log.contains(&Op::Shutdown), host_ends);
        prop_assert_eq!(model.host_reads(1), guest_ends.then_some(0));
        // And the direction that is left still works, with credit that was never lost.
        if !guest_ends {
            let before = model.guest_sent;
            model.guest_writes(usize::MAX);
            prop_assert!(model.guest_sent > before, "the guest ran out of credit for good");
            model.settle();
            prop_assert_eq!(model.host_got, model.guest_sent);
        }
        if !host_ends {
            model.host_writes(100);
            model.settle();
            prop_assert_eq!(model.guest_got, model.host_wrote);
        }
    }
}

fn open() -> Model {
    let mut model = Model::new(1000, 1000);
    assert!(model.guest_gives(100, &[]));
    assert_eq!(model.log, [Op::Response]);
    model
}

#[test]
fn the_host_hears_of_acceptance() {
    let (mut host, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut connection = Connection::dialled_by_host(PORTS, ours, 1000);
    host.write_all(b"early").unwrap();
    assert!(connection.host_event(ANY));
    let mut model = open();
    model.connection = connection;
    assert!(model.guest_gives(100, &[]));
    assert_eq!(model.log.pop(), Some(Op::Request));
    assert!(!model.connection.has_packet(), "nothing before the answer");
    let answer = model.guest_header(Op::Response);
    assert_eq!(model.send(&answer, &[]), Verdict::Keep);
    let mut line = [0; 8];
    host.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"OK 5000\n");
    // What the host had sent already follows.
    let (buffer, list) = model.arena.room(100, &[]);
    let used = model.connection.produce(&buffer, &answer).unwrap();
    assert_eq!(model.arena.read_room(&list, used).1, b"early");
}

#[test]
fn nothing_but_an_answer_is_taken_while_dialling() {
    for op in [
        Op::Request,
        Op::Rw,
        Op::Shutdown,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        let (_host, ours) = UnixStream::pair().unwrap();
        let mut model = open();
        model.connection = Connection::dialled_by_host(PORTS, ours, 1000);
        let packet = model.guest_header(op);
        assert_eq!(
            model.send(&packet, &[]),
            Verdict::Reset(Violation::OutOfTurn(op))
        );
    }
    let mut model = open();
    for op in [Op::Request, Op::Response] {
        let packet = model.guest_header(op);
        assert_eq!(
            model.send(&packet, &[]),
            Verdict::Reset(Violation::OutOfTurn(op))
        );
    }
}

#[test]
fn a_host_that_leaves_while_dialling_is_noticed() {
    let (host, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut connection = Connection::dialled_by_host(PORTS, ours, 1000);
    drop(host);
    assert!(!connection.host_event(HANGUP));
    let mut model = open();
    model.connection = connection;
    // The event may be behind: then the answer finds nobody.
    let answer = model.guest_header(Op::Response);
    assert_eq!(model.send(&answer, &[]), Verdict::Done);
}

#[test]
fn sending_more_than_granted_is_a_violation() {
    let mut model = open();
    let header = Header {
        len: 1001,
        ..model.guest_header(Op::Rw)
    };
    let verdict = model.send(&header, &[7; 1001]);
    let violation = CreditError::Overrun {
        sent: 1001,
        credit: 1000,
    };
    assert_eq!(verdict, Verdict::Reset(Violation::Credit(violation)));
    assert_eq!(model.host_reads(10), None, "none of it went through");
}

#[test]
fn claiming_unsent_bytes_is_a_violation() {
    let mut model = open();
    model.guest_consumed = 1;
    let lie = model.guest_header(Op::CreditUpdate);
    let verdict = model.send(&lie, &[]);
    let violation = CreditError::ConsumedUnsent(1);
    assert_eq!(verdict, Verdict::Reset(Violation::Credit(violation)));
}

#[test]
fn data_after_the_end_is_a_violation() {
    let mut model = open();
    let end = Header {
        flags: SHUTDOWN_SEND,
        ..model.guest_header(Op::Shutdown)
    };
    assert_eq!(model.send(&end, &[]), Verdict::Keep);
    let more = Header {
        len: 1,
        ..model.guest_header(Op::Rw)
    };
    let verdict = model.send(&more, &[1]);
    assert_eq!(verdict, Verdict::Reset(Violation::OutOfTurn(Op::Rw)));
}

#[test]
fn the_host_is_not_read_without_credit() {
    let mut model = open();
    model.host_writes(4000);
    model.event();
    while model.guest_gives(300, &[]) {}
    assert_eq!(model.guest_got, 1000);
    assert_eq!(
        model.log.last(),
        Some(&Op::CreditRequest),
        "asked once, and no more"
    );
    let asked = model.log.iter().filter(|op| **op == Op::CreditRequest);
    assert_eq!(asked.count(), 1);
    model.settle();
    assert_eq!(model.guest_got, 4000);
}

#[test]
fn a_host_that_closes_ends_both_directions() {
    let mut model = open();
    model.host_writes(10);
    model.host = UnixStream::pair().unwrap().0;
    assert!(model.connection.host_event(HANGUP));
    while model.guest_gives(100, &[]) {}
    assert_eq!(model.guest_got, 10, "what it had written still arrives");
    assert_eq!(model.log.last(), Some(&Op::Shutdown));
    let flags = model.last.unwrap().flags;
    assert_eq!(flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    assert!(model.connection.awaits_reset());
    // What the guest sends meanwhile is nobody's, and no reason to stall it.
    for _ in 0..10 {
        model.guest_writes(900);
        while model.guest_gives(100, &[]) {}
    }
    assert_eq!(model.guest_sent, 9000);
    let rst = model.guest_header(Op::Rst);
    assert_eq!(model.send(&rst, &[]), Verdict::Gone);
}

#[test]
fn a_host_that_stops_reading_ends_one_direction() {
    let mut model = open();
    model.host.shutdown(Shutdown::Read).unwrap();
    model.guest_writes(100);
    while model.guest_gives(100, &[]) {}
    assert_eq!(model.last.unwrap().flags, SHUTDOWN_RECEIVE);
    assert!(!model.connection.awaits_reset());
    model.host_writes(50);
    model.event();
    while model.guest_gives(100, &[]) {}
    assert_eq!(model.guest_got, 50);
}

#[test]
fn a_guest_that_closes_leaves_what_the_host_has_not_read() {
    let mut model = Model::new(60_000, 1000);
    model.guest_gives(100, &[]);
    model.guest_writes(60_000);
    assert!(!model.connection.backlog.is_empty());
    let end = Header {
        flags: SHUTDOWN_SEND | SHUTDOWN_RECEIVE,
        ..model.guest_header(Op::Shutdown)
    };
    assert_eq!(model.send(&end, &[]), Verdict::Done);
    let (mut host, _) = UnixStream::pair().unwrap();
    std::mem::swap(&mut host, &mut model.host);
    let connection = std::mem::replace(&mut model.connection, open().connection);
    let mut remainder = connection.into_remainder().unwrap();
    let mut got = Vec::new();
    let mut buffer = [0; 5000];
    loop {
        let done = remainder.flush();
        while let Ok(read) = host.read(&mut buffer) {
            got.extend_from_slice(&buffer[..read]);
            if read == 0 {
                break;
            }
        }
        if done {
            break;
        }
    }
    drop(remainder);
    host.set_nonblocking(false).unwrap();
    host.read_to_end(&mut got).unwrap();
    assert_eq!(got, pattern(0, 60_000));
}

#[test]
fn a_guest_that_stops_receiving_is_sent_nothing() {
    let mut model = open();
    let end = Header {
        flags: SHUTDOWN_RECEIVE,
        ..model.guest_header(Op::Shutdown)
    };
    assert_eq!(model.send(&end, &[]), Verdict::Keep);
    let error = model.host.write(b"x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    assert!(model.connection.host_event(ANY));
    assert!(!model.guest_gives(100, &[]));
    model.guest_writes(10);
    assert_eq!(model.host_reads(100), Some(10));
    // The host going away is the end of it.
    assert!(model.connection.host_event(HANGUP));
    assert!(model.guest_gives(100, &[]));
    assert!(model.connection.awaits_reset());
}
