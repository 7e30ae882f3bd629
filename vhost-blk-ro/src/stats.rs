//! What one queue did, for the line that ends a session, and the log's protection against guests
//! that fail a million requests.

use std::time::{Duration, Instant};

use crate::execute::Failure;
use crate::request::Request;

/// At most one line about failed requests per queue in this time.
const QUIET: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Stats {
    pub requests: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub failed: u64,
    last_line: Option<Instant>,
    unsaid: u64,
}

impl Stats {
    pub fn count(&mut self, request: &Request<'_>) {
        self.requests += 1;
        match request {
            Request::Read { bytes, .. } => self.bytes_read += bytes,
            Request::Write { bytes, .. } => self.bytes_written += bytes,
            _ => {}
        }
    }

    /// Counts a failure and says so, unless that was said a moment ago.
    pub fn failed(&mut self, failure: &Failure) {
        self.failed += 1;
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
        self.requests += other.requests;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.failed += other.failed;
    }
}
