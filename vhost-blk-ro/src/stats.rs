//! What queues did: for the line that ends a session, for whoever asks the daemon, and for the log's protection
//! against guests that fail a million requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::execute::Failure;
use crate::request::Request;

/// At most one line about failed requests per queue in this time.
const QUIET: Duration = Duration::from_secs(1);

/// Numbers that only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    pub reads: u64,
    pub bytes_read: u64,
    pub writes: u64,
    pub bytes_written: u64,
    /// Reads that the page cache answered whole, and those that had to wait for the medium. A read from a file
    /// system that does not tell is in neither.
    pub hits: u64,
    pub misses: u64,
    pub failed: u64,
}

impl Counts {
    pub fn count(&mut self, request: &Request<'_>) {
        self.requests += 1;
        match request {
            Request::Read { bytes, .. } => {
                self.reads += 1;
                self.bytes_read += bytes;
            }
            Request::Write { bytes, .. } => {
                self.writes += 1;
                self.bytes_written += bytes;
            }
            _ => {}
        }
    }

    /// A read was answered, from a file system that tells whether it had to wait.
    pub fn cached(&mut self, missed: bool) {
        *if missed {
            &mut self.misses
        } else {
            &mut self.hits
        } += 1;
    }

    /// Each of them by itself.
    fn zip(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            requests: with(self.requests, other.requests),
            reads: with(self.reads, other.reads),
            bytes_read: with(self.bytes_read, other.bytes_read),
            writes: with(self.writes, other.writes),
            bytes_written: with(self.bytes_written, other.bytes_written),
            hits: with(self.hits, other.hits),
            misses: with(self.misses, other.misses),
            failed: with(self.failed, other.failed),
        }
    }
}

#[derive(Debug, Default)]
pub struct Stats {
    pub counts: Counts,
    /// Of it what [`Totals`] have already.
    told: Counts,
    last_line: Option<Instant>,
    unsaid: u64,
}

impl Stats {
    /// Counts a failure and says so, unless that was said a moment ago.
    pub fn failed(&mut self, failure: &Failure) {
        self.counts.failed += 1;
        let now = Instant::now();
        if self
            .last_line
            .is_some_and(|last| now.duration_since(last) < QUIET)
        {
            self.unsaid += 1;
            return;
        }
        self.last_line = Some(now);
        let level = if failure.is_ours() {
            log::Level::Error
        } else {
            log::Level::Warn
        };
        let source = std::error::Error::source(failure).map(|s| format!(": {s}"));
        log::log!(
            level,
            "request failed: {failure}{} ({} more since the last such line)",
            source.unwrap_or_default(),
            std::mem::take(&mut self.unsaid),
        );
    }

    pub fn add(&mut self, other: &Self) {
        self.counts = self.counts.zip(other.counts, u64::saturating_add);
    }

    /// Adds what is new to the totals.
    pub fn tell(&mut self, totals: &Totals) {
        totals.add(self.counts.zip(self.told, u64::saturating_sub));
        self.told = self.counts;
    }
}

/// All queues of the daemon together. Written once a batch, so that a request does not pay for it.
#[derive(Debug, Default)]
pub struct Totals {
    reads: AtomicU64,
    bytes_read: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    failed: AtomicU64,
}

/// The totals of one moment, as they are told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Told {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
}

impl Totals {
    fn add(&self, counts: Counts) {
        let Counts {
            requests: _,
            reads,
            bytes_read,
            writes,
            bytes_written,
            hits,
            misses,
            failed,
        } = counts;
        for (total, more) in [
            (&self.reads, reads),
            (&self.bytes_read, bytes_read),
            (&self.writes, writes),
            (&self.bytes_written, bytes_written),
            (&self.hits, hits),
            (&self.misses, misses),
            (&self.failed, failed),
        ] {
            if more > 0 {
                total.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    pub fn now(&self) -> Told {
        let of = |total: &AtomicU64| total.load(Ordering::Relaxed);
        Told {
            reads: of(&self.reads),
            read_bytes: of(&self.bytes_read),
            writes: of(&self.writes),
            written_bytes: of(&self.bytes_written),
            cache_hits: of(&self.hits),
            cache_misses: of(&self.misses),
            errors: of(&self.failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Sector;

    #[test]
    fn totals_get_everything_once() {
        let (mut stats, totals) = (Stats::default(), Totals::default());
        let read = Request::Read {
            sector: Sector(0),
            bytes: 512,
            into: &[],
        };
        stats.counts.count(&read);
        stats.counts.cached(false);
        stats.tell(&totals);
        stats.tell(&totals);
        stats.counts.count(&read);
        stats.counts.cached(true);
        stats.failed(&Failure::ReadOnly);
        stats.tell(&totals);
        let told = Told {
            reads: 2,
            read_bytes: 1024,
            cache_hits: 1,
            cache_misses: 1,
            errors: 1,
            ..Told::default()
        };
        assert_eq!(totals.now(), told);
        assert_eq!(stats.counts.requests, 2);
    }
}
