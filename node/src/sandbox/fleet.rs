//! Many clones of one template, in one process of ours: one block backend and one zygote for all, a run
//! directory, a socket and a VMM process for each.
//!
//! What must hold: no clone outlives its fleet, also when we are killed (all hold the read end of one
//! pipe, and the [`janitor`](super::janitor) knows each by its pidfd). The zygote may die at any time: its
//! clones live on, and the next clone starts another zygote. The backend may not: without disks they all end.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use rustix::pipe::{PipeFlags, pipe_with};

use super::backend::{Backend, Disks, Life};
use super::janitor::{Janitor, JanitorError};
use super::member::{Entry, Member, MemberError, Wish};
use super::spec::Cloned;
use super::tail::{self, Tail, printable};
use super::zygote::{CloneEnd, Ends, Zygote, ZygoteError};
use super::{DEATH, Event, GRACE, Sink, StartError, TAIL_LINES, process};
use crate::claim::{self, Claim};

/// Why there is no fleet.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Zygote(#[from] ZygoteError),
    #[error(transparent)]
    Path(#[from] crate::error::PathError),
    #[error(transparent)]
    Janitor(#[from] JanitorError),
    #[error("cannot prepare for clones")]
    Prepare(#[source] io::Error),
}

/// What happens to a fleet without being asked for.
#[derive(Debug)]
pub enum FleetEvent {
    /// A clone has ended by itself. Not told of one whose zygote has died: [`Member::end`] tells.
    Ended { id: String, end: CloneEnd },
    /// The zygote has died; the next clone starts another one.
    ZygoteGone,
    /// The block backend has ended, and all clones with it.
    BackendEnded(ExitStatus),
}

/// Takes the events, from several threads.
pub type FleetSink = Arc<dyn Fn(FleetEvent) + Send + Sync>;

/// Process ids of what all clones share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetPids {
    pub backend: u32,
    /// Absent when it has died.
    pub zygote: Option<u32>,
    pub janitor: u32,
}

/// The fleet. Dropped after its last [`Member`], everything of it is gone.
#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
}

impl Fleet {
    /// Starts backend and zygote, and raises this process's limit of open files to what it may have.
    ///
    /// # Errors
    /// Something could not be started, or the template does not fit
    /// ([`ZygoteError::TemplateUnfit`]); what had been is ended.
    pub fn start(cloned: Cloned, runtime: &Path, events: &FleetSink) -> Result<Self, FleetError> {
        process::raise_descriptor_limit();
        let run = Claim::create_random(runtime, "fleet")?;
        let sockets = ["root.sock", "scratch.sock"].map(|name| run.path().join(name));
        let [root_socket, scratch_socket] = sockets;
        let janitor = Janitor::start(run.path(), None)?;
        let disks = Disks {
            root_socket: &root_socket,
            image: &cloned.template.image.path,
            scratch_socket: &scratch_socket,
            scratch: &cloned.template.scratch,
            resumes: true,
            keep: None,
            figures_socket: None,
        };
        let ending = Arc::default();
        let backend = Backend::start(&disks, Life::Tied, &backend_sink(events, &ending))?;
        janitor.watch(backend.child().pidfd())?;
        let lifeline = pipe_with(PipeFlags::CLOEXEC).map_err(|e| FleetError::Prepare(e.into()))?;
        let log = Tail::default();
        let shared = Shared {
            stderr: log_pipe(&log).map_err(FleetError::Prepare)?,
            cloned,
            root_socket,
            scratch_socket,
            lifeline: lifeline.0,
            cut: Mutex::new(Some(lifeline.1)),
            log,
            members: Members::default(),
            ending,
            events: Arc::clone(events),
            zygote: Mutex::new(None),
            backend: Mutex::new(backend),
            run,
            janitor,
        };
        let shared = Arc::new(shared);
        shared.zygote()?;
        Ok(Self { shared })
    }

    /// Makes a clone and waits until it is ready. May be called from many threads at once.
    ///
    /// # Errors
    /// It did not become ready; nothing is left of it.
    pub fn clone_one(&self, wish: Wish) -> Result<Member, MemberError> {
        Member::start(&self.shared, wish)
    }

    #[must_use]
    pub fn pids(&self) -> FleetPids {
        let zygote = self.shared.zygote.lock();
        let zygote = zygote.unwrap_or_else(PoisonError::into_inner);
        let backend = self.shared.backend.lock();
        FleetPids {
            backend: backend
                .unwrap_or_else(PoisonError::into_inner)
                .child()
                .pid(),
            zygote: zygote
                .as_ref()
                .filter(|it| it.is_alive())
                .map(|it| it.child().pid()),
            janitor: self.shared.janitor.pid(),
        }
    }

    /// The last lines that any of its processes logged.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.shared.log()
    }

    /// Where it keeps its sockets.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.shared.run.path()
    }

    /// Ends every clone and everything they shared.
    pub fn stop(self) {
        self.shared.end();
    }
}

/// What members hold on to.
pub(super) struct Shared {
    pub(super) cloned: Cloned,
    pub(super) root_socket: PathBuf,
    pub(super) scratch_socket: PathBuf,
    /// The end that clones inherit, and the end whose closing ends them.
    pub(super) lifeline: OwnedFd,
    cut: Mutex<Option<OwnedFd>>,
    /// Where all of them log.
    pub(super) stderr: OwnedFd,
    log: Tail,
    pub(super) members: Members,
    /// Set when ends are no news any more.
    ending: Arc<AtomicBool>,
    events: FleetSink,
    // Dropped in this order, the directory and the janitor last.
    zygote: Mutex<Option<Arc<Zygote>>>,
    backend: Mutex<Backend>,
    pub(super) run: Claim,
    pub(super) janitor: Janitor,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// The living zygote, started if there is none.
    pub(super) fn zygote(&self) -> Result<Arc<Zygote>, ZygoteError> {
        let mut place = self.zygote.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(zygote) = place.as_ref().filter(|it| it.is_alive()) {
            return Ok(Arc::clone(zygote));
        }
        if self.ending.load(Ordering::Acquire) {
            return Err(ZygoteError::Gone);
        }
        // The dead one is waited for before the next one loads its template.
        *place = None;
        let (members, events) = (self.members.clone(), Arc::clone(&self.events));
        let ends: Ends = Arc::new(move |id, end| {
            if let Some(id) = members.ended(id, end) {
                events(FleetEvent::Ended { id, end });
            }
        });
        let (ending, events) = (Arc::clone(&self.ending), Arc::clone(&self.events));
        let gone = move || {
            if !ending.load(Ordering::Acquire) {
                log::warn!("the zygote has died; its clones live on");
                events(FleetEvent::ZygoteGone);
            }
        };
        let zygote = Zygote::start(Some(&self.cloned.template.path), ends, gone)?;
        if let Err(error) = self.janitor.watch(zygote.child().pidfd()) {
            log::error!("{}", crate::error::chain(&error));
        }
        log::info!(
            "zygote of {}: pid {}",
            self.cloned.template.record.name,
            zygote.child().pid()
        );
        let zygote = Arc::new(zygote);
        *place = Some(Arc::clone(&zygote));
        Ok(zygote)
    }

    pub(super) fn log(&self) -> Vec<String> {
        let mut lines = self.log.last(TAIL_LINES);
        let zygote = self.zygote.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(zygote) = zygote.as_ref() {
            lines.extend(zygote.child().tail(TAIL_LINES));
        }
        let backend = self.backend.lock().unwrap_or_else(PoisonError::into_inner);
        lines.extend(backend.child().tail(TAIL_LINES));
        lines
    }

    fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.members.end();
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.zygote.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let mut backend = self.backend.lock().unwrap_or_else(PoisonError::into_inner);
        backend.child_mut().end(GRACE);
        self.members.remove_directories();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.end();
    }
}

/// The clones there are, by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Members(Arc<Mutex<BTreeMap<String, Arc<Entry>>>>);

impl Members {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the name, or says that it is taken.
    pub(super) fn enter(&self, id: &str, entry: &Arc<Entry>) -> bool {
        let mut members = self.lock();
        if members.contains_key(id) {
            return false;
        }
        members.insert(id.into(), Arc::clone(entry));
        true
    }

    pub(super) fn leave(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Notes an end; the id if that is news.
    fn ended(&self, id: &str, end: CloneEnd) -> Option<String> {
        let entry = self.lock().get(id).map(Arc::clone)?;
        entry.ended(end).then(|| id.to_owned())
    }

    /// Ends all of them: first the signals, then the waiting.
    fn end(&self) {
        let all: Vec<_> = self.lock().values().map(Arc::clone).collect();
        for entry in &all {
            entry.kill();
        }
        let deadline = Instant::now() + DEATH;
        for entry in &all {
            entry.wait(deadline);
        }
    }

    fn remove_directories(&self) {
        for entry in self.lock().values() {
            // What is in the way is the claim's to remove.
            let _ = claim::remove(entry.directory());
        }
    }
}

fn backend_sink(events: &FleetSink, ending: &Arc<AtomicBool>) -> Sink {
    let (events, ending) = (Arc::clone(events), Arc::clone(ending));
    Arc::new(move |event| {
        if let Event::BackendEnded(status) = event
            && !ending.load(Ordering::Acquire)
        {
            events(FleetEvent::BackendEnded(status));
        }
    })
}

/// A pipe for the logs of all clones, read until its last writer is gone.
fn log_pipe(log: &Tail) -> io::Result<OwnedFd> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let log = log.clone();
    thread::Builder::new()
        .name("fleet-log".into())
        .spawn(move || {
            tail::lines(std::fs::File::from(read), |line| {
                let line = printable(line);
                log::debug!("clone: {line}");
                log.push(line);
            });
        })?;
    Ok(write)
}
