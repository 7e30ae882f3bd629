//! What is done for one queue whenever something happens to it. The worker of the first queue serves
//! the control socket, too.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use vhost::vhost_user::{BackendReqHandler, Error as VhostUserError};

use super::control::Control;
use super::crew::Crew;
use super::poll::Poll;
use super::ring::{Ring, SharedRing, Wake};
use super::{End, Session};
use crate::execute::Context;
use crate::queue::{self, Drain, Progress, Work};

pub(super) type Endpoint = BackendReqHandler<Mutex<Control>>;

/// How long a thread stays with a queue after the last request: taking it up again costs some system
/// calls, keeping it a thread.
const LINGER: Duration = Duration::from_millis(10);

pub(super) struct Worker {
    session: Arc<Session>,
    index: u16,
    ring: SharedRing,
    control: Option<Endpoint>,
    drain: Drain,
    poll: Poll,
    asleep: Instant,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("token", &self.token())
            .finish_non_exhaustive()
    }
}

/// How a thread and a worker part.
#[derive(Debug)]
pub(super) enum Turn {
    /// Nothing to do until something happens.
    Park,
    End(End),
}

/// What to do after looking at the ring.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Nobody needs this thread to be quick.
    Sleep,
    /// The next request may come soon.
    Linger,
    Continue,
}

impl Worker {
    pub(super) fn new(
        session: Arc<Session>,
        index: u16,
        ring: SharedRing,
        control: Option<Endpoint>,
    ) -> Self {
        Self {
            poll: Poll::new(session.options().poll),
            session,
            index,
            ring,
            control,
            drain: Drain::default(),
            asleep: Instant::now(),
        }
    }

    /// Its number among all workers.
    pub(super) fn token(&self) -> u64 {
        self.session.token(self.index)
    }

    /// Readable when there is something to do.
    pub(super) fn epoll(&self) -> &Arc<OwnedFd> {
        self.ring.epoll()
    }

    pub(super) fn must_end(&self, crew: &Crew) -> Option<End> {
        if crew.is_stopping() {
            return Some(End::Stopped);
        }
        self.session.is_over().then_some(End::Elsewhere)
    }

    /// Lets go of everything and tells the session why and what was done.
    pub(super) fn leave(self, end: End) -> Arc<Session> {
        let (session, stats) = (Arc::clone(&self.session), self.drain.stats);
        // The front end sees the end of the last of them before anybody hears of it.
        drop((self.control, self.ring));
        session.settle(end, &stats);
        session
    }

    /// Serves until there is nothing to do.
    pub(super) fn run(&mut self, crew: &Crew) -> Turn {
        match self.serve(crew) {
            Ok(()) => {
                // A parked queue needs no room for requests.
                let stats = std::mem::take(&mut self.drain).stats;
                self.drain.stats = stats;
                Turn::Park
            }
            Err(end) => Turn::End(end),
        }
    }

    fn serve(&mut self, crew: &Crew) -> Result<(), End> {
        let (mut next, mut place) = (Next::Sleep, None);
        loop {
            if let Some(end) = self.must_end(crew) {
                return Err(end);
            }
            let happened = self.wait(next).map_err(End::Host)?;
            if happened.is_nothing() && next != Next::Continue {
                return Ok(());
            }
            if happened.message
                && let Some(control) = &mut self.control
            {
                handle_message(control)?;
            }
            if happened.kick && next != Next::Continue {
                self.poll.slept(self.asleep.elapsed());
            }
            if happened.kick || next == Next::Continue {
                let worked = self.work();
                self.drain.stats.tell(crew.totals());
                next = worked.map_err(End::Ring)?;
                if next == Next::Linger {
                    place = place.or_else(|| crew.place());
                    if place.is_none() {
                        next = Next::Sleep;
                    }
                }
                self.asleep = Instant::now();
            }
        }
    }

    fn wait(&self, next: Next) -> io::Result<Happened> {
        let time = match next {
            Next::Sleep | Next::Continue => Duration::ZERO,
            Next::Linger => LINGER,
        };
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: time.subsec_nanos().into(),
        };
        let mut room = [MaybeUninit::uninit(); 2];
        let events = match epoll::wait(&**self.epoll(), &mut room, Some(&timeout)) {
            Ok((events, _)) => &*events,
            Err(rustix::io::Errno::INTR) => &[],
            Err(error) => return Err(error.into()),
        };
        let is = |wake: Wake| events.iter().any(|event| event.data.u64() == wake as u64);
        Ok(Happened {
            kick: is(Wake::Kick),
            message: is(Wake::Control),
        })
    }

    /// One batch, then a look whether more is coming.
    fn work(&mut self) -> Result<Next, queue::Error> {
        let before = self.drain.stats.counts.requests;
        let mut ring = self.ring.lock_for_batch();
        let Ring {
            queue,
            memory,
            call,
            running,
            checked,
            write_through,
            ..
        } = &mut *ring;
        let (true, Some(memory)) = (*running, memory.as_deref()) else {
            return Ok(Next::Sleep);
        };
        if !*checked {
            if !queue::is_mapped(queue, memory) {
                return Err(queue::Error::Ring(virtio_queue::Error::InvalidChain));
            }
            *checked = true;
        }
        let context = Context {
            serial: self.session.options().serial,
            write_through: *write_through,
        };
        queue::kicks_off(queue, memory)?;
        let work = Work {
            disk: self.session.disk(),
            context,
        };
        if self.drain.batch(queue, memory, &work, call.as_ref())? == Progress::More {
            return Ok(Next::Continue);
        }
        if self.poll.look(|| queue::has_work(queue, memory))? {
            return Ok(Next::Continue);
        }
        if queue::kicks_on(queue, memory)? {
            return Ok(Next::Continue);
        }
        // A ring that starts, or a kick for nothing, is no sign of more.
        let idle = self.drain.stats.counts.requests == before;
        Ok(if idle { Next::Sleep } else { Next::Linger })
    }
}

/// What woke a worker.
#[derive(Debug, Clone, Copy)]
struct Happened {
    kick: bool,
    message: bool,
}

impl Happened {
    fn is_nothing(self) -> bool {
        !self.kick && !self.message
    }
}

fn handle_message(control: &mut Endpoint) -> Result<(), End> {
    match control.handle_request() {
        Ok(()) | Err(VhostUserError::SocketRetry(_)) => Ok(()),
        Err(VhostUserError::Disconnected | VhostUserError::SocketBroken(_)) => {
            Err(End::FrontEndGone)
        }
        Err(error) => Err(End::Protocol(error)),
    }
}
