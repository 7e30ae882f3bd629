//! The muxer's side towards the guest: packets in, packets out. Everything that comes in is the
//! guest's word.

use std::time::Instant;

use super::{Muxer, READY_PORT, TYPE_STREAM};
use crate::devices::vsock::connection::{Connection, Ports, Verdict};
use crate::devices::vsock::ledger::Kind;
use crate::devices::vsock::packet::{HOST_CID, Header, Op, PacketError, RxBuffer, TxPacket};

impl Muxer {
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
