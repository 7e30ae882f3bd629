//! The life of one sandbox: a block backend, a VMM and a run directory, started together and ended
//! together.
//!
//! ```text
//! Creating ──ready──▶ Ready ──exec──▶ Running ──▶ Stopping ──▶ Stopped
//!     │                 └───────────────┴──▶ Captured ──▶ Stopping
//!     └──────────────────┴───────────────┴──▶ Failed ──▶ Stopping
//! ```
//!
//! It is either booted, and ready when its agent reports, or a clone of a template, and ready when its
//! agent has renewed what no two clones may share.
//!
//! Nothing outlives the process that owns a [`Sandbox`]: both children hold the read end of a pipe and
//! end when it closes; the [`janitor`](crate::sandbox::janitor) kills those that do not and removes the
//! run directory.

pub(crate) mod backend;
pub(crate) mod child;
mod control;
mod event;
mod fleet;
pub mod janitor;
mod member;
pub(crate) mod output;
pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod ready;
pub(crate) mod renew;
pub(crate) mod rights;
pub(crate) mod spec;
mod state;
mod tail;
pub(crate) mod vmm;
pub(crate) mod words;
pub(crate) mod zygote;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::agent::{Agent, AgentError, Connection};
use crate::claim::Claim;
use crate::error::PathError;
use crate::places::PlaceError;
use crate::scratch;
use crate::template::Binding;
use backend::{Backend, Disks, Life};
use child::ChildError;
use janitor::{Janitor, JanitorError};
use ready::ReadyListener;
use vmm::Vmm;

pub use control::{Captured, ControlError, Deed, Touched};
pub use event::{Event, Sink, VmmEnd, VmmExit};
pub use fleet::{Fleet, FleetError, FleetEvent, FleetPids, FleetSink};
pub use member::{Member, MemberError, MemberInstants, Wish};
pub use output::{Output, OutputError};
pub use spec::{Boot, Cloned, Console, Origin, SandboxSpec, SpecError, check_size};
pub use state::State;
pub use tail::printable;
pub(crate) use tail::{Tail, lines, of_file};
pub use zygote::{CloneEnd, ZygoteError};

/// How long a child may take to end by itself once its lifeline is cut.
const GRACE: Duration = Duration::from_secs(2);

/// How long a killed process may take to be gone: its memory has to be given back, on a host that may be
/// giving back that of hundreds.
pub(crate) const DEATH: Duration = Duration::from_secs(120);

/// Longest path of a unix socket, unix(7): 108 bytes with the final zero.
pub(crate) const MAX_SOCKET: usize = 107;

/// Lines of a log that an error shows.
const TAIL_LINES: usize = 20;

/// Why a sandbox did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error(transparent)]
    Janitor(#[from] JanitorError),
    #[error("the path of the socket {} is too long: {} bytes, {MAX_SOCKET} are possible; set {} to a shorter directory", path.display(), path.as_os_str().len(), crate::places::RUNTIME)]
    SocketPath { path: PathBuf },
    #[error("the path {} is no UTF-8 text", path.display())]
    NotText { path: PathBuf },
    #[error("cannot describe the sandbox")]
    Json(#[source] serde_json::Error),
    #[error("cannot listen on {}", path.display())]
    Listen {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// When parts of the start were done.
#[derive(Clone, Copy, Debug)]
pub struct Instants {
    pub backend_listening: Instant,
    pub vmm_started: Instant,
}

/// What a failed sandbox left to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Last lines of the guest's console, control characters made harmless.
    pub console: Vec<String>,
    /// Last lines of the VMM's log.
    pub vmm: Vec<String>,
    /// Last lines of the block backend's log.
    pub backend: Vec<String>,
    /// Last lines of a template's warm-up, made harmless, too.
    pub warm_up: Vec<String>,
}

/// A sandbox that was started. Dropping it ends it and removes everything of it.
#[derive(Debug)]
pub struct Sandbox {
    id: String,
    state: State,
    agent: Agent,
    control: PathBuf,
    console: PathBuf,
    instants: Instants,
    // Dropped in this order: the VMM before its disks, the directory last, the janitor after it.
    vmm: Vmm,
    backend: Backend,
    _ready: Option<ReadyListener>,
    _run: Claim,
    janitor: Janitor,
}

impl Sandbox {
    /// Starts everything; what happens from then on comes to `events`, from several threads.
    ///
    /// # Errors
    /// Something could not be started; what had been is ended.
    pub fn start(spec: &SandboxSpec, runtime: &Path, events: &Sink) -> Result<Self, StartError> {
        let run = Claim::create(runtime, &spec.id)?;
        let sockets = Sockets::in_directory(run.path())?;
        let console = match &spec.console {
            Console::File(path) => path.clone(),
            Console::Internal => run.path().join("console.log"),
        };
        let janitor = Janitor::start(run.path(), None)?;
        let backend = Backend::start(&disks(spec, &sockets), Life::Tied, events)?;
        janitor.watch(backend.child().pidfd())?;
        let backend_listening = Instant::now();
        let agent = Agent::new(sockets.vsock.clone());
        let (ready, events) = match &spec.origin {
            Origin::Boot(_) => {
                let ready = ReadyListener::start(&sockets.ready, events)?;
                (Some(ready), Sink::clone(events))
            }
            Origin::Clone(_) => {
                let events = renew::when_running(agent.clone(), spec.id.clone(), events);
                (None, events)
            }
        };
        let vmm = Vmm::start(spec, &sockets, &console, &events)?;
        janitor.watch(vmm.child().pidfd())?;
        log::info!(
            "sandbox {}: {:?}, vmm pid {}",
            spec.id,
            State::Creating,
            vmm.child().pid()
        );
        Ok(Self {
            id: spec.id.clone(),
            state: State::Creating,
            agent,
            control: sockets.control,
            console,
            instants: Instants {
                backend_listening,
                vmm_started: Instant::now(),
            },
            vmm,
            backend,
            _ready: ready,
            _run: run,
            janitor,
        })
    }

    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    #[must_use]
    pub fn instants(&self) -> Instants {
        self.instants
    }

    /// Process ids of the VMM and of the block backend.
    #[must_use]
    pub fn pids(&self) -> (u32, u32) {
        (self.vmm.child().pid(), self.backend.child().pid())
    }

    /// Process id of the one that cleans up when we cannot.
    #[must_use]
    pub fn janitor_pid(&self) -> u32 {
        self.janitor.pid()
    }

    /// To be called on [`Event::Ready`] and [`Event::Renewed`].
    pub fn ready(&mut self) {
        self.enter(State::Ready);
    }

    /// Has the guest make itself a template: its programs stop.
    ///
    /// # Errors
    /// As [`Agent::prepare`].
    pub fn prepare(&mut self, deadline: Instant) -> Result<(), AgentError> {
        self.agent.prepare(deadline)
    }

    /// Writes a prepared sandbox into `directory`, paused for good. What is kept of its scratch disk is
    /// told by an event, once the sandbox has ended.
    ///
    /// # Errors
    /// The VMM does not do it.
    pub fn capture(
        &mut self,
        directory: &Path,
        binding: &Binding,
        limit: Duration,
    ) -> Result<Captured, ControlError> {
        let captured = control::capture(&self.control, directory, binding, limit)?;
        self.enter(State::Captured);
        Ok(captured)
    }

    /// Has a controlled clone add to its template, in `directory`, which pages it has touched.
    ///
    /// # Errors
    /// The VMM does not do it.
    pub fn note_touched(
        &self,
        directory: &Path,
        by: Deed,
        limit: Duration,
    ) -> Result<Touched, ControlError> {
        control::note_touched(&self.control, directory, by, limit)
    }

    /// Ends the VMM, and so the sessions of its disks, and leaves the backend to its work.
    pub fn end_vmm(&mut self) {
        self.vmm.child_mut().end(GRACE);
    }

    /// Connects to the agent, for a command.
    ///
    /// # Errors
    /// As [`Agent::dial`].
    pub fn connect(&mut self) -> Result<Connection, AgentError> {
        let connection = self.agent.dial()?;
        self.enter(State::Running);
        Ok(connection)
    }

    /// Marks it as failed; what there is to read about it.
    pub fn fail(&mut self, why: &str) -> Evidence {
        log::info!("sandbox {}: {why}", self.id);
        self.enter(State::Failed);
        Evidence {
            console: tail::of_file(&self.console, TAIL_LINES),
            vmm: self.vmm.child().tail(TAIL_LINES),
            backend: self.backend.child().tail(TAIL_LINES),
            warm_up: Vec::new(),
        }
    }

    /// Ends it and removes everything of it.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if self.state == State::Stopped {
            return;
        }
        self.enter(State::Stopping);
        self.vmm.child_mut().end(GRACE);
        self.backend.child_mut().end(GRACE);
        self.enter(State::Stopped);
    }

    fn enter(&mut self, next: State) {
        if self.state == next {
            return;
        }
        if self.state.may_become(next) {
            log::info!("sandbox {}: {:?} -> {next:?}", self.id, self.state);
            self.state = next;
        } else {
            log::error!(
                "sandbox {}: {:?} cannot become {next:?}",
                self.id,
                self.state
            );
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.end();
    }
}

fn disks<'a>(spec: &'a SandboxSpec, sockets: &'a Sockets) -> Disks<'a> {
    let (image, scratch, resumes, keep): (_, &scratch::Template, _, _) = match &spec.origin {
        Origin::Boot(boot) => (&boot.image, &boot.scratch, false, boot.keep.as_deref()),
        Origin::Clone(clone) => (&clone.template.image, &clone.template.scratch, true, None),
    };
    Disks {
        root_socket: &sockets.root,
        image: &image.path,
        scratch_socket: &sockets.scratch,
        scratch,
        resumes,
        keep,
        figures_socket: None,
    }
}

/// The sockets of a sandbox.
#[derive(Debug)]
struct Sockets {
    root: PathBuf,
    scratch: PathBuf,
    control: PathBuf,
    vsock: PathBuf,
    /// Where the guest reports ready: the VMM forwards a dialled port to this name.
    ready: PathBuf,
}

impl Sockets {
    fn in_directory(run: &Path) -> Result<Self, StartError> {
        let sockets = Self {
            root: run.join("root.sock"),
            scratch: run.join("scratch.sock"),
            control: run.join("control.sock"),
            vsock: run.join("vsock.sock"),
            ready: run.join(format!("vsock.sock_{}", rundlet_protocol::READY_PORT)),
        };
        if sockets.ready.as_os_str().len() > MAX_SOCKET {
            return Err(StartError::SocketPath {
                path: sockets.ready,
            });
        }
        Ok(sockets)
    }
}
