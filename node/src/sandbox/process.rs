//! Processes through their pidfds: signals that never hit a stranger with a reused id, and ends that can
//! be waited for by somebody who is not the parent.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, pidfd_open, pidfd_send_signal, prlimit,
    setrlimit,
};

/// The pidfd of a child that has not been waited for.
pub(super) fn open(pid: u32) -> io::Result<OwnedFd> {
    Ok(pidfd_open(raw(pid)?, PidfdFlags::empty())?)
}

/// Kills it; nothing happens if it has ended.
pub(super) fn kill(pidfd: &OwnedFd) {
    // Fails when it has ended just now.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
}

/// Whether it ends within `limit`: a pidfd is readable then, pidfd_open(2).
pub(super) fn ends_within(pidfd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    readable_within(pidfd, limit)
}

/// Whether there is something to read, or the end of it, within `limit`.
pub(super) fn readable_within(fd: impl AsFd, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

/// Lets a process have no more than `limit` descriptors.
pub(super) fn limit_descriptors(pid: u32, limit: u64) -> io::Result<()> {
    let limit = Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    prlimit(Some(raw(pid)?), Resource::Nofile, limit)?;
    Ok(())
}

fn raw(pid: u32) -> io::Result<Pid> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Lets this process and its children have as many descriptors as the system grants them: each
/// sandbox takes one here, and some ten in the block backend.
pub(super) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}
