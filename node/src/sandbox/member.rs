//! One clone of a [`Fleet`](super::Fleet): a VMM process and a run directory.

mod nascent;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rundlet_protocol::ExecSpec;
use rustix::pipe::{PipeFlags, pipe_with};

use super::fleet::Shared;
use super::words::Words;
use super::zygote::{CloneEnd, Handle, ZygoteError};
use super::{StartError, process, renew};
use crate::agent::{Agent, AgentError, Connection};
use crate::error::PathError;
use crate::sandbox::output::{Output, OutputError, Terms};
use nascent::Nascent;

/// Most that is kept of one stream of a command, bytes.
const KEEP: usize = 1024 * 1024;

/// A clone to make.
#[derive(Debug, Default)]
pub struct Wish {
    /// Its host name and its name among its siblings: 1 to 64 letters, digits, dashes and underscores.
    pub id: String,
    /// A directory of cgroup2 that the VMM is born into.
    pub cgroup: Option<OwnedFd>,
    /// Whether to keep what the guest prints on its console, in the run directory.
    pub console: bool,
}

/// Why a clone did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    #[error("{0:?} is no name of a clone: 1 to 64 letters, digits, - and _ are possible")]
    Id(String),
    #[error("there is a clone {0} already")]
    Taken(String),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Zygote(#[from] ZygoteError),
    #[error(transparent)]
    Janitor(#[from] super::janitor::JanitorError),
    #[error("cannot make a pipe for the clone")]
    Pipe(#[source] io::Error),
    #[error("{0}")]
    TemplateUnfit(String),
    #[error("clone {id} ended before it was ready: {why}")]
    Ended { id: String, why: String },
    #[error("clone {id} did not run within {} seconds", limit.as_secs())]
    Late { id: String, limit: Duration },
    #[error("clone {id} did not become itself: {why}")]
    NotRenewed { id: String, why: String },
}

/// When parts of a clone's start were done, and what others say they took.
#[derive(Clone, Debug)]
pub struct MemberInstants {
    pub requested: Instant,
    /// Its process was there.
    pub forked: Instant,
    /// Its vCPUs ran.
    pub running: Instant,
    /// Its agent had renewed it.
    pub ready: Instant,
    /// The VMM's named instants, microseconds since the zygote had the request.
    pub vmm_us: BTreeMap<String, u64>,
    /// What the renewal took in the guest, by its own word.
    pub renewed: Duration,
}

/// What others need to know of a clone.
#[derive(Debug)]
pub(super) struct Entry {
    directory: PathBuf,
    /// Absent until it is forked.
    process: OnceLock<Handle>,
    end: OnceLock<CloneEnd>,
    /// Whether its end was asked for.
    told: AtomicBool,
}

impl Entry {
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Notes its end; whether that is news.
    pub(super) fn ended(&self, end: CloneEnd) -> bool {
        self.end.set(end).is_ok() && !self.told.load(Ordering::Acquire)
    }

    pub(super) fn kill(&self) {
        self.told.store(true, Ordering::Release);
        if let Some(handle) = self.process.get() {
            process::kill(&handle.pidfd);
        }
    }

    pub(super) fn wait(&self, deadline: Instant) {
        let Some(handle) = self.process.get() else {
            return;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        match process::ends_within(&handle.pidfd, left) {
            Ok(true) => {}
            Ok(false) => log::error!("pid {} survives SIGKILL", handle.pid),
            Err(error) => log::error!("waiting for pid {}: {error}", handle.pid),
        }
    }
}

/// A ready clone. Dropped, it is killed (it has nothing to lose) and everything of it is removed.
#[derive(Debug)]
pub struct Member {
    id: String,
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    agent: Agent,
    instants: MemberInstants,
}

impl Member {
    pub(super) fn start(shared: &Arc<Shared>, wish: Wish) -> Result<Self, MemberError> {
        let requested = Instant::now();
        let nascent = Nascent::enter(shared, &wish.id)?;
        let (read, write) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| MemberError::Pipe(error.into()))?;
        let handle = nascent.fork(&wish, &write)?;
        // The clone has the only other one: its end is the end of its words.
        drop(write);
        shared.janitor.watch(&handle.pidfd)?;
        let forked = Instant::now();
        // Nobody else sets it.
        let _ = nascent.entry.process.set(handle);
        let mut words = Words::new(read);
        let vmm_us = nascent.await_running(&mut words)?;
        let running = Instant::now();
        let agent = Agent::new(nascent.vsock());
        let renewed =
            renew::renew(&agent, &wish.id).map_err(|why| nascent.not_renewed(&mut words, why))?;
        let instants = MemberInstants {
            requested,
            forked,
            running,
            ready: Instant::now(),
            vmm_us,
            renewed,
        };
        Ok(nascent.born(wish.id, agent, instants))
    }

    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The VMM's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.entry.process.get().map_or(0, |handle| handle.pid)
    }

    #[must_use]
    pub fn instants(&self) -> &MemberInstants {
        &self.instants
    }

    /// Connects to its agent, for a command.
    ///
    /// # Errors
    /// As [`Agent::dial`].
    pub fn connect(&self) -> Result<Connection, AgentError> {
        self.agent.dial()
    }

    /// Runs a command in it to its end, or until `limit` has passed, and keeps what it writes.
    ///
    /// # Errors
    /// The command could not be run, or was not done in time; it is killed then.
    pub fn run(&self, spec: ExecSpec, limit: Duration) -> Result<Output, OutputError> {
        let terms = Terms {
            limit,
            keep: KEEP,
            stdin: Vec::new(),
        };
        Output::of(self.connect()?, spec, terms)
    }

    /// How it has ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<CloneEnd> {
        if let Some(end) = self.entry.end.get() {
            return Some(*end);
        }
        let handle = self.entry.process.get()?;
        let gone = process::ends_within(&handle.pidfd, Duration::ZERO);
        gone.is_ok_and(|gone| gone).then_some(CloneEnd::Unknown)
    }

    /// Ends it and removes everything of it.
    pub fn stop(self) {}
}

impl Drop for Member {
    fn drop(&mut self) {
        nascent::bury(&self.shared, &self.id, &self.entry);
    }
}
