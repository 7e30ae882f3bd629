//! A small process that outlives its owner: when the owner is gone, it kills what is left of the
//! sandbox and removes the run directory.
//!
//! It is the same binary with a hidden command. Its stdin is one end of a socket pair, over which the
//! owner passes a pidfd of each child; the end of that stream is the owner's end, also by SIGKILL.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child as StdChild, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Signal, pidfd_send_signal};

use super::GRACE;
use crate::claim;

/// The hidden command.
pub const COMMAND: &str = "janitor";

/// Most children of one sandbox.
const MAX_CHILDREN: usize = 16;

/// Why there is no janitor.
#[derive(Debug, thiserror::Error)]
pub enum JanitorError {
    #[error("cannot start the janitor process")]
    Start(#[source] io::Error),
    #[error("cannot tell the janitor about a process")]
    Tell(#[source] io::Error),
}

/// The owner's side.
#[derive(Debug)]
pub struct Janitor {
    line: Option<UnixStream>,
    process: StdChild,
}

impl Janitor {
    pub(super) fn start(run: &Path) -> Result<Self, JanitorError> {
        let (ours, theirs) = UnixStream::pair().map_err(JanitorError::Start)?;
        // Not by name: the file may have been replaced since. Quiet, as an open stdout would keep
        // whoever reads ours waiting.
        let process = Command::new("/proc/self/exe")
            .arg0("rundlet-janitor")
            .arg(COMMAND)
            .arg(run)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .process_group(0)
            .spawn()
            .map_err(JanitorError::Start)?;
        Ok(Self {
            line: Some(ours),
            process,
        })
    }

    /// Hands a process over, should we end before it.
    pub(super) fn watch(&self, pidfd: &OwnedFd) -> Result<(), JanitorError> {
        let Some(line) = &self.line else {
            return Ok(());
        };
        let fds = [pidfd.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(
            line,
            &[IoSlice::new(b"c")],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .map_err(|error| JanitorError::Tell(error.into()))?;
        Ok(())
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        self.line = None;
        // It has nothing left to do and ends at once.
        if let Err(error) = self.process.wait() {
            log::error!("waiting for the janitor: {error}");
        }
    }
}

/// The janitor's own main: waits for the end of `line`, then cleans up.
///
/// # Errors
/// The run directory cannot be removed.
pub fn run(line: &OwnedFd, directory: &Path) -> io::Result<()> {
    let mut children = Vec::new();
    while let Some(child) = receive(line)? {
        if children.len() < MAX_CHILDREN {
            children.extend(child);
        }
    }
    let deadline = Instant::now() + GRACE;
    for child in &children {
        if !ended(child, deadline.saturating_duration_since(Instant::now()))? {
            // Fails when it has ended just now.
            let _ = pidfd_send_signal(child, Signal::KILL);
            ended(child, GRACE)?;
        }
    }
    claim::remove(directory)
}

/// One child's pidfd, or `None` at the end of the stream.
fn receive(line: &OwnedFd) -> io::Result<Option<Vec<OwnedFd>>> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    loop {
        let mut into = [IoSliceMut::new(&mut byte)];
        let received = match recvmsg(line, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            // The owner was killed with something unread.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => other?,
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        let fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        return Ok(Some(fds.flatten().collect()));
    }
}

/// Whether the process ends within `limit`: a pidfd is readable then, pidfd_open(2).
fn ended(pidfd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    loop {
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}
