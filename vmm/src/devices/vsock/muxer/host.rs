//! The muxer's side towards the programs on the host: who connects, what their sockets report,
//! and the clock.

use std::io;
use std::time::{Duration, Instant};

use super::{
    Connection, DIAL_TIME, FIRST_HOST_PORT, Kind, Muxer, Ports, Resets, Stream, UnixStream,
};
use crate::devices::vsock::connection::Readiness;
use crate::devices::vsock::handshake::{Greeting, read_greeting};
use crate::devices::vsock::poller::{Event, Token};

/// Connections accepted in one go.
const ACCEPT_BUDGET: usize = 32;
/// How long to wait when the process cannot have another descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

impl Muxer {
    /// Starts to accept connections: the guest's driver is there.
    pub fn listen(&mut self) -> io::Result<()> {
        if self.listening {
            return Ok(());
        }
        self.poller.add_listener(self.listener.socket())?;
        self.listening = true;
        Ok(())
    }

    /// Forgets every connection, and stops accepting: the guest's driver is gone.
    pub fn reset_all(&mut self) {
        if std::mem::take(&mut self.listening)
            && let Err(error) = self.poller.remove_listener(self.listener.socket())
        {
            log::warn!("vsock: cannot stop listening: {error}");
        }
        self.accept_due = false;
        self.streams.clear();
        self.connections.clear();
        self.ready.clear();
        self.resets = Resets::default();
        self.deadlines.clear();
    }

    /// Handles what the poller has, a bounded part of it. An error is the host's fault.
    pub fn host_events(&mut self, now: Instant) -> io::Result<()> {
        for event in self.poller.events()? {
            match event {
                Event::Again => {}
                Event::Timer => self.timer = None,
                Event::Incoming => self.accept_due = true,
                Event::Stream(token, ready) => self.stream_event(token, ready, now),
            }
        }
        self.expire(now);
        if self.accept_due && self.listening {
            self.accept(now)?;
        }
        Ok(())
    }

    /// Lets the timer run to the earliest deadline. To be called when a round of work is done.
    pub fn set_timer(&mut self, now: Instant) -> io::Result<()> {
        let earliest = self.deadlines.first().map(|(when, _)| *when);
        if self.timer != earliest {
            let delay = earliest.map(|when| when.saturating_duration_since(now));
            self.poller.set_timer(delay)?;
            self.timer = earliest;
        }
        Ok(())
    }

    /// Gives up whatever has waited long enough.
    pub fn expire(&mut self, now: Instant) {
        while let Some(&(when, token)) = self.deadlines.first() {
            if when > now {
                break;
            }
            self.deadlines.pop_first();
            match self.streams.get(&token) {
                Some(Stream::Connection(ports)) => {
                    let ports = *ports;
                    self.reset(ports);
                }
                Some(Stream::Greeting(..)) => drop(self.streams.remove(&token)),
                Some(Stream::Remainder(_)) => {}
                None => self.accept_due |= token == Token::LISTENER,
            }
        }
    }

    fn accept(&mut self, now: Instant) -> io::Result<()> {
        self.accept_due = false;
        for _ in 0..ACCEPT_BUDGET {
            match self.listener.accept() {
                Ok(stream) => self.greet_new(stream, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    log::warn!("vsock: cannot accept a connection, will try again: {error}");
                    self.deadlines.insert((now + ACCEPT_PAUSE, Token::LISTENER));
                    return Ok(());
                }
            }
        }
        self.accept_due = true;
        self.poller.again()
    }

    fn greet_new(&mut self, stream: UnixStream, now: Instant) {
        if self.is_full() {
            self.ledger
                .report(Kind::Limit, &"too many connections from the host", now);
            return;
        }
        match self.poller.add_stream(&stream) {
            Ok(token) => {
                let deadline = now + DIAL_TIME;
                self.deadlines.insert((deadline, token));
                self.streams
                    .insert(token, Stream::Greeting(stream, deadline));
            }
            Err(error) => log::warn!("vsock: cannot watch a connection: {error}"),
        }
    }

    fn stream_event(&mut self, token: Token, ready: Readiness, now: Instant) {
        match self.streams.get_mut(&token) {
            Some(Stream::Greeting(stream, _)) => match read_greeting(stream) {
                Greeting::Partial => {}
                Greeting::Refused => drop(self.remove_greeting(token)),
                Greeting::Connect(port) => self.host_dials(token, port, ready, now),
            },
            Some(Stream::Connection(ports)) => {
                let ports = *ports;
                self.connection_event(ports, ready, now);
            }
            Some(Stream::Remainder(remainder)) => {
                let done = remainder.flush();
                if done {
                    self.streams.remove(&token);
                }
            }
            None => {}
        }
    }

    fn connection_event(&mut self, ports: Ports, ready: Readiness, now: Instant) {
        let Some(entry) = self.connections.get_mut(&ports) else {
            return;
        };
        if entry.connection.host_event(ready) {
            self.settle(ports, now);
        } else {
            self.reset(ports);
        }
    }

    fn remove_greeting(&mut self, token: Token) -> Option<UnixStream> {
        match self.streams.remove(&token) {
            Some(Stream::Greeting(stream, deadline)) => {
                self.deadlines.remove(&(deadline, token));
                Some(stream)
            }
            _ => None,
        }
    }

    fn host_dials(&mut self, token: Token, port: u32, ready: Readiness, now: Instant) {
        let Some(stream) = self.remove_greeting(token) else {
            return;
        };
        self.host_calls += 1;
        let ports = self.allocate_ports(port);
        let mut connection = Connection::dialled_by_host(ports, stream, self.limits.grant);
        // What came with the line is in the same event; what comes later makes another.
        if connection.host_event(ready) {
            self.insert(token, connection, now);
        }
    }

    /// A pair of ports that is free; there are far more than connections.
    fn allocate_ports(&mut self, guest: u32) -> Ports {
        loop {
            let host = self.next_host_port;
            // The last number stands for "any port".
            self.next_host_port = match host + 1 {
                u32::MAX => FIRST_HOST_PORT,
                next => next,
            };
            let ports = Ports { host, guest };
            if !self.resets.contains(ports) && !self.connections.contains_key(&ports) {
                return ports;
            }
        }
    }
}
