//! What makes an idle guest quiet: each of its timers wakes a thread of the host.

use std::fs;
use std::io;

/// How often a processor folds its counters of memory events into those of the machine (proc(5), `vm.stat_interval`).
const STAT_INTERVAL: &str = "/proc/sys/vm/stat_interval";

/// Ten minutes, instead of a second that accounted for three of four timers of an idle guest. A counter that is not
/// folded is off by at most 125 a processor, and `vm.stat_refresh` folds all of them at once.
const SECONDS: &str = "600";

/// Why the guest would wake up every second.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {STAT_INTERVAL} to {SECONDS}")]
pub(crate) struct QuietError(#[source] io::Error);

/// Asks the kernel to do seldom what it does for statistics' sake. /proc is mounted.
pub(crate) fn settle_down() -> Result<(), QuietError> {
    fs::write(STAT_INTERVAL, SECONDS).map_err(QuietError)
}
