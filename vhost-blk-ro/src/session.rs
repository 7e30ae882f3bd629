//! One connection: a front end, its memory, its queues, one disk. Everything in here is gone when
//! the connection is.
//!
//! Must hold: whatever ends a session (a front end that vanished, a broken ring, a hostile memory
//! table, even a panic) ends this one alone, with one line in the log.

pub mod config;
mod control;
mod crew;
pub mod memory;
mod poll;
mod ring;
mod worker;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;

use crate::disk::{Disk, Serial};
use crate::queue;
use crate::stats::Stats;
use control::Control;
pub use crew::Crew;
use memory::Trust;
use ring::{SharedRing, Wake};
use worker::{Endpoint, Worker};

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

/// Told once a session is over.
pub type Done = Box<dyn FnOnce(Outcome) + Send>;

/// Has `crew` serve `connection` until it ends. `number` is its own among all sessions.
pub fn begin(
    crew: &Crew,
    connection: UnixStream,
    number: u64,
    disk: Arc<Disk>,
    options: &Arc<Options>,
    done: Done,
) -> io::Result<()> {
    let rings: Vec<_> = (0..options.queues)
        .map(|_| SharedRing::new())
        .collect::<io::Result<_>>()?;
    if let Some(first) = rings.first() {
        first.watch(&connection, Wake::Control)?;
    }
    let control = Control::new(Arc::clone(&disk), rings.clone(), options);
    let endpoint = Endpoint::from_stream(connection, Arc::new(Mutex::new(control)));
    let session = Arc::new(Session {
        number,
        disk,
        options: Arc::clone(options),
        over: AtomicBool::new(false),
        ending: Mutex::new(Ending {
            left: rings.len(),
            end: End::Elsewhere,
            stats: Stats::default(),
            done: Some(done),
        }),
        rings,
    });
    let mut endpoint = Some(endpoint);
    for (ring, index) in session.rings.iter().zip(0..) {
        let control = endpoint.take();
        crew.enlist(Worker::new(
            Arc::clone(&session),
            index,
            ring.clone(),
            control,
        ));
    }
    Ok(())
}

/// What the workers of a session share.
struct Session {
    number: u64,
    disk: Arc<Disk>,
    options: Arc<Options>,
    rings: Vec<SharedRing>,
    /// One worker has ended, so the others have to.
    over: AtomicBool,
    ending: Mutex<Ending>,
}

struct Ending {
    /// Workers that have not ended.
    left: usize,
    end: End,
    stats: Stats,
    done: Option<Done>,
}

impl Session {
    fn disk(&self) -> &Disk {
        &self.disk
    }

    fn options(&self) -> &Options {
        &self.options
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// A number for each of its queues that no other session's has.
    fn token(&self, index: u16) -> u64 {
        self.number.wrapping_mul(1 << 16) | u64::from(index)
    }

    fn tokens(&self) -> impl Iterator<Item = u64> {
        (0..self.options.queues).map(|index| self.token(index))
    }

    /// One worker is at its end. The first real reason is the session's; the last one tells it.
    fn settle(&self, end: End, stats: &Stats) {
        self.over.store(true, Ordering::SeqCst);
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        ending.stats.add(stats);
        if matches!(ending.end, End::Elsewhere) {
            ending.end = end;
        }
        ending.left = ending.left.saturating_sub(1);
        if ending.left > 0 {
            return;
        }
        let outcome = Outcome {
            end: std::mem::replace(&mut ending.end, End::Elsewhere),
            rings: left(&self.rings),
            stats: std::mem::take(&mut ending.stats),
        };
        let done = ending.done.take();
        drop(ending);
        if let Some(done) = done {
            done(outcome);
        }
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
