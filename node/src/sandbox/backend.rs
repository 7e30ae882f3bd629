//! The block backend: `vhost-blk-ro serve`, for one sandbox or for all clones of a template.

pub(crate) mod figures;

use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::child::{Child, ChildError, Start, Tie};
use super::spec::{json, text};
use super::{Event, GRACE, Sink, StartError};
use crate::places;
use crate::scratch;

const NAME: &str = "vhost-blk-ro";

/// Time to bind its sockets.
const PATIENCE: Duration = Duration::from_secs(10);

/// The two disks of a sandbox and where they are served. Every connection to `scratch_socket` gets a
/// layer of its own.
#[derive(Debug)]
pub(crate) struct Disks<'a> {
    pub(crate) root_socket: &'a Path,
    pub(crate) image: &'a Path,
    pub(crate) scratch_socket: &'a Path,
    pub(crate) scratch: &'a scratch::Template,
    /// Whether guests come in the middle of their lives, as clones do.
    pub(crate) resumes: bool,
    /// Where the layer stays after its session.
    pub(crate) keep: Option<&'a Path>,
    /// Where it is asked for its figures.
    pub(crate) figures_socket: Option<&'a Path>,
}

/// How long a backend lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Not longer than we.
    Tied,
    /// Until it is told to end, in a jail perhaps.
    Free { jail: Option<Owner> },
}

/// Who a jailed process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Its configuration, as it reads it.
#[derive(Debug, Serialize)]
struct Config<'a> {
    listeners: [Listener<'a>; 2],
    queues: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    figures: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jail: Option<Owner>,
}

#[derive(Debug, Serialize)]
struct Listener<'a> {
    socket: &'a str,
    disk: Disk<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Disk<'a> {
    Image {
        path: &'a str,
    },
    Scratch {
        template: &'a str,
        directory: &'a str,
        flush: &'a str,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        resumes: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        keep: Option<&'a str>,
    },
}

#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Listening,
    Kept,
    NotKept {
        reason: String,
    },
    #[serde(other)]
    Other,
}

/// The running backend.
#[derive(Debug)]
pub(crate) struct Backend {
    child: Child,
}

impl Backend {
    /// Starts it and waits until it listens.
    pub(crate) fn start(disks: &Disks<'_>, life: Life, events: &Sink) -> Result<Self, StartError> {
        let program = places::program(NAME)?;
        let (jail, free) = match life {
            Life::Tied => (None, false),
            Life::Free { jail } => (jail, true),
        };
        let config = config(disks, jail)?;
        let start = Start {
            name: NAME,
            program: &program,
            arguments: ["serve", "--config", "-"].map(Into::into).to_vec(),
            tie: if free {
                Tie::Free { input: &config }
            } else {
                Tie::Lifeline { input: &config }
            },
        };
        let (told, listening) = mpsc::channel();
        let ended = told.clone();
        let (to_lines, to_end) = (Arc::clone(events), Arc::clone(events));
        let child = Child::start(
            start,
            move |line| match serde_json::from_slice(line) {
                // Nobody listens any more after the first.
                Ok(Line::Listening) => drop(told.send(Begun::Listening)),
                Ok(Line::Kept) => to_lines(Event::Kept),
                Ok(Line::NotKept { reason }) => to_lines(Event::NotKept(reason)),
                Ok(Line::Other) => {}
                Err(error) => log::warn!("{NAME} said what is no event: {error}"),
            },
            move |status| {
                if ended.send(Begun::Ended(status)).is_err() {
                    to_end(Event::BackendEnded(status));
                }
            },
        )?;
        let mut backend = Self { child };
        match listening.recv_timeout(PATIENCE) {
            Ok(Begun::Listening) => Ok(backend),
            Ok(Begun::Ended(status)) => Err(backend.child.ended_early(status).into()),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                // A free one would go on.
                backend.child.end(GRACE);
                let late = ChildError::Late {
                    name: NAME,
                    limit: PATIENCE,
                };
                Err(late.into())
            }
        }
    }

    pub(crate) fn child(&self) -> &Child {
        &self.child
    }

    pub(crate) fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}

/// What the start waits for.
enum Begun {
    Listening,
    Ended(ExitStatus),
}

fn config(disks: &Disks<'_>, jail: Option<Owner>) -> Result<Vec<u8>, StartError> {
    json(&Config {
        listeners: [
            Listener {
                socket: text(disks.root_socket)?,
                disk: Disk::Image {
                    path: text(disks.image)?,
                },
            },
            Listener {
                socket: text(disks.scratch_socket)?,
                disk: Disk::Scratch {
                    template: text(&disks.scratch.path)?,
                    directory: text(&disks.scratch.layers)?,
                    flush: "volatile",
                    resumes: disks.resumes,
                    keep: disks.keep.map(text).transpose()?,
                },
            },
        ],
        queues: 1,
        figures: disks.figures_socket.map(text).transpose()?,
        jail,
    })
}
