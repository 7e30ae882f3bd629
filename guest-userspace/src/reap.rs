//! Processes that have ended: commands, and whatever they left behind, which the kernel hands to
//! PID 1.

use std::io;
use std::os::fd::OwnedFd;

use rundlet_protocol::ExitStatus;
use rustix::process::{WaitOptions, wait};

use crate::sys;

/// Most processes waited for in one go: a sandbox full of dying ones does not stop its sessions.
pub(crate) const BATCH: usize = 64;

/// Learns of ended processes.
#[derive(Debug)]
pub(crate) struct Reaper {
    signals: OwnedFd,
}

impl Reaper {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Reaper {
            signals: sys::child_signals()?,
        })
    }

    /// Readable when a process may have ended.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.signals
    }

    /// Takes note of the signal. Before [`next_ended`]: one that comes in between is seen next time.
    pub(crate) fn acknowledge(&self) {
        let mut record = [0_u8; 128];
        // Nothing there is fine as well.
        let _ = rustix::io::read(&self.signals, &mut record);
    }
}

/// Waits for one ended process, without blocking.
pub(crate) fn next_ended() -> Option<(i32, ExitStatus)> {
    loop {
        let (pid, status) = match wait(WaitOptions::NOHANG) {
            Ok(Some(ended)) => ended,
            Err(rustix::io::Errno::INTR) => continue,
            // None has ended, or there is none.
            Ok(None) | Err(_) => return None,
        };
        let status = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitStatus::Code(code),
            (None, Some(signal)) => ExitStatus::Signal(signal),
            // Stopped or continued; not asked for.
            (None, None) => continue,
        };
        return Some((pid.as_raw_nonzero().get(), status));
    }
}
