//! The block backend of one sandbox: `vhost-blk-ro serve`.

use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::child::{Child, ChildError, Start};
use super::{Event, SandboxSpec, Sink, Sockets, StartError};
use crate::places;

const NAME: &str = "vhost-blk-ro";

/// Time to bind its sockets.
const PATIENCE: Duration = Duration::from_secs(10);

/// Its configuration, as it reads it.
#[derive(Debug, Serialize)]
struct Config<'a> {
    listeners: [Listener<'a>; 2],
    queues: u32,
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
    },
}

#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Listening,
    #[serde(other)]
    Other,
}

/// The running backend.
#[derive(Debug)]
pub(super) struct Backend {
    child: Child,
}

impl Backend {
    /// Starts it and waits until it listens.
    pub(super) fn start(
        spec: &SandboxSpec,
        sockets: &Sockets,
        events: &Sink,
    ) -> Result<Self, StartError> {
        let program = places::program(NAME)?;
        let config = config(spec, sockets)?;
        let start = Start {
            name: NAME,
            program: &program,
            arguments: ["serve", "--config", "-"].map(Into::into).to_vec(),
            input: &config,
        };
        let (told, listening) = mpsc::channel();
        let ended = told.clone();
        let events = Arc::clone(events);
        let child = Child::start(
            &start,
            move |line| match serde_json::from_slice(line) {
                // Nobody listens any more after the first.
                Ok(Line::Listening) => drop(told.send(Begun::Listening)),
                Ok(Line::Other) => {}
                Err(error) => log::warn!("{NAME} said what is no event: {error}"),
            },
            move |status| {
                if ended.send(Begun::Ended(status)).is_err() {
                    events(Event::BackendEnded(status));
                }
            },
        )?;
        match listening.recv_timeout(PATIENCE) {
            Ok(Begun::Listening) => Ok(Self { child }),
            Ok(Begun::Ended(status)) => Err(child.ended_early(status).into()),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let late = ChildError::Late {
                    name: NAME,
                    limit: PATIENCE,
                };
                Err(late.into())
            }
        }
    }

    pub(super) fn child(&self) -> &Child {
        &self.child
    }

    pub(super) fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}

/// What the start waits for.
enum Begun {
    Listening,
    Ended(ExitStatus),
}

fn config(spec: &SandboxSpec, sockets: &Sockets) -> Result<Vec<u8>, StartError> {
    let config = Config {
        listeners: [
            Listener {
                socket: super::spec::text(&sockets.root)?,
                disk: Disk::Image {
                    path: super::spec::text(&spec.image.path)?,
                },
            },
            Listener {
                socket: super::spec::text(&sockets.scratch)?,
                disk: Disk::Scratch {
                    template: super::spec::text(&spec.scratch.path)?,
                    directory: super::spec::text(&spec.scratch.layers)?,
                    flush: "volatile",
                },
            },
        ],
        queues: 1,
    };
    super::spec::json(&config)
}
