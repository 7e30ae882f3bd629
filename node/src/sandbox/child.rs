//! A child process, tied to us by a lifeline or not at all.
//!
//! A tied child inherits the read end of a pipe and ends when the write end closes, which only we hold:
//! however we end, it ends. A free one outlives us, and ends when it is told to. Each is its own process
//! group, so that a terminal's Ctrl-C is for us alone. Signals go through a pidfd, so they never hit a
//! stranger with a reused id.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child as StdChild, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use super::process;
use super::tail::{self, Tail, printable};

/// How long after its end a child's last lines may take to arrive.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What our programs log, crate env_logger.
const LOG: &str = "RUST_LOG";

/// Why a child did not start.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("cannot start {}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("{name} ended before it was ready ({status}): {said}")]
    Ended {
        name: &'static str,
        status: String,
        said: String,
    },
    #[error("{name} was not ready within {} seconds", limit.as_secs())]
    Late { name: &'static str, limit: Duration },
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) name: &'static str,
    pub(crate) program: &'a Path,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) tie: Tie<'a>,
}

/// What ends the child when we end.
#[derive(Debug)]
pub(crate) enum Tie<'a> {
    /// A pipe, named to it by `--lifeline FD`; `input` is its stdin.
    Lifeline { input: &'a [u8] },
    /// Nothing. Its stdout and stderr lead nowhere once we have gone.
    Free { input: &'a [u8] },
    /// A socket, named to it by `--socket FD`. Whoever holds the other end cuts it.
    Socket(OwnedFd),
}

/// Held while descriptors are open to be inherited: two children started at the same moment do not get
/// each other's.
static ALONE: Mutex<()> = Mutex::new(());

/// Keeps others from starting children meanwhile.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running (or ended) child; ended for good when dropped, unless it is free.
#[derive(Debug)]
pub(crate) struct Child {
    name: &'static str,
    pid: u32,
    pidfd: OwnedFd,
    free: bool,
    lifeline: Option<OwnedFd>,
    ended: Arc<Ended>,
    stderr: Tail,
}

/// The exit status, once there is one.
#[derive(Debug, Default)]
struct Ended {
    status: Mutex<Option<ExitStatus>>,
    told: Condvar,
}

impl Ended {
    fn set(&self, status: ExitStatus) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        self.told.notify_all();
    }

    fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .told
            .wait_timeout_while(status, limit, |it| it.is_none());
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Child {
    /// Starts it. `on_line` gets each line of its stdout, `on_end` its status after the last line.
    pub(crate) fn start(
        start: Start<'_>,
        on_line: impl FnMut(&[u8]) + Send + 'static,
        on_end: impl FnOnce(ExitStatus) + Send + 'static,
    ) -> Result<Self, ChildError> {
        let error = |source: io::Error| ChildError::Start {
            program: start.program.to_path_buf(),
            source,
        };
        let mut command = Command::new(start.program);
        if env::var_os(LOG).is_none() {
            // What goes well is nobody's news, and the rest should not drown in it.
            command.env(LOG, "warn");
        }
        command.args(&start.arguments);
        let free = matches!(start.tie, Tie::Free { .. });
        let (theirs, ours, input) = match start.tie {
            Tie::Lifeline { input } => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| error(e.into()))?;
                (Some(("--lifeline", read)), Some(write), input)
            }
            Tie::Free { input } => (None, None, input),
            Tie::Socket(socket) => (Some(("--socket", socket)), None, &[][..]),
        };
        let alone = alone();
        if let Some((option, fd)) = &theirs {
            command.arg(option).arg(fd.as_raw_fd().to_string());
            rustix::io::fcntl_setfd(fd, FdFlags::empty()).map_err(|e| error(e.into()))?;
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(error)?;
        drop(theirs);
        drop(alone);
        let pid = process.id();
        let pidfd = match process::open(pid) {
            Ok(pidfd) => pidfd,
            Err(source) => {
                // Not yet waited for, so the id is still its own.
                let _ = process.kill();
                let _ = process.wait();
                return Err(error(source));
            }
        };
        let child = Self {
            name: start.name,
            pid,
            pidfd,
            free,
            lifeline: ours,
            ended: Arc::default(),
            stderr: Tail::default(),
        };
        child
            .attach(process, input, on_line, on_end)
            .map_err(error)?;
        Ok(child)
    }

    fn attach(
        &self,
        mut process: StdChild,
        input: &[u8],
        mut on_line: impl FnMut(&[u8]) + Send + 'static,
        on_end: impl FnOnce(ExitStatus) + Send + 'static,
    ) -> io::Result<()> {
        let (last_words, heard) = mpsc::channel::<()>();
        if let Some(stderr) = process.stderr.take() {
            let (name, kept, done) = (self.name, self.stderr.clone(), last_words.clone());
            spawn(format!("{name}-log"), move || {
                tail::lines(stderr, |line| {
                    let line = printable(line);
                    log::debug!("{name}: {line}");
                    kept.push(line);
                });
                drop(done);
            })?;
        }
        if let Some(stdout) = process.stdout.take() {
            spawn(format!("{}-out", self.name), move || {
                tail::lines(stdout, &mut on_line);
                drop(last_words);
            })?;
        }
        let stdin = process.stdin.take();
        let (name, ended) = (self.name, Arc::clone(&self.ended));
        spawn(format!("{name}-wait"), move || {
            let status = wait(&mut process, name);
            // Until both readers are gone, or for a moment when somebody else holds their pipes.
            let _ = heard.recv_timeout(LAST_WORDS);
            ended.set(status);
            on_end(status);
        })?;
        if let Some(mut stdin) = stdin {
            match stdin.write_all(input) {
                // It has ended already; its status says more.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                other => other?,
            }
        }
        Ok(())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// The last lines of its stderr.
    pub(crate) fn tail(&self, lines: usize) -> Vec<String> {
        self.stderr.last(lines)
    }

    /// What to say when it ended although it should not have.
    pub(crate) fn ended_early(&self, status: ExitStatus) -> ChildError {
        ChildError::Ended {
            name: self.name,
            status: status.to_string(),
            said: self.tail(4).join("; "),
        }
    }

    /// Waits for its end.
    pub(crate) fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        self.ended.wait(limit)
    }

    /// Cuts the lifeline, or asks a free child to end; kills it when it has not ended after `grace`.
    pub(crate) fn end(&mut self, grace: Duration) {
        self.lifeline = None;
        if self.free {
            process::terminate(&self.pidfd);
        }
        if self.wait(grace).is_some() {
            return;
        }
        log::warn!(
            "{} (pid {}) does not end by itself, killing it",
            self.name,
            self.pid
        );
        process::kill(&self.pidfd);
        if self.wait(super::DEATH).is_none() {
            log::error!("{} (pid {}) survives SIGKILL", self.name, self.pid);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.free {
            self.end(super::GRACE);
        }
    }
}

fn wait(process: &mut StdChild, name: &str) -> ExitStatus {
    loop {
        match process.wait() {
            Ok(status) => return status,
            Err(error) => {
                // ECHILD cannot be: nobody else waits for it.
                log::error!("waiting for {name}: {error}");
                thread::sleep(LAST_WORDS);
            }
        }
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name).spawn(body).map(drop)
}
