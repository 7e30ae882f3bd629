//! One connection: a front end, its memory, its queues, one disk. Everything in here is gone when
//! the connection is.
//!
//! Must hold: whatever ends a session (a front end that vanished, a broken ring, a hostile memory
//! table, even a panic) ends this one alone, with one line in the log.

pub mod config;
mod control;
pub mod memory;
mod poll;
mod ring;
mod worker;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use thiserror::Error;

use crate::disk::{Disk, Serial};
use crate::queue;
use crate::stats::Stats;
use control::Control;
use memory::Trust;
use ring::{SharedRing, Wake};
use worker::{Endpoint, Worker};

/// Session threads use little stack; there may be thousands.
pub(crate) const STACK_BYTES: usize = 256 << 10;

/// What all sessions of one socket have in common.
#[derive(Debug, Clone)]
pub struct Options {
    pub serial: Serial,
    pub queues: u16,
    pub trust: Trust,
    /// Whether a guest may come with rings that were in use before its connection.
    pub resumes: bool,
    /// Longest time to look for more work before sleeping.
    pub poll: Duration,
}

/// Why a session is over.
#[derive(Debug, Error)]
pub enum End {
    #[error("front end disconnected")]
    FrontEndGone,
    #[error("daemon is stopping")]
    Stopped,
    #[error("another thread of the session ended it")]
    Elsewhere,
    #[error("front end broke the protocol")]
    Protocol(#[source] vhost::vhost_user::Error),
    #[error("guest broke its queue")]
    Ring(#[source] queue::Error),
    #[error("the host failed")]
    Host(#[source] io::Error),
    #[error("a thread of the session panicked")]
    Panic,
}

impl End {
    /// Whether neither side did anything wrong.
    pub fn is_tidy(&self) -> bool {
        matches!(self, Self::FrontEndGone | Self::Stopped)
    }

    pub fn level(&self) -> log::Level {
        match self {
            Self::FrontEndGone | Self::Stopped | Self::Elsewhere => log::Level::Info,
            Self::Protocol(_) | Self::Ring(_) => log::Level::Warn,
            Self::Host(_) | Self::Panic => log::Level::Error,
        }
    }
}

/// How the front end left its rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rings {
    /// None was ever started.
    Unused,
    /// Each that ran was stopped: every request that was taken is answered.
    Stopped,
    /// At least one was still running.
    Running,
}

/// What a session was.
#[derive(Debug)]
pub struct Outcome {
    pub end: End,
    pub rings: Rings,
    pub stats: Stats,
}

/// Serves `connection` until it ends. `stop` becomes readable when the daemon stops.
pub fn serve(
    connection: UnixStream,
    disk: Arc<Disk>,
    options: &Options,
    stop: &OwnedFd,
) -> Outcome {
    match Session::prepare(connection, disk, options, stop) {
        Ok(session) => session.run(options),
        Err(error) => Outcome {
            end: End::Host(error),
            rings: Rings::Unused,
            stats: Stats::default(),
        },
    }
}

struct Session {
    disk: Arc<Disk>,
    rings: Vec<SharedRing>,
    endpoint: Endpoint,
    /// Readable when one of several workers wants the others to end.
    over: OwnedFd,
}

impl Session {
    fn prepare(
        connection: UnixStream,
        disk: Arc<Disk>,
        options: &Options,
        stop: &OwnedFd,
    ) -> io::Result<Self> {
        let over = eventfd(0, EventfdFlags::CLOEXEC)?;
        let rings: Vec<_> = (0..options.queues)
            .map(|_| SharedRing::new())
            .collect::<io::Result<_>>()?;
        for ring in &rings {
            ring.watch(stop, Wake::DaemonStop)?;
            ring.watch(&over, Wake::SessionEnd)?;
        }
        if let Some(first) = rings.first() {
            first.watch(&connection, Wake::Control)?;
        }
        let control = Control::new(Arc::clone(&disk), rings.clone(), options);
        let endpoint = Endpoint::from_stream(connection, Arc::new(Mutex::new(control)));
        Ok(Self {
            disk,
            rings,
            endpoint,
            over,
        })
    }

    /// Runs every worker to its end; the first real reason among theirs is the session's.
    fn run(mut self, options: &Options) -> Outcome {
        let mut stats = Stats::default();
        let mut end = End::Elsewhere;
        let Some((first, others)) = self.rings.split_first() else {
            return Outcome {
                end,
                rings: Rings::Unused,
                stats,
            };
        };
        let (disk, over) = (&self.disk, &self.over);
        thread::scope(|scope| {
            let work = |ring, control| {
                // Also when a panic unwinds through here.
                let _guard = EndAll(over);
                Worker::new(ring, disk, options).run(control)
            };
            let mut handles = Vec::new();
            let mut failed = None;
            for ring in others {
                let thread = thread::Builder::new()
                    .name("blk-queue".into())
                    .stack_size(STACK_BYTES);
                match thread.spawn_scoped(scope, move || work(ring, None)) {
                    Ok(handle) => handles.push(handle),
                    Err(error) => failed = Some(error),
                }
            }
            let mut settle = |(reason, done): (End, Stats)| {
                stats.add(&done);
                if matches!(end, End::Elsewhere) {
                    end = reason;
                }
            };
            match failed {
                Some(error) => {
                    drop(EndAll(over));
                    settle((End::Host(error), Stats::default()));
                }
                None => settle(work(first, Some(&mut self.endpoint))),
            }
            for handle in handles {
                settle(
                    handle
                        .join()
                        .unwrap_or_else(|_| (End::Panic, Stats::default())),
                );
            }
        });
        let rings = left(&self.rings);
        Outcome { end, rings, stats }
    }
}

fn left(rings: &[SharedRing]) -> Rings {
    let stopped = rings.iter().filter_map(|ring| ring.lock().is_stopped());
    stopped.fold(Rings::Unused, |left, stopped| {
        if stopped && left != Rings::Running {
            Rings::Stopped
        } else {
            Rings::Running
        }
    })
}

/// Ends all workers of a session when dropped.
struct EndAll<'a>(&'a OwnedFd);

impl Drop for EndAll<'_> {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(self.0, &1u64.to_ne_bytes()) {
            log::error!("cannot end the other threads of a session: {error}");
        }
    }
}
