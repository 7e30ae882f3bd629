//! A small process that outlives its owner: when the owner is gone, it kills what is left of the
//! sandbox, what is in a cgroup that was the owner's, and removes the run directory.
//!
//! It is the same binary with a hidden command. Its stdin is one end of a socket pair, over which the
//! owner passes a pidfd of each child; the end of that stream is the owner's end, also by SIGKILL.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child as StdChild, Command, Stdio};
use std::time::{Duration, Instant};

use super::{GRACE, child, process, rights};
use crate::{claim, pool};

/// The hidden command.
pub const COMMAND: &str = "janitor";

/// So many children may have ended unnoticed; with more it is time to let go of those that have.
const MANY: usize = 64;

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
    /// `cgroup` goes as well, with all that is in it.
    pub(super) fn start(run: &Path, cgroup: Option<&Path>) -> Result<Self, JanitorError> {
        let (ours, theirs) = UnixStream::pair().map_err(JanitorError::Start)?;
        // Not by name: the file may have been replaced since. Quiet, as an open stdout would keep
        // whoever reads ours waiting.
        let _alone = child::alone();
        let process = Command::new("/proc/self/exe")
            .arg0("rundlet-janitor")
            .arg(COMMAND)
            .arg(run)
            .args(cgroup)
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

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Hands a process over, should we end before it.
    pub(super) fn watch(&self, pidfd: &OwnedFd) -> Result<(), JanitorError> {
        let Some(line) = &self.line else {
            return Ok(());
        };
        let fds = [pidfd.as_fd()];
        rights::send(line, b"c", &fds).map_err(JanitorError::Tell)?;
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
/// The run directory, or the cgroup, cannot be removed.
pub fn run(line: &OwnedFd, directory: &Path, cgroup: Option<&Path>) -> io::Result<()> {
    process::raise_descriptor_limit();
    let mut children = Vec::new();
    let mut many = MANY;
    loop {
        let (bytes, fds) = rights::receive(line, &mut [0])?;
        if bytes == 0 {
            break;
        }
        children.extend(fds);
        if children.len() > many {
            children = living(children)?;
            many = MANY.max(2 * children.len());
        }
    }
    let deadline = Instant::now() + GRACE;
    for child in &children {
        if !process::ends_within(child, deadline.saturating_duration_since(Instant::now()))? {
            process::kill(child);
            process::ends_within(child, GRACE)?;
        }
    }
    let cleared = cgroup.map_or(Ok(()), pool::clear);
    claim::remove(directory)?;
    cleared.map_err(io::Error::other)
}

/// Those that live, of many.
fn living(children: Vec<OwnedFd>) -> io::Result<Vec<OwnedFd>> {
    let mut alive = Vec::with_capacity(children.len());
    for child in children {
        if !process::ends_within(&child, Duration::ZERO)? {
            alive.push(child);
        }
    }
    Ok(alive)
}
