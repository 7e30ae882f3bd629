//! A small process of one thread that makes processes, as a zygote does for sandboxes: what a fork costs does not depend on
//! how many threads ask for it. The same binary with a hidden command; its stdin is a socket, its stdout a lifeline.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::super::process;
use super::birth;
use crate::sandbox::rights;

/// The hidden command.
pub const COMMAND: &str = "midwife";

/// The asking side. What was born ends with it.
#[derive(Debug)]
pub(super) struct Midwife {
    socket: Mutex<OwnedFd>,
    process: Child,
    /// Nothing is written to it: its end is what is waited for.
    _lifeline: io::PipeWriter,
}

/// A process that nobody has waited for yet.
#[derive(Debug)]
pub(super) struct Born(Pid);

impl Midwife {
    pub(super) fn start() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let (read, write) = io::pipe()?;
        let process = Command::new("/proc/self/exe")
            .arg0("rundlet-midwife")
            .arg(COMMAND)
            .stdin(theirs)
            .stdout(read)
            .stderr(Stdio::inherit())
            .spawn()?;
        Ok(Self {
            socket: Mutex::new(ours),
            process,
            _lifeline: write,
        })
    }

    pub(super) fn bear(&self, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Born> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        rights::send(&*socket, b"b", cgroup.as_slice())?;
        let mut answer = [0_u8; 4];
        let (length, _) = rights::receive(&*socket, &mut answer)?;
        if length != answer.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match i32::from_ne_bytes(answer) {
            pid @ 1.. => Ok(Born(Pid::from_raw(pid).expect("it is positive"))),
            error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        }
    }

    /// Its processor time so far.
    pub(super) fn cpu(&self) -> Duration {
        process::cpu(self.process.id()).unwrap_or_default().own
    }
}

impl Drop for Midwife {
    fn drop(&mut self) {
        // It holds nothing that would have to be put in order.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Born {
    pub(super) fn pid(&self) -> Pid {
        self.0
    }

    /// Waits for its end, which somebody else brings about.
    pub(super) fn wait(self) -> io::Result<()> {
        waitpid(Some(self.0), WaitOptions::empty())?;
        Ok(())
    }
}

/// The other side, until the asking one is gone.
///
/// # Errors
/// The socket is none.
pub fn serve() -> io::Result<()> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let (socket, lifeline) = (stdin.as_fd(), stdout.as_fd());
    loop {
        let (length, cgroup) = rights::receive(socket, &mut [0])?;
        if length == 0 {
            return Ok(());
        }
        let cgroup = cgroup.first().map(AsFd::as_fd);
        let answer = match birth::bear(lifeline, cgroup) {
            Ok(pid) => pid.as_raw_nonzero().get(),
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        rights::send(socket, &answer.to_ne_bytes(), &[])?;
    }
}
