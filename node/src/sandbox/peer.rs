//! Programs that know nothing of lifelines, for comparisons: other VMMs, and our own daemon.
//!
//! What must hold is what holds for ours: none outlives us. Each is ended through its pidfd, by us or, when
//! we are gone, by the [`janitor`](super::janitor).

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child as StdChild, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rundlet_protocol::Ready;

use super::janitor::{Janitor, JanitorError};
use super::ready::ReadyListener;
use super::{Event, GRACE, MAX_SOCKET, Sink, StartError, child, process, tail};
use crate::claim::{self, Claim};
use crate::error::PathError;

/// How often somebody who waits for a program's word looks whether it is still there.
const LOOK: Duration = Duration::from_millis(100);

/// The name of the file with what a program prints.
const LOG: &str = "log";

/// Descriptors that a peer may have. Our own limit, raised for many sandboxes, is none to inherit: Firecracker
/// makes its table as large as it may become, 8 MiB for a million. 2048 is what its jailer gives it.
const DESCRIPTORS: u64 = 2048;

/// Lines of it that an error repeats.
const LINES: usize = 6;

/// Why a peer does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Janitor(#[from] JanitorError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot start {}", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("{program} ended before it was ready{}", words(said))]
    Ended { program: String, said: Vec<String> },
    #[error("{program} was not ready within {} seconds{}", limit.as_secs(), words(said))]
    Late {
        program: String,
        limit: Duration,
        said: Vec<String>,
    },
    #[error("its guest did not come up: {0}")]
    NotReady(String),
}

fn words(said: &[String]) -> String {
    if said.is_empty() {
        return String::new();
    }
    format!("; it said: {}", said.join("; "))
}

/// Where peers live: a run directory, and the janitor for the case that we are killed.
#[derive(Debug)]
pub(crate) struct Nest {
    // In this order: the janitor is done when there is nothing left to remove.
    run: Claim,
    janitor: Janitor,
}

impl Nest {
    /// In a directory of its own, which goes with it.
    pub(crate) fn open(run: Claim) -> Result<Self, PeerError> {
        Self::with(run, None)
    }

    /// The same with a cgroup that goes, and all that is in it, should we be killed.
    pub(crate) fn over(run: Claim, cgroup: &Path) -> Result<Self, PeerError> {
        Self::with(run, Some(cgroup))
    }

    fn with(run: Claim, cgroup: Option<&Path>) -> Result<Self, PeerError> {
        process::raise_descriptor_limit();
        let janitor = Janitor::start(run.path(), cgroup)?;
        Ok(Self { run, janitor })
    }

    /// A directory for one sandbox, removed when dropped.
    pub(crate) fn place(&self, id: &str) -> Result<Place, PeerError> {
        let path = self.run.path().join(id);
        fs::create_dir(&path).map_err(PathError::at("create directory", &path))?;
        Ok(Place { path })
    }

    /// Starts a program in `place`, which takes its output.
    pub(crate) fn spawn(&self, place: &Place, command: Command) -> Result<Peer, PeerError> {
        let peer = self.spawn_ours(place, command)?;
        // Now, while it is still being loaded: between fork and exec there is no safe way.
        if let Err(source) = process::limit_descriptors(peer.pid(), DESCRIPTORS) {
            log::warn!("{} keeps our limit of open files: {source}", peer.program);
        }
        Ok(peer)
    }

    /// The same with our own limit of open files.
    pub(crate) fn spawn_ours(
        &self,
        place: &Place,
        mut command: Command,
    ) -> Result<Peer, PeerError> {
        let path = place.path.join(LOG);
        let program = PathBuf::from(command.get_program());
        let error = |source| PeerError::Spawn {
            program: program.clone(),
            source,
        };
        let log = File::create(&path).map_err(PathError::at("create", &path))?;
        let errors = log.try_clone().map_err(error)?;
        let alone = child::alone();
        let mut process = command
            .current_dir(&place.path)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(error)?;
        drop(alone);
        let pidfd = match process::open(process.id()) {
            Ok(pidfd) => pidfd,
            Err(source) => {
                let _ = process.kill();
                let _ = process.wait();
                return Err(error(source));
            }
        };
        let peer = Peer {
            program: program.display().to_string(),
            process,
            pidfd,
            log: path,
        };
        self.janitor.watch(&peer.pidfd)?;
        Ok(peer)
    }
}

/// One sandbox's directory.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
}

impl Place {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a socket in it, short enough to be one.
    pub(crate) fn socket(&self, name: &str) -> Result<PathBuf, PeerError> {
        let path = self.path.join(name);
        if path.as_os_str().len() > MAX_SOCKET {
            return Err(StartError::SocketPath { path }.into());
        }
        Ok(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = claim::remove(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// A running program. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Peer {
    program: String,
    process: StdChild,
    pidfd: OwnedFd,
    log: PathBuf,
}

impl Peer {
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The first thing that comes from `from`, unless the program ends or `limit` has passed.
    pub(crate) fn hear<T>(&self, from: &Receiver<T>, limit: Duration) -> Result<T, PeerError> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match from.recv_timeout(left.min(LOOK)) {
                Ok(heard) => return Ok(heard),
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
                Err(RecvTimeoutError::Timeout) if self.has_ended() => return Err(self.ended()),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Err(self.late(limit)),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Tries `attempt` until it has a result, unless the program ends or `limit` has passed.
    pub(crate) fn until<T>(
        &self,
        limit: Duration,
        mut attempt: impl FnMut() -> Option<T>,
    ) -> Result<T, PeerError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(result) = attempt() {
                return Ok(result);
            }
            if self.has_ended() {
                return Err(self.ended());
            }
            if Instant::now() >= deadline {
                return Err(self.late(limit));
            }
            // Short against what a peer's start takes, so that waiting costs it nothing.
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    fn has_ended(&self) -> bool {
        process::ends_within(&self.pidfd, Duration::ZERO).unwrap_or(true)
    }

    fn ended(&self) -> PeerError {
        PeerError::Ended {
            program: self.program.clone(),
            said: tail::of_file(&self.log, LINES),
        }
    }

    fn late(&self, limit: Duration) -> PeerError {
        PeerError::Late {
            program: self.program.clone(),
            limit,
            said: tail::of_file(&self.log, LINES),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        process::kill(&self.pidfd);
        if process::ends_within(&self.pidfd, GRACE).unwrap_or(false) {
            let _ = self.process.wait();
        } else {
            log::error!("{} (pid {}) survives SIGKILL", self.program, self.pid());
        }
    }
}

/// Where a guest's agent reports ready, as a VMM forwards it to a unix socket.
#[derive(Debug)]
pub(crate) struct Doorbell {
    pub(crate) rings: Receiver<Result<Ready, PeerError>>,
    _listener: ReadyListener,
}

impl Doorbell {
    pub(crate) fn at(path: &Path) -> Result<Self, PeerError> {
        let (sender, rings) = mpsc::channel();
        let sink: Sink = Arc::new(move |event| {
            let ring = match event {
                Event::Ready(ready) => Ok(ready),
                Event::NotReady(why) => Err(PeerError::NotReady(why)),
                // Nothing else comes from there.
                _ => return,
            };
            // Who waited may have given up.
            let _ = sender.send(ring);
        });
        let listener = ReadyListener::start(path, &sink)?;
        Ok(Self {
            rings,
            _listener: listener,
        })
    }
}
