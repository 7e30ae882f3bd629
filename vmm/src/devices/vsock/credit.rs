//! Credit (virtio 1.2 §5.10.6.3): how much each side may have on its way to the other.
//!
//! Counters are free-running and wrap at 2^32, as on the wire. What must hold: we never have more
//! bytes on their way than the guest granted, and a guest can neither make us hold more than we
//! granted nor gain room by claiming to have consumed what was never sent.

use std::num::Wrapping;

use thiserror::Error;

/// The largest grant of a guest that is believed. Linux lets a program ask for any size, which
/// would make "ahead of us" and "behind us" indistinguishable.
const MAX_GRANT: u32 = 1 << 30;

/// How a guest broke the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CreditError {
    #[error("claims {0} bytes more than were sent to it")]
    ConsumedUnsent(u32),
    #[error("sent {sent} bytes with a credit of {credit}")]
    Overrun { sent: usize, credit: u32 },
}

/// What we may send to the guest; by default nothing, as nothing was granted yet.
#[derive(Clone, Debug, Default)]
pub struct SendWindow {
    sent: Wrapping<u32>,
    consumed: Wrapping<u32>,
    grant: u32,
}

impl SendWindow {
    /// Takes in `buf_alloc` and `fwd_cnt` of a packet. A driver with several processors may let an
    /// older count overtake a newer one, which is harmless and ignored.
    pub fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), CreditError> {
        let Wrapping(behind) = self.sent - Wrapping(fwd_cnt);
        if behind > u32::MAX / 2 {
            return Err(CreditError::ConsumedUnsent(behind.wrapping_neg()));
        }
        if behind <= self.on_the_way() {
            self.consumed = Wrapping(fwd_cnt);
        }
        self.grant = buf_alloc.min(MAX_GRANT);
        Ok(())
    }

    /// Bytes that may be sent now.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.grant.saturating_sub(self.on_the_way())
    }

    /// Counts bytes sent; no more than are available.
    pub fn send(&mut self, count: u32) {
        debug_assert!(count <= self.available());
        self.sent += count;
    }

    fn on_the_way(&self) -> u32 {
        (self.sent - self.consumed).0
    }
}

/// What the guest may send to us.
#[derive(Clone, Debug)]
pub struct ReceiveWindow {
    grant: u32,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    advertised: Wrapping<u32>,
}

impl ReceiveWindow {
    /// Grants `grant` bytes.
    #[must_use]
    pub fn new(grant: u32) -> Self {
        Self {
            grant,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            advertised: Wrapping(0),
        }
    }

    /// Counts bytes that arrived, if the guest was allowed to send them by what it was last told.
    pub fn receive(&mut self, count: usize) -> Result<(), CreditError> {
        let credit = self.in_sight();
        match u32::try_from(count) {
            Ok(fits) if fits <= credit => {
                self.received += fits;
                Ok(())
            }
            _ => Err(CreditError::Overrun {
                sent: count,
                credit,
            }),
        }
    }

    /// Counts bytes that left towards the host: the guest may send as many again.
    pub fn forward(&mut self, count: usize) {
        let count = u32::try_from(count).expect("no more than the grant was ever received");
        debug_assert!(count <= (self.received - self.forwarded).0);
        self.forwarded += count;
    }

    /// Counts everything that arrived as forwarded: nobody wants it.
    pub fn forward_all(&mut self) {
        self.forwarded = self.received;
    }

    /// The values for the header of a packet that is about to leave.
    pub fn advertise(&mut self) -> (u32, u32) {
        self.advertised = self.forwarded;
        (self.grant, self.forwarded.0)
    }

    /// True if the guest should be told: it sees less than half of its grant, and there is more.
    #[must_use]
    pub fn update_due(&self) -> bool {
        self.advertised != self.forwarded && self.in_sight() < self.grant.div_ceil(2)
    }

    /// The credit that the guest sees. What arrived was always within it, and what was advertised
    /// had been forwarded: so no more than the grant is ever held here.
    fn in_sight(&self) -> u32 {
        self.grant - (self.received - self.advertised).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sending_stops_at_the_grant_and_resumes_with_consumption() {
        let mut window = SendWindow::default();
        assert_eq!(window.available(), 0);
        window.update(100, 0).unwrap();
        window.send(60);
        assert_eq!(window.available(), 40);
        window.update(100, 60).unwrap();
        assert_eq!(window.available(), 100);
        // The guest may shrink its buffer below what is on the way.
        window.send(100);
        window.update(10, 60).unwrap();
        assert_eq!(window.available(), 0);
    }

    #[test]
    fn counts_survive_the_wrap() {
        let mut window = SendWindow::default();
        window.sent = Wrapping(u32::MAX - 1);
        window.consumed = window.sent;
        window.update(1000, u32::MAX - 1).unwrap();
        window.send(10);
        window.update(1000, 8).unwrap();
        assert_eq!(window.available(), 1000);
        assert_eq!(
            window.update(1000, 9),
            Err(CreditError::ConsumedUnsent(1)),
            "one byte past what was sent"
        );
    }

    #[test]
    fn a_count_that_was_overtaken_takes_nothing_back() {
        let mut window = SendWindow::default();
        window.update(100, 0).unwrap();
        window.send(100);
        window.update(100, 80).unwrap();
        window.update(100, 50).unwrap();
        assert_eq!(window.available(), 80);
    }

    #[test]
    fn a_lie_gains_nothing() {
        let mut window = SendWindow::default();
        window.update(u32::MAX, 0).unwrap();
        assert_eq!(window.available(), MAX_GRANT);
        assert!(window.update(100, 1).is_err());
        assert!(window.update(100, u32::MAX / 2).is_err());
        // Claims from far behind look stale.
        assert!(window.update(100, u32::MAX / 2 + 2).is_ok());
        assert_eq!(window.available(), 100);
    }

    #[test]
    fn the_guest_cannot_overrun_us() {
        let mut window = ReceiveWindow::new(10);
        window.receive(10).unwrap();
        assert_eq!(
            window.receive(1),
            Err(CreditError::Overrun { sent: 1, credit: 0 })
        );
        window.forward(4);
        assert!(window.receive(4).is_err(), "it cannot know of that yet");
        window.advertise();
        window.receive(4).unwrap();
        assert!(window.receive(usize::MAX).is_err());
    }

    #[test]
    fn updates_are_due_only_when_they_help() {
        let mut window = ReceiveWindow::new(100);
        window.receive(50).unwrap();
        window.forward(50);
        assert!(!window.update_due(), "half of the grant is still in sight");
        window.receive(1).unwrap();
        assert!(window.update_due());
        assert_eq!(window.advertise(), (100, 50));
        assert!(!window.update_due());
        let mut stuck = ReceiveWindow::new(100);
        stuck.receive(100).unwrap();
        assert!(!stuck.update_due(), "there is nothing to tell");
        stuck.forward(1);
        assert!(stuck.update_due());
    }
}
