//! All connections of the device: which there are, whose turn it is, and when one is given up.
//!
//! Here are the tables; `muxer/guest.rs` faces the guest, `muxer/host.rs` the programs on the host.
//! None of them knows queues: packets go in one by one ([`Muxer::receive`]), and come out one by one
//! ([`Muxer::produce`]) as the guest gives buffers.
//!
//! What must hold, whatever the guest sends: streams and waiting resets together stay within
//! `Limits::connections` plus [`resets::MAX_STRAY`]; a connection stands in `ready` at most
//! once; every deadline belongs to a live stream. Connections take turns packet by packet.

mod guest;
mod host;
mod resets;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use self::resets::Resets;
use super::backlog::Remainder;
use super::connection::{Connection, Ports};
use super::ledger::{Kind, Ledger};
use super::listener::Listener;
use super::packet::TYPE_STREAM;
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
    host_calls: u64,
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
            host_calls: 0,
            ledger: Ledger::default(),
        })
    }

    /// See [`Listener::moved_into`].
    pub fn moved_into(&mut self, root: &Path) {
        self.listener.moved_into(root);
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

    /// Goes on dialling from the ports that an earlier device of the same guest has not used. Linux keeps the
    /// socket of a connection that is gone until its program has closed it, and would take a request from
    /// the same port for that one's.
    pub fn resume(&mut self, next_host_port: u32) {
        if (FIRST_HOST_PORT..u32::MAX).contains(&next_host_port) {
            self.next_host_port = next_host_port;
        }
    }

    /// The port that the next connection to the guest comes from.
    #[must_use]
    pub fn next_host_port(&self) -> u32 {
        self.next_host_port
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// True if the guest has, for all that is known here, no connection and none is on its way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.connections.is_empty() && self.resets.is_empty()
    }

    /// How often programs on the host have dialled.
    #[must_use]
    pub fn host_calls(&self) -> u64 {
        self.host_calls
    }

    /// True once, after the guest has dialled [`READY_PORT`].
    pub fn take_guest_ready(&mut self) -> bool {
        std::mem::take(&mut self.guest_ready)
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
}

#[cfg(test)]
mod tests;
