//! One stream between a guest socket and a unix socket on the host (virtio 1.2 §5.10.6.4-6).
//!
//! ```text
//!   host dials:   Dialling ──RESPONSE──▶ Open          guest dials:  Open (RESPONSE pending)
//!   Open: each direction ends on its own; when both have, SHUTDOWN and RST take the rest down.
//! ```
//!
//! What must hold: bytes come out in order, once, in both directions; at most one grant of bytes is
//! held here (only while the host does not read); nothing is read from the host that the guest
//! has no room for. Packets to the guest are not queued but *owed*: a flag each, turned into a packet
//! when the guest gives a buffer. A host that has gone away is an error of a write (Rust programs start with
//! SIGPIPE ignored), never a signal.

mod outgoing;

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use thiserror::Error;

use super::backlog::{Backlog, Remainder};
use super::bytes::GuestBytes;
use super::credit::{CreditError, ReceiveWindow, SendWindow};
use super::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// The two port numbers that name a connection; the context ids are always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    pub host: u32,
    pub guest: u32,
}

/// Why a connection is reset: the guest did what no driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    #[error("credit: {0}")]
    Credit(CreditError),
    #[error("{0:?} out of turn")]
    OutOfTurn(Op),
}

/// What a packet from the guest means for its connection's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Keep,
    /// The guest reset it: forget it, nothing is answered.
    Gone,
    /// The guest ended both directions: answer with RST, after which only bytes for the host may be
    /// left.
    Done,
    /// The guest broke the protocol: reset it.
    Reset(Violation),
}

/// What epoll says of the host's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
    /// The host closed both directions.
    pub hangup: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host dialled, and the guest has not answered.
    Dialling,
    Open,
}

/// Packets owed to the guest.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: bool,
}

/// What one side has given up; never taken back.
#[derive(Clone, Copy, Debug, Default)]
struct Ended {
    sending: bool,
    receiving: bool,
}

/// A live connection.
#[derive(Debug)]
pub struct Connection {
    ports: Ports,
    stream: UnixStream,
    phase: Phase,
    to_guest: SendWindow,
    from_guest: ReceiveWindow,
    /// Bytes from the guest that the host has not taken yet.
    backlog: Backlog,
    owed: Owed,
    guest: Ended,
    host: Ended,
    /// Flags of the last SHUTDOWN sent to the guest.
    shutdown_told: u32,
    /// The stream may have bytes for the guest: true from epoll's edge until a read would block.
    readable: bool,
}

impl Connection {
    /// The host dialled: the guest will be asked. The stream must not block.
    #[must_use]
    pub fn dialled_by_host(ports: Ports, stream: UnixStream, grant: u32) -> Self {
        let mut connection = Self::new(ports, stream, grant, Phase::Dialling);
        connection.owed.request = true;
        connection
    }

    /// The guest dialled with `request`, and `stream` leads to whom it wanted. The stream must not
    /// block.
    pub fn dialled_by_guest(
        ports: Ports,
        stream: UnixStream,
        grant: u32,
        request: &Header,
    ) -> Result<Self, Violation> {
        let mut connection = Self::new(ports, stream, grant, Phase::Open);
        connection.take_credit(request)?;
        connection.owed.response = true;
        Ok(connection)
    }

    fn new(ports: Ports, stream: UnixStream, grant: u32, phase: Phase) -> Self {
        Self {
            ports,
            stream,
            phase,
            to_guest: SendWindow::default(),
            from_guest: ReceiveWindow::new(grant),
            backlog: Backlog::default(),
            owed: Owed::default(),
            guest: Ended::default(),
            host: Ended::default(),
            shutdown_told: 0,
            readable: false,
        }
    }

    /// Its name.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// True while the guest has not answered the host's dialling.
    #[must_use]
    pub fn is_dialling(&self) -> bool {
        self.phase == Phase::Dialling
    }

    /// True if the guest was told that both directions have ended: it owes an RST.
    #[must_use]
    pub fn awaits_reset(&self) -> bool {
        self.shutdown_told == SHUTDOWN_RECEIVE | SHUTDOWN_SEND
    }

    /// Takes a packet from the guest.
    pub fn receive(&mut self, op: Op, header: &Header, payload: &GuestBytes<'_>) -> Verdict {
        match self.try_receive(op, header, payload) {
            Ok(verdict) => verdict,
            Err(violation) => Verdict::Reset(violation),
        }
    }

    fn try_receive(
        &mut self,
        op: Op,
        header: &Header,
        payload: &GuestBytes<'_>,
    ) -> Result<Verdict, Violation> {
        if op == Op::Rst {
            return Ok(Verdict::Gone);
        }
        self.take_credit(header)?;
        match (op, self.phase) {
            (Op::Response, Phase::Dialling) => return Ok(self.accepted()),
            (Op::CreditUpdate, Phase::Open) => {}
            (Op::CreditRequest, Phase::Open) => self.owed.credit_update = true,
            (Op::Rw, Phase::Open) if !self.guest.sending => {
                self.from_guest
                    .receive(payload.len())
                    .map_err(Violation::Credit)?;
                self.deliver(payload);
            }
            (Op::Shutdown, Phase::Open) => return Ok(self.guest_ends(header.flags)),
            (op, _) => return Err(Violation::OutOfTurn(op)),
        }
        Ok(Verdict::Keep)
    }

    fn take_credit(&mut self, header: &Header) -> Result<(), Violation> {
        self.to_guest
            .update(header.buf_alloc, header.fwd_cnt)
            .map_err(Violation::Credit)?;
        if self.to_guest.available() > 0 {
            self.owed.credit_request = false;
        }
        Ok(())
    }

    /// The guest said yes: tells the host, in one line that a fresh socket has room for.
    fn accepted(&mut self) -> Verdict {
        self.phase = Phase::Open;
        let line = format!("OK {}\n", self.ports.host);
        match self.stream.write(line.as_bytes()) {
            Ok(written) if written == line.len() => Verdict::Keep,
            // The host has left already, or never reads: there is no connection to have.
            Ok(_) | Err(_) => Verdict::Done,
        }
    }

    /// Payload goes straight to the host as far as it takes it, and waits otherwise.
    fn deliver(&mut self, payload: &GuestBytes<'_>) {
        if self.host.receiving {
            self.from_guest.forward_all();
            return;
        }
        let mut written = 0;
        if self.backlog.is_empty() && !payload.is_empty() {
            match payload.write_to(&mut self.stream) {
                Ok(count) => written = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return self.host_takes_no_more(),
            }
        }
        self.from_guest.forward(written);
        self.backlog.push(&payload.after(written));
    }

    fn guest_ends(&mut self, flags: u32) -> Verdict {
        self.guest.sending |= flags & SHUTDOWN_SEND != 0;
        self.guest.receiving |= flags & SHUTDOWN_RECEIVE != 0;
        if self.guest.sending && self.guest.receiving {
            return Verdict::Done;
        }
        // Both may fail only if the host has left, which its own event tells.
        if self.guest.receiving {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.pass_end_on();
        Verdict::Keep
    }

    /// Once the host has all that the guest sent, it sees the end.
    fn pass_end_on(&mut self) {
        if self.guest.sending && self.backlog.is_empty() && !self.host.receiving {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Takes news of the host's socket. False if the host gave up before the guest answered.
    pub fn host_event(&mut self, ready: Readiness) -> bool {
        self.readable |= ready.readable || ready.hangup;
        if ready.hangup {
            if self.is_dialling() {
                return false;
            }
            self.host_takes_no_more();
        } else if ready.writable {
            self.flush();
        }
        true
    }

    /// Writes what waits for the host, as much as it takes.
    fn flush(&mut self) {
        match self.backlog.write_to(&mut self.stream) {
            Ok(written) => self.from_guest.forward(written),
            Err(_) => self.host_takes_no_more(),
        }
        self.pass_end_on();
    }

    fn host_takes_no_more(&mut self) {
        self.host.receiving = true;
        self.from_guest.forward_all();
        self.backlog = Backlog::default();
    }

    /// What is left when the guest is done: bytes that the host has not taken yet, if any.
    #[must_use]
    pub fn into_remainder(self) -> Option<Remainder> {
        (!self.backlog.is_empty()).then(|| Remainder::new(self.stream, self.backlog))
    }
}

#[cfg(test)]
mod tests;
