//! Resets that wait for a buffer of the guest's.
//!
//! One that ends a connection takes its place in the count of connections and must not get lost, or
//! the guest would wait forever. One that answers a packet about nothing may: a guest that sends such
//! packets without giving buffers asked for it.

use std::collections::VecDeque;

use super::{Ports, TYPE_STREAM};

/// With so many waiting, no further answer to a stray packet is kept.
pub(super) const MAX_STRAY: usize = 256;

/// The waiting resets: connection and socket type of each.
#[derive(Debug, Default)]
pub(super) struct Resets(VecDeque<(Ports, u16)>);

impl Resets {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The end of a connection that was counted until now.
    pub(super) fn push(&mut self, ports: Ports) {
        self.0.push_back((ports, TYPE_STREAM));
    }

    /// The answer to a packet about no connection. False if there is no room for it.
    pub(super) fn push_stray(&mut self, ports: Ports, kind: u16) -> bool {
        let room = self.0.len() < MAX_STRAY;
        if room {
            self.0.push_back((ports, kind));
        }
        room
    }

    /// The one that has waited longest.
    pub(super) fn pop(&mut self) -> Option<(Ports, u16)> {
        self.0.pop_front()
    }

    /// True if one for this connection waits.
    pub(super) fn contains(&self, ports: Ports) -> bool {
        self.0.iter().any(|(waiting, _)| *waiting == ports)
    }
}
