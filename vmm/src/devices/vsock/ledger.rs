//! What guests get wrong: counted by kind, and told in the log at most once a second.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// The log hears of misbehaviour this often.
const QUIET: Duration = Duration::from_secs(1);

/// Kinds of misbehaviour, and of limits reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A chain that holds no packet, or no room for one.
    BadChain,
    /// A header for somebody else, of unknown type or operation.
    BadHeader,
    /// A packet that its connection's state does not allow.
    Violation,
    /// A packet for a connection that does not exist.
    Stray,
    /// One connection too many.
    Limit,
    /// A reset that was not sent since too many were waiting.
    ResetDropped,
}

/// Number of kinds.
const KINDS: usize = 6;

/// The counts.
#[derive(Debug, Default)]
pub struct Ledger {
    counts: [u64; KINDS],
    last_told: Option<Instant>,
    untold: u64,
}

impl Ledger {
    /// Counts one case of what also happens to the honest.
    pub fn count(&mut self, kind: Kind) {
        let count = &mut self.counts[kind as usize];
        *count = count.saturating_add(1);
    }

    /// Counts one case, and warns if the log has been quiet for a while.
    pub fn report(&mut self, kind: Kind, what: &dyn Display, now: Instant) {
        self.count(kind);
        let quiet = self
            .last_told
            .is_none_or(|last| now.saturating_duration_since(last) >= QUIET);
        if quiet {
            log::warn!(
                "vsock: {what} ({kind:?}; {} more since the last message)",
                self.untold
            );
            self.last_told = Some(now);
            self.untold = 0;
        } else {
            self.untold = self.untold.saturating_add(1);
        }
    }

    /// How often `kind` has been seen.
    #[must_use]
    pub fn total(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_counted_and_little_is_said() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        for _ in 0..1000 {
            ledger.report(Kind::ResetDropped, &"x", start);
        }
        assert_eq!(ledger.total(Kind::ResetDropped), 1000);
        assert_eq!(ledger.total(Kind::BadChain), 0);
        assert_eq!(ledger.untold, 999);
        ledger.report(Kind::BadChain, &"y", start + QUIET);
        assert_eq!(ledger.untold, 0);
    }
}
