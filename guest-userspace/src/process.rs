//! A command's process, as the agent sees it: start, signal, kill.
//!
//! What must hold: the agent itself never looks at a path of the sandbox's filesystem on behalf of a
//! command. All of that happens in the forked child ([`crate::program`]), which tells over a pipe what
//! went wrong; the pipe ends without a word when execve(2) has succeeded.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rundlet_protocol::{ExecSpec, Failure, FailureKind, TtySize};
use rustix::fs::{Mode, OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, Rlimit, getpid, set_child_subreaper, setrlimit, umask};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::cgroup::{Cgroups, Leaf};
use crate::program;
use crate::sys::{self, Fork};

/// A process that was started and not yet waited for.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    leaf: Option<Leaf>,
}

/// The agent's ends of a command's streams; they do not block.
#[derive(Debug)]
pub(crate) enum Ends {
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal {
        /// Two descriptors of the one master, watched for one direction each.
        keyboard: Option<OwnedFd>,
        screen: OwnedFd,
        /// Held until the command ends, so that closing and reopening its terminal is no hang-up.
        slave: OwnedFd,
    },
}

/// The program's ends.
#[derive(Debug)]
pub(crate) struct Stdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// What [`start`] hands over.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) process: Process,
    pub(crate) ends: Ends,
    /// Ends empty when the program runs; otherwise holds a [`Failure`] as JSON.
    pub(crate) report: OwnedFd,
}

/// Forks the command off.
pub(crate) fn start(spec: &ExecSpec, cgroups: &mut Cgroups) -> Result<Started, Failure> {
    let (ends, stdio) = match spec.tty {
        Some(size) => terminal(size, spec.stdin),
        None => pipes(spec.stdin),
    }
    .map_err(|error| resources("cannot make the command's streams", &error))?;
    let no_report = |error| resources("cannot make a pipe", &error);
    let (report, report_child) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(io::Error::from)
        .map_err(no_report)?;
    fcntl_setfl(&report, OFlags::NONBLOCK).map_err(|errno| no_report(errno.into()))?;

    let leaf = cgroups.leaf();
    match sys::fork(leaf.as_ref().map(AsFd::as_fd)) {
        Ok(Fork::Child) => program::become_program(spec, &stdio, &report_child),
        Ok(Fork::Parent(pid)) => Ok(Started {
            process: Process { pid, leaf },
            ends,
            report,
        }),
        Err(error) => {
            if let Some(leaf) = leaf {
                cgroups.release(leaf);
            }
            Err(resources("cannot fork", &error))
        }
    }
}

impl Process {
    /// Sends a signal to the process group. Until the child has made its group, to the child.
    pub(crate) fn signal(&self, signal: i32) {
        if sys::kill(-self.pid, signal).is_err() {
            // It may have just ended; the caller learns that when it is waited for.
            let _ = sys::kill(self.pid, signal);
        }
    }

    /// Kills the command with all that it started; without a cgroup, its process group.
    pub(crate) fn kill(&self) {
        if let Some(Err(error)) = self.leaf.as_ref().map(Leaf::kill) {
            crate::power::log(&format!(
                "rundlet-init: cannot write cgroup.kill, killing the process group only: {error}"
            ));
        }
        self.signal(rustix::process::Signal::KILL.as_raw());
    }

    /// Gives the cgroup back; the process has been waited for, or will be without us.
    pub(crate) fn release(self, cgroups: &mut Cgroups) {
        if let Some(leaf) = self.leaf {
            cgroups.release(leaf);
        }
    }
}

/// Why PID 1 could not get what an agent needs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtectError {
    #[error("cannot raise the limit of open files to {FILES}")]
    Files(#[source] io::Error),
    #[error("cannot write /proc/self/oom_score_adj")]
    OutOfMemory(#[source] io::Error),
}

/// Open files of the agent and, as an upper limit, of its programs; what a Linux host has.
const FILES: u64 = 524_288;

/// As PID 1: room for many sessions, and the out-of-memory killer looks elsewhere. Needs /proc.
pub(crate) fn protect_agent() -> Result<(), ProtectError> {
    let files = Rlimit {
        current: Some(FILES),
        maximum: Some(FILES),
    };
    setrlimit(Resource::Nofile, files).map_err(|error| ProtectError::Files(error.into()))?;
    umask(Mode::from_raw_mode(0o022));
    std::fs::write("/proc/self/oom_score_adj", "-1000").map_err(ProtectError::OutOfMemory)
}

/// As an ordinary process: orphans of commands come here, as they do to PID 1.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

fn pipes(with_stdin: bool) -> io::Result<(Ends, Stdio)> {
    let (child_in, stdin) = if with_stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&write, OFlags::NONBLOCK)?;
        (read, Some(write))
    } else {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        (rustix::fs::open("/dev/null", flags, Mode::empty())?, None)
    };
    let (stdout, child_out) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, child_err) = pipe_with(PipeFlags::CLOEXEC)?;
    // Only our ends: the flag belongs to the end, and programs expect theirs to block.
    fcntl_setfl(&stdout, OFlags::NONBLOCK)?;
    fcntl_setfl(&stderr, OFlags::NONBLOCK)?;
    let ends = Ends::Pipes {
        stdin,
        stdout,
        stderr,
    };
    let stdio = Stdio {
        stdin: child_in,
        stdout: child_out,
        stderr: child_err,
    };
    Ok((ends, stdio))
}

fn terminal(size: TtySize, with_stdin: bool) -> io::Result<(Ends, Stdio)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    resize(&master, size)?;
    fcntl_setfl(&master, OFlags::NONBLOCK | OFlags::RDWR)?;
    let stdio = Stdio {
        stdin: slave.try_clone()?,
        stdout: slave.try_clone()?,
        stderr: slave.try_clone()?,
    };
    let ends = Ends::Terminal {
        keyboard: with_stdin.then(|| master.try_clone()).transpose()?,
        screen: master,
        slave,
    };
    Ok((ends, stdio))
}

/// Sets a terminal's size; the kernel tells the foreground process group when it changes.
pub(crate) fn resize(terminal: impl AsFd, size: TtySize) -> io::Result<()> {
    let winsize = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, winsize)?)
}

fn resources(what: &str, error: &io::Error) -> Failure {
    Failure {
        kind: FailureKind::Resources,
        message: format!("{what}: {error}"),
    }
}
