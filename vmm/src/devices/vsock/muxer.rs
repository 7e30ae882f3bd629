//! All connections of the device: which there are, whose turn it is, and when one is given up.
//!
//! This side faces the guest; `muxer/host.rs` faces the programs on the host. Neither knows queues:
//! packets go in one by one ([`Muxer::receive`]), and come out one by one ([`Muxer::produce`]) as the
//! guest gives buffers.
//!
//! What must hold, whatever the guest sends: streams and waiting resets together stay within
//! `Limits::connections` plus [`resets::MAX_STRAY`]; a connection stands in `ready` at most
//! once; every deadline belongs to a live stream. Connections take turns packet by packet.

mod host;
mod resets;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use self::resets::Resets;
use super::backlog::Remainder;
use super::connection::{Connection, Ports, Verdict};
use super::ledger::{Kind, Ledger};
use super::listener::Listener;
use super::packet::{HOST_CID, Header, Op, PacketError, RxBuffer, TYPE_STREAM, TxPacket};
use super::poller::{Poller, Token};

/// The host port that a guest dials to say that it is ready.
pub const READY_PORT: u32 = 1025;

/// How long the guest may take to answer a host's dialling.
const DIAL_TIME: Duration = Duration::from_secs(10);
/// How long the guest may take to confirm the end of a connection.
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// Host ports of connections dialled by the host start here: far from ports that programs choose.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// How much one device holds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Streams of any kind.
    pub connections: usize,
    /// Bytes granted to the guest on each connection: what is held while the host does not read.
    pub grant: u32,
}

impl Default for Limits {
    /// Two packets of the largest size, so that one is on its way while the other is written.
    fn default() -> Self {
        Self {
            connections: 1024,
            grant: 128 * 1024,
        }
    }
}

/// What a watched stream is.
#[derive(Debug)]
enum Stream {
    /// Has not said what it wants.
    Greeting(UnixStream, Instant),
    Connection(Ports),
    /// Closed by the guest, not yet read to the end by the host.
    Remainder(Remainder),
}

/// A connection and its place in the tables.
#[derive(Debug)]
struct Entry {
    connection: Connection,
    token: Token,
    /// Stands in `ready`.
    queued: bool,
    deadline: Option<Instant>,
}

/// The tables.
#[derive(Debug)]
pub struct Muxer {
    guest_cid: u64,
    limits: Limits,
    listener: Listener,
    listening: bool,
    /// The listener may have more, but we stopped.
    accept_due: bool,
    poller: Poller,
    timer: Option<Instant>,
    streams: HashMap<Token, Stream>,
    connections: HashMap<Ports, Entry>,
    ready: VecDeque<Ports>,
    resets: Resets,
    deadlines: BTreeSet<(Instant, Token)>,
    next_host_port: u32,
    guest_ready: bool,
    ledger: Ledger,
}

impl Muxer {
    /// Without connections, and not listening yet.
    pub fn new(guest_cid: u64, listener: Listener, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            guest_cid,
            limits,
            listener,
            listening: false,
            accept_due: false,
            poller: Poller::new()?,
            timer: None,
            streams: HashMap::new(),
            connections: HashMap::new(),
            ready: VecDeque::new(),
            resets: Resets::default(),
            deadlines: BTreeSet::new(),
            next_host_port: FIRST_HOST_PORT,
            guest_ready: false,
            ledger: Ledger::default(),
        })
    }

    /// What the main loop watches; see [`Muxer::host_events`].
    #[must_use]
    pub fn poller(&self) -> &Poller {
        &self.poller
    }

    /// The counts of misbehaviour.
    #[must_use]
    pub fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// True once, after the guest has dialled [`READY_PORT`].
    pub fn take_guest_ready(&mut self) -> bool {
        std::mem::take(&mut self.guest_ready)
    }

    /// Takes what was found in a chain of the transmit queue.
    pub fn receive(&mut self, packet: Result<TxPacket<'_>, PacketError>, now: Instant) {
        match packet {
            Ok(packet) => self.receive_packet(&packet, now),
            Err(error) => {
                self.ledger.report(Kind::BadChain, &error, now);
                // The stream has a hole now: it cannot go on.
                if let PacketError::PayloadBeyondChain { header, .. } = error
                    && let Some(ports) = self.check_addresses(&header, now)
                {
                    self.reset(ports);
                }
            }
        }
    }

    fn receive_packet(&mut self, packet: &TxPacket<'_>, now: Instant) {
        let header = &packet.header;
        let Some(ports) = self.check_addresses(header, now) else {
            return;
        };
        let Some(op) = Op::from_wire(header.op) else {
            let what = format_args!("unknown operation {}", header.op);
            self.ledger.report(Kind::BadHeader, &what, now);
            self.reset(ports);
            return;
        };
        if op == Op::Request && ports.host == READY_PORT {
            self.guest_ready = true;
        }
        let Some(entry) = self.connections.get_mut(&ports) else {
            return match op {
                Op::Request => self.guest_dials(ports, header, now),
                Op::Rst => self.ledger.count(Kind::Stray),
                _ => self.reset_stray(ports, TYPE_STREAM),
            };
        };
        match entry.connection.receive(op, header, &packet.payload) {
            Verdict::Keep => {
                let answered = !entry.connection.is_dialling() && !entry.connection.awaits_reset();
                if answered && entry.deadline.is_some() {
                    self.set_deadline(ports, None);
                }
                self.settle(ports, now);
            }
            Verdict::Gone => drop(self.remove(ports)),
            Verdict::Done => self.finish(ports),
            Verdict::Reset(violation) => {
                let what = format_args!("{ports:?}: {violation}");
                self.ledger.report(Kind::Violation, &what, now);
                self.reset(ports);
            }
        }
    }

    /// The connection that a packet is about, if it is for us at all.
    fn check_addresses(&mut self, header: &Header, now: Instant) -> Option<Ports> {
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            let (from, to) = (header.src_cid, header.dst_cid);
            let what = format_args!("packet from context {from} to context {to}");
            self.ledger.report(Kind::BadHeader, &what, now);
            return None;
        }
        if header.kind != TYPE_STREAM {
            let what = format_args!("unknown socket type {}", header.kind);
            self.ledger.report(Kind::BadHeader, &what, now);
            // Asked for by virtio 1.2 §5.10.6.4.2; about a stream of the same ports it says nothing.
            if header.op != Op::Rst.to_wire() {
                self.reset_stray(ports, header.kind);
            }
            return None;
        }
        Some(ports)
    }

    fn guest_dials(&mut self, ports: Ports, request: &Header, now: Instant) {
        if self.is_full() {
            self.ledger
                .report(Kind::Limit, &"too many connections", now);
            return self.reset_stray(ports, TYPE_STREAM);
        }
        let token_and_stream = self.listener.dial(ports.host).and_then(|stream| {
            let token = self.poller.add_stream(&stream)?;
            Ok((token, stream))
        });
        let (token, stream) = match token_and_stream {
            Ok(found) => found,
            Err(error) => {
                log::debug!("vsock: guest dialled host port {}: {error}", ports.host);
                return self.reset_stray(ports, TYPE_STREAM);
            }
        };
        match Connection::dialled_by_guest(ports, stream, self.limits.grant, request) {
            Ok(connection) => self.insert(token, connection, now),
            Err(violation) => {
                self.ledger.report(Kind::Violation, &violation, now);
                self.reset_stray(ports, TYPE_STREAM);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.streams.len() + self.resets.len() >= self.limits.connections
    }

    fn insert(&mut self, token: Token, connection: Connection, now: Instant) {
        let ports = connection.ports();
        self.streams.insert(token, Stream::Connection(ports));
        let entry = Entry {
            connection,
            token,
            queued: false,
            deadline: None,
        };
        self.connections.insert(ports, entry);
        self.settle(ports, now);
    }

    /// Puts a connection in line if it has a packet, and starts its clock if it waits for the guest.
    fn settle(&mut self, ports: Ports, now: Instant) {
        let Some(entry) = self.connections.get_mut(&ports) else {
            return;
        };
        if entry.connection.has_packet() && !entry.queued {
            entry.queued = true;
            self.ready.push_back(ports);
        }
        if entry.deadline.is_none() {
            let patience = match (&entry.connection, entry.connection.is_dialling()) {
                (_, true) => DIAL_TIME,
                (connection, _) if connection.awaits_reset() => CLOSE_TIME,
                _ => return,
            };
            self.set_deadline(ports, Some(now + patience));
        }
    }

    fn set_deadline(&mut self, ports: Ports, deadline: Option<Instant>) {
        let Some(entry) = self.connections.get_mut(&ports) else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut entry.deadline, deadline) {
            self.deadlines.remove(&(old, entry.token));
        }
        if let Some(new) = deadline {
            self.deadlines.insert((new, entry.token));
        }
    }

    /// Takes a connection out of every table; its stream stays watched until it is closed.
    fn remove(&mut self, ports: Ports) -> Option<Entry> {
        self.set_deadline(ports, None);
        let entry = self.connections.remove(&ports)?;
        self.streams.remove(&entry.token);
        if entry.queued {
            self.ready.retain(|queued| *queued != ports);
        }
        Some(entry)
    }

    /// Ends a connection, if there is one, and tells the guest.
    fn reset(&mut self, ports: Ports) {
        if self.remove(ports).is_some() {
            self.resets.push(ports);
        } else {
            self.reset_stray(ports, TYPE_STREAM);
        }
    }

    /// The guest has closed: confirm, and let the host read what is left.
    fn finish(&mut self, ports: Ports) {
        if let Some(entry) = self.remove(ports) {
            self.resets.push(ports);
            if let Some(remainder) = entry.connection.into_remainder() {
                self.streams
                    .insert(entry.token, Stream::Remainder(remainder));
            }
        }
    }

    /// A reset about no connection of ours.
    fn reset_stray(&mut self, ports: Ports, kind: u16) {
        self.ledger.count(Kind::Stray);
        if !self.resets.push_stray(ports, kind) {
            self.ledger.count(Kind::ResetDropped);
        }
    }

    /// True if a buffer from the guest could probably be put to use.
    #[must_use]
    pub fn has_packet(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Puts the next packet into `buffer`: the bytes used, or nothing if there was none after all.
    pub fn produce(&mut self, buffer: &RxBuffer<'_>, now: Instant) -> Option<u32> {
        if let Some((ports, kind)) = self.resets.pop() {
            let header = Header {
                op: Op::Rst.to_wire(),
                kind,
                ..self.addresses(ports)
            };
            return Some(buffer.finish(&header));
        }
        while let Some(ports) = self.ready.pop_front() {
            let addresses = self.addresses(ports);
            let Some(entry) = self.connections.get_mut(&ports) else {
                continue;
            };
            entry.queued = false;
            let used = entry.connection.produce(buffer, &addresses);
            self.settle(ports, now);
            if used.is_some() {
                return used;
            }
        }
        None
    }

    fn addresses(&self, ports: Ports) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: TYPE_STREAM,
            ..Header::default()
        }
    }
}

#[cfg(test)]
mod tests;
