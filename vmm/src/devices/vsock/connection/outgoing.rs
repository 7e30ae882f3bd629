//! Packets to the guest, made when it gives a buffer: first what the connection's state owes, then
//! bytes as far as there is credit, then news of ends and credit.

use std::io;

use super::Connection;
use crate::devices::vsock::packet::{
    Header, MAX_PAYLOAD, Op, RxBuffer, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
};

impl Connection {
    /// True if a buffer from the guest could be put to use.
    #[must_use]
    pub fn has_packet(&self) -> bool {
        let control = self.owed.request
            || self.owed.response
            || self.owed.credit_update
            || self.owed.credit_request;
        if self.is_dialling() {
            return control;
        }
        control || self.may_read() || self.shutdown_due() || self.from_guest.update_due()
    }

    fn wants_to_read(&self) -> bool {
        self.readable && !self.host.sending && !self.guest.receiving && !self.is_dialling()
    }

    fn may_read(&self) -> bool {
        self.wants_to_read() && self.to_guest.available() > 0
    }

    /// What the host has ended. What it still sends to a guest that does not receive counts as
    /// nothing once it does not receive either.
    fn shutdown_flags(&self) -> u32 {
        let mut flags = 0;
        if self.host.receiving {
            flags |= SHUTDOWN_RECEIVE;
        }
        if self.host.sending || (self.host.receiving && self.guest.receiving) {
            flags |= SHUTDOWN_SEND;
        }
        flags
    }

    fn shutdown_due(&self) -> bool {
        self.shutdown_flags() != self.shutdown_told
    }

    /// Puts one packet into `buffer`: the number of bytes used, or nothing if there was no packet
    /// after all (the socket had looked readable).
    pub fn produce(&mut self, buffer: &RxBuffer<'_>, addresses: &Header) -> Option<u32> {
        let mut header = *addresses;
        header.op = self.next_packet(buffer, &mut header)?.to_wire();
        (header.buf_alloc, header.fwd_cnt) = self.from_guest.advertise();
        // Whatever the packet is, it has told the guest its credit.
        self.owed.credit_update = false;
        Some(buffer.finish(&header))
    }

    fn next_packet(&mut self, buffer: &RxBuffer<'_>, header: &mut Header) -> Option<Op> {
        if std::mem::take(&mut self.owed.request) {
            return Some(Op::Request);
        }
        if self.is_dialling() {
            return None;
        }
        if std::mem::take(&mut self.owed.response) {
            return Some(Op::Response);
        }
        if self.may_read() {
            let read = self.read_for_guest(buffer);
            if read > 0 {
                header.len = read;
                return Some(Op::Rw);
            }
        }
        if self.shutdown_due() {
            self.shutdown_told = self.shutdown_flags();
            header.flags = self.shutdown_told;
            return Some(Op::Shutdown);
        }
        if std::mem::take(&mut self.owed.credit_request) {
            return Some(Op::CreditRequest);
        }
        (self.owed.credit_update || self.from_guest.update_due()).then_some(Op::CreditUpdate)
    }

    /// Reads from the host into the guest's buffer; 0 if there is nothing (more) now.
    fn read_for_guest(&mut self, buffer: &RxBuffer<'_>) -> u32 {
        let credit = usize::try_from(self.to_guest.available()).unwrap_or(MAX_PAYLOAD);
        let room = buffer.payload(credit.min(MAX_PAYLOAD));
        match room.read_from(&mut self.stream) {
            Ok(0) => self.host.sending = true,
            Ok(read) => {
                let read = u32::try_from(read).expect("at most MAX_PAYLOAD");
                self.to_guest.send(read);
                // Out of credit: ask once. Linux would tell anyway, others need not.
                self.owed.credit_request = self.to_guest.available() == 0;
                return read;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            // Reset by the host, which closed with bytes unread: its end as any other.
            Err(_) => self.host.sending = true,
        }
        0
    }
}
