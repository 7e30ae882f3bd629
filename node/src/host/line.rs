//! What the sandboxes of one image or template share: a block backend, the locks in the store, a zygote.
//!
//! A backend outlives the daemon, as its sandboxes do; a later daemon finds it again by `line.json`. A line that
//! nobody needs is closed after a while.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Inner;
use super::model::Source;
use super::nursery::Nursery;
use super::plan::Plan;
use super::record::{self, LineRecord, ProcessRecord};
use crate::claim;
use crate::error::PathError;
use crate::image::Image;
use crate::sandbox::backend::figures::{self, BackendFigures};
use crate::sandbox::backend::{Backend, Disks, Life, Owner};
use crate::sandbox::{DEATH, Event, MAX_SOCKET, Sink, StartError, process};
use crate::template::{Binding, Template, Templates};

/// How long a backend may take to end by itself.
const GRACE: Duration = Duration::from_secs(2);

/// The socket of its figures, in the line's directory.
const FIGURES: &str = "figures.sock";

/// How long the word about a backend's end may take to arrive.
const HINDSIGHT: Duration = Duration::from_secs(1);

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("cannot start the block backend")]
    Backend(#[source] StartError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("cannot find the block backend again")]
    Process(#[source] io::Error),
    #[error("the socket {} would have a path that is too long", .0.display())]
    Socket(PathBuf),
}

/// What a line keeps from being removed.
#[derive(Debug)]
pub(super) enum Held {
    /// An image, locked for as long as this exists.
    Image { _image: Image },
    /// A template likewise, and what one built now would be made of.
    Template {
        template: Box<Template>,
        binding: Binding,
    },
    /// It is no longer in the store; those that live go on with the files they have open.
    Retired,
}

/// A line.
#[derive(Debug)]
pub(super) struct Line {
    /// Also that of its directory.
    pub(super) name: String,
    pub(super) key: String,
    /// What it was first asked for by.
    pub(super) source: Source,
    pub(super) directory: PathBuf,
    pub(super) owner: Option<Owner>,
    pub(super) backend: ProcessRecord,
    pub(super) pidfd: Arc<OwnedFd>,
    /// Whose child it is, and will be waited for; absent for one that was found.
    _child: Option<Backend>,
    how: Mutex<Option<Receiver<String>>>,
    held: Mutex<Held>,
    pub(super) nursery: Nursery,
    members: AtomicUsize,
    idle_since: Mutex<Instant>,
    /// Whether its backend has ended, or is about to.
    over: AtomicBool,
}

impl Line {
    /// Starts the backend in a directory of its own and waits until it listens.
    pub(super) fn start(
        inner: &Arc<Inner>,
        plan: Plan,
        name: &str,
    ) -> Result<Arc<Self>, LineError> {
        let directory = inner.lines.directory().join(name);
        let owner = inner.backend_owner();
        let mut unfinished = Unfinished::make(&directory)?;
        let layers = inner.layers(name, owner, plan.scratch())?;
        let sockets = ["root.sock", "scratch.sock", FIGURES].map(|name| directory.join(name));
        if let Some(long) = sockets.iter().find(|it| it.as_os_str().len() > MAX_SOCKET) {
            return Err(LineError::Socket(long.clone()));
        }
        let disks = Disks {
            root_socket: &sockets[0],
            image: &plan.image().path,
            scratch_socket: &sockets[1],
            scratch: &layers,
            resumes: plan.is_template(),
            keep: None,
            figures_socket: Some(&sockets[2]),
        };
        let life = Life::Free { jail: owner };
        let (told, how) = mpsc::channel();
        let backend = Backend::start(&disks, life, &sink(told)).map_err(LineError::Backend)?;
        let pid = backend.child().pid();
        unfinished.pidfd = Some(process::open(pid).map_err(LineError::Process)?);
        let started = process::start_time(pid).map_err(LineError::Process)?;
        let backend_record = ProcessRecord { pid, started };
        let record = LineRecord {
            version: record::VERSION,
            key: plan.key(),
            source: plan.source().clone(),
            made_of: plan.made_of().to_owned(),
            scratch_mib: plan.scratch_mib(),
            uid: owner.map(|owner| owner.uid),
            backend: backend_record,
        };
        record::write(&directory.join("line.json"), &record)?;
        if let Err(error) = inner.slots.join_helpers(pid) {
            log::warn!("the block backend, pid {pid}, stays in the daemon's cgroup: {error}");
        }
        log::info!("line {name}: block backend pid {pid}");
        let pidfd = unfinished.finished().map_err(LineError::Process)?;
        let child = Some((backend, how));
        Ok(Arc::new(Self::new(
            record,
            directory,
            pidfd,
            child,
            plan.hold(),
        )))
    }

    /// The line of a backend that was found.
    pub(super) fn found(
        record: LineRecord,
        directory: PathBuf,
        pidfd: OwnedFd,
        held: Held,
    ) -> Arc<Self> {
        Arc::new(Self::new(record, directory, pidfd, None, held))
    }

    fn new(
        record: LineRecord,
        directory: PathBuf,
        pidfd: OwnedFd,
        child: Option<(Backend, Receiver<String>)>,
        held: Held,
    ) -> Self {
        let (child, how) = child.unzip();
        let name = directory.file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        let template = match &held {
            Held::Template { template, .. } => {
                let called = template.record.name.to_string();
                Some((template.path.clone(), called))
            }
            Held::Image { .. } | Held::Retired => None,
        };
        Self {
            nursery: Nursery::new(template, &directory),
            name,
            key: record.key,
            source: record.source,
            directory,
            owner: record.uid.map(|uid| Owner { uid, gid: uid }),
            backend: record.backend,
            pidfd: Arc::new(pidfd),
            _child: child,
            how: Mutex::new(how),
            held: Mutex::new(held),
            members: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
            over: AtomicBool::new(false),
        }
    }

    pub(super) fn root(&self) -> PathBuf {
        self.directory.join("root.sock")
    }

    pub(super) fn scratch(&self) -> PathBuf {
        self.directory.join("scratch.sock")
    }

    /// What its backend has done; nothing where that does not say.
    pub(super) fn figures(&self) -> Option<BackendFigures> {
        let figures = figures::ask(&self.directory.join(FIGURES));
        figures
            .inspect_err(|error| log::debug!("line {}: no figures: {error}", self.name))
            .ok()
    }

    /// What its template would be made of now; absent for an image.
    pub(super) fn binding(&self) -> Option<Binding> {
        match &*self.held.lock().unwrap_or_else(PoisonError::into_inner) {
            Held::Template { binding, .. } => Some(binding.clone()),
            Held::Image { .. } | Held::Retired => None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// No new sandbox will be seated; whether that is news.
    pub(super) fn set_over(&self) -> bool {
        !self.over.swap(true, Ordering::AcqRel)
    }

    /// How its backend, which has ended, did so; nobody knows that of one that was found.
    pub(super) fn how(&self) -> Option<String> {
        let how = self.how.lock().unwrap_or_else(PoisonError::into_inner);
        how.as_ref()?.recv_timeout(HINDSIGHT).ok()
    }

    pub(super) fn members(&self) -> usize {
        self.members.load(Ordering::Acquire)
    }

    /// How long nobody has needed it.
    pub(super) fn idle(&self) -> Option<Duration> {
        let since = self
            .idle_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        (self.members() == 0).then(|| since.elapsed())
    }

    /// Ends everything of it. Nobody may have a seat.
    pub(super) fn close(&self, inner: &Inner) {
        self.set_over();
        self.nursery.end();
        process::terminate(&self.pidfd);
        let ended = |limit| process::ends_within(&self.pidfd, limit).unwrap_or(true);
        if !ended(GRACE) {
            process::kill(&self.pidfd);
            if !ended(DEATH) {
                log::error!(
                    "the block backend, pid {}, survives SIGKILL",
                    self.backend.pid
                );
            }
        }
        inner.remove_layers(&self.name);
        if let Err(error) = claim::remove(&self.directory) {
            log::warn!("cannot remove {}: {error}", self.directory.display());
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Held::Template { template, .. } = std::mem::replace(&mut *held, Held::Retired) {
            Templates::of(&inner.store).release(*template);
        }
        log::info!("line {}: closed", self.name);
    }
}

/// A sandbox's use of a line.
#[derive(Debug)]
pub(super) struct Seat(Arc<Line>);

impl Seat {
    pub(super) fn take(line: &Arc<Line>) -> Self {
        line.members.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(line))
    }

    pub(super) fn line(&self) -> &Arc<Line> {
        &self.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut since = self
            .0
            .idle_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *since = Instant::now();
        self.0.members.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Tells how the backend ended.
fn sink(told: Sender<String>) -> Sink {
    let told = Mutex::new(told);
    Arc::new(move |event| {
        if let Event::BackendEnded(status) = event {
            let told = told.lock().unwrap_or_else(PoisonError::into_inner);
            // The line may have been closed.
            let _ = told.send(status.to_string());
        }
    })
}

/// A line on its way. Dropped before it is finished, nothing is left of it.
struct Unfinished {
    directory: PathBuf,
    pidfd: Option<OwnedFd>,
    done: bool,
}

impl Unfinished {
    fn make(directory: &std::path::Path) -> Result<Self, LineError> {
        super::make_directory(directory)?;
        Ok(Self {
            directory: directory.to_path_buf(),
            pidfd: None,
            done: false,
        })
    }

    fn finished(mut self) -> io::Result<OwnedFd> {
        let pidfd = self.pidfd.take();
        self.done = pidfd.is_some();
        pidfd.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if let Some(pidfd) = &self.pidfd {
            process::kill(pidfd);
        }
        if let Err(error) = claim::remove(&self.directory) {
            log::warn!("cannot remove {}: {error}", self.directory.display());
        }
    }
}
