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

/// The pidfd of a process; of the right one if it is a child that has not been waited for.
pub(crate) fn open(pid: u32) -> io::Result<OwnedFd> {
    Ok(pidfd_open(raw(pid)?, PidfdFlags::empty())?)
}

/// Kills it; nothing happens if it has ended.
pub(crate) fn kill(pidfd: &OwnedFd) {
    // Fails when it has ended just now.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
}

/// Asks it to end; nothing happens if it has ended.
pub(crate) fn terminate(pidfd: &OwnedFd) {
    // As above.
    let _ = pidfd_send_signal(pidfd, Signal::TERM);
}

/// When it was started, in clock ticks since the host's boot: proc_pid_stat(5), field 22. Together with its
/// id that is a name which no other process ever has.
pub(crate) fn start_time(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    start_time_in(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The second field is the process's name in parentheses, which may hold anything, spaces and parentheses, too.
fn start_time_in(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The process of this id, if it is still the one that was started then and has not ended.
pub(crate) fn find(pid: u32, started: u64) -> Option<OwnedFd> {
    // In this order: what is looked at after the descriptor is there is either that process or none.
    let pidfd = open(pid).ok()?;
    let same = start_time(pid).is_ok_and(|it| it == started);
    let ended = ends_within(&pidfd, Duration::ZERO).unwrap_or(true);
    (same && !ended).then_some(pidfd)
}

/// Whether it ends within `limit`: a pidfd is readable then, pidfd_open(2).
pub(crate) fn ends_within(pidfd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    readable_within(pidfd, limit)
}

/// Whether there is something to read, or the end of it, within `limit`.
pub(crate) fn readable_within(fd: impl AsFd, limit: Duration) -> io::Result<bool> {
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
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_id_and_its_start() {
        let own = std::process::id();
        let started = start_time(own).unwrap();
        assert!(find(own, started).is_some());
        assert!(find(own, started + 1).is_none());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let (pid, started) = (child.id(), start_time(child.id()).unwrap());
        let pidfd = open(pid).unwrap();
        assert!(ends_within(&pidfd, Duration::from_secs(5)).unwrap());
        // A zombie has ended, although it still has its id.
        assert!(find(pid, started).is_none());
        child.wait().unwrap();
        assert!(find(pid, started).is_none());
    }

    #[test]
    fn a_name_cannot_pass_for_other_fields() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(start_time_in(&format!("7 (a) b) {rest}")), Some(4242));
        assert_eq!(start_time_in("7 (a) S 1 2"), None);
        assert_eq!(start_time_in("nothing"), None);
    }
}
