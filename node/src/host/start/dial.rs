//! The port on which a guest that boots reports ready, in the directory that its VMM may be jailed in.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::PathError;

/// Who was first.
pub(super) enum Dial {
    Guest(UnixStream),
    Gone,
    Late,
}

/// Waits until the guest dials, or its VMM ends.
pub(super) fn await_dial(
    listener: &UnixListener,
    pidfd: &OwnedFd,
    deadline: Instant,
) -> std::io::Result<Dial> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(pidfd, PollFlags::IN),
        ];
        match poll(&mut fds, Some(&left)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(0) => return Ok(Dial::Late),
            other => other?,
        };
        let [dialled, gone] = fds.map(|fd| !fd.revents().is_empty());
        if dialled {
            return listener.accept().map(|(stream, _)| Dial::Guest(stream));
        }
        if gone {
            return Ok(Dial::Gone);
        }
    }
}

pub(super) fn ready_socket(jail: &Path) -> PathBuf {
    jail.join(format!("vsock.sock_{}", rundlet_protocol::READY_PORT))
}

/// The VMM forwards a dialled port to this name.
pub(super) fn listen(jail: &Path) -> Result<UnixListener, PathError> {
    let path = ready_socket(jail);
    UnixListener::bind(&path).map_err(PathError::at("listen on", &path))
}

/// Gives a directory, and what is in it, to the user that a jailed VMM is.
pub(super) fn give(jail: &Path, uid: u32) -> Result<(), PathError> {
    for entry in fs::read_dir(jail).map_err(PathError::at("list", jail))? {
        let path = entry.map_err(PathError::at("list", jail))?.path();
        std::os::unix::fs::lchown(&path, Some(uid), Some(uid))
            .map_err(PathError::at("change the owner of", &path))?;
    }
    std::os::unix::fs::lchown(jail, Some(uid), Some(uid))
        .map_err(PathError::at("change the owner of", jail))
}
