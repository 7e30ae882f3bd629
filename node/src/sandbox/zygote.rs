//! The node's end of `rundlet-vmm zygote`: a process that holds a template and becomes its clones, or that
//! holds none and becomes machines that boot.
//!
//! Requests and answers are datagrams of JSON with descriptors (`vmm/src/zygote/wire.rs`). Any number of
//! threads may ask at a time; one thread reads the answers. A zygote that dies takes none of its clones
//! with it: whoever waits is told, and another one may be started.

mod answers;

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::Serialize;

use super::child::{Child, ChildError, Start, Tie};
use super::vmm::{BootSpec, CloneSpec, Line, NAME};
use super::{GRACE, VmmExit, rights};
use crate::places::{self, PlaceError};
use answers::{Begun, Reader, Waiting};

/// To load and verify a template: it reads all of it.
const LOAD: Duration = Duration::from_secs(120);

/// To answer a request, which takes a zygote well under a millisecond: many may be waiting, though, on a
/// busy host.
const ANSWER: Duration = Duration::from_secs(60);

/// Why there is no zygote, or no clone.
#[derive(Debug, thiserror::Error)]
pub enum ZygoteError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error("cannot talk to the zygote")]
    Socket(#[source] std::io::Error),
    #[error("{0}")]
    TemplateUnfit(String),
    #[error("the zygote ended before it was ready: {0}")]
    Exit(String),
    #[error("cannot describe the clone")]
    Json(#[source] serde_json::Error),
    #[error("clone {0} is being made already")]
    Twice(String),
    #[error("the zygote cannot make clone {id}: {message}")]
    Refused { id: String, message: String },
    #[error("the zygote has ended")]
    Gone,
    #[error("the zygote did not answer within {} seconds", .0.as_secs())]
    Late(Duration),
}

/// What a descriptor is to a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    Cgroup,
    Lifeline,
    Stdout,
    Stderr,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Request<'a> {
    Clone {
        id: &'a str,
        spec: &'a CloneSpec<'a>,
        fds: Vec<Role>,
    },
    Boot {
        id: &'a str,
        spec: &'a BootSpec<'a>,
        fds: Vec<Role>,
    },
}

/// What a zygote's child shall be: a zygote with a template makes clones, one without boots.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted<'a> {
    Clone(&'a CloneSpec<'a>),
    Boot(&'a BootSpec<'a>),
}

/// A clone's process. It is the zygote's child, not ours.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

/// How a clone ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloneEnd {
    /// `rundlet-vmm` exited with this code.
    Code(i32),
    Signal(i32),
    /// Its zygote had died before it, so nobody knows.
    Unknown,
}

/// Takes the end of each clone, by its id.
pub(crate) type Ends = Arc<dyn Fn(&str, CloneEnd) + Send + Sync>;

/// The running zygote. Dropped, it ends; its clones stay.
#[derive(Debug)]
pub(crate) struct Zygote {
    socket: Arc<OwnedFd>,
    waiting: Arc<Waiting>,
    child: Child,
}

impl Zygote {
    /// Starts one for the template in `directory` and waits until it has loaded it, or one for boots.
    /// `ends` hears of its children's ends, `gone` of its own, from other threads.
    pub(crate) fn start(
        directory: Option<&Path>,
        ends: Ends,
        gone: impl FnOnce() + Send + 'static,
    ) -> Result<Self, ZygoteError> {
        let program = places::program(NAME)?;
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| ZygoteError::Socket(error.into()))?;
        let mut arguments: Vec<OsString> = vec!["zygote".into()];
        if let Some(directory) = directory {
            arguments.extend(["--template".into(), directory.into()]);
        }
        let start = Start {
            name: "the zygote",
            program: &program,
            arguments,
            tie: Tie::Socket(theirs),
        };
        let socket = Arc::new(ours);
        let (told, begun) = mpsc::channel();
        let (at_line, at_end) = (told.clone(), told.clone());
        let child = Child::start(
            start,
            move |line| match serde_json::from_slice(line) {
                // Nobody listens any more once it was ready.
                Ok(Line::Exit(exit)) => drop(at_line.send(Begun::Exit(exit))),
                Ok(_) => {}
                Err(error) => log::warn!("the zygote said what is no event: {error}"),
            },
            {
                let socket = Arc::clone(&socket);
                move |_| {
                    drop(at_end.send(Begun::Ended));
                    // Also if somebody else still holds its end. The reader gets what was sent before.
                    hang_up(&socket);
                }
            },
        )?;
        let waiting = Arc::new(Waiting::default());
        let reader = Reader {
            socket: Arc::clone(&socket),
            waiting: Arc::clone(&waiting),
            ends,
        };
        thread::Builder::new()
            .name("zygote".into())
            .spawn(move || {
                reader.run(&told);
                gone();
            })
            .map_err(ZygoteError::Socket)?;
        let zygote = Self {
            socket,
            waiting,
            child,
        };
        match begun.recv_timeout(LOAD) {
            Ok(Begun::Ready) => Ok(zygote),
            Ok(Begun::Exit(exit)) => Err(exit_error(&exit)),
            Ok(Begun::Ended) => Err(zygote.unexplained_end()),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(ZygoteError::Late(LOAD))
            }
        }
    }

    /// Makes a VMM's process, which is running its way up when this returns.
    pub(crate) fn make(
        &self,
        id: &str,
        wanted: Wanted<'_>,
        fds: &[(Role, BorrowedFd<'_>)],
    ) -> Result<Handle, ZygoteError> {
        let (roles, descriptors): (Vec<_>, Vec<_>) = fds.iter().copied().unzip();
        let fds = roles;
        let request = match wanted {
            Wanted::Clone(spec) => Request::Clone { id, spec, fds },
            Wanted::Boot(spec) => Request::Boot { id, spec, fds },
        };
        let request = serde_json::to_vec(&request).map_err(ZygoteError::Json)?;
        let answer = self.waiting.enter(id)?;
        let sent = rights::send(&self.socket, &request, &descriptors);
        let answer = match sent {
            Ok(()) => match answer.recv_timeout(ANSWER) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) => Err(ZygoteError::Late(ANSWER)),
                Err(RecvTimeoutError::Disconnected) => Err(ZygoteError::Gone),
            },
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(ZygoteError::Gone),
            Err(error) => Err(ZygoteError::Socket(error)),
        };
        self.waiting.leave(id);
        answer
    }

    /// Whether it still takes requests.
    pub(crate) fn is_alive(&self) -> bool {
        self.waiting.is_open()
    }

    pub(crate) fn child(&self) -> &Child {
        &self.child
    }

    fn unexplained_end(&self) -> ZygoteError {
        match self.child.wait(GRACE) {
            Some(status) => self.child.ended_early(status).into(),
            None => ZygoteError::Gone,
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // Which ends it, though the reader still holds our end.
        hang_up(&self.socket);
        self.child.end(GRACE);
    }
}

fn hang_up(socket: &OwnedFd) {
    // Fails when the other side has closed already.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}

fn exit_error(exit: &VmmExit) -> ZygoteError {
    let message = exit.message.clone().unwrap_or_else(|| exit.reason.clone());
    if exit.is_template_unfit() {
        ZygoteError::TemplateUnfit(message)
    } else {
        ZygoteError::Exit(message)
    }
}
