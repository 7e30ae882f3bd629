//! The thread of one queue. Worker 0 also serves the control socket, so a session with one queue is
//! one thread.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use vhost::vhost_user::{BackendReqHandler, Error as VhostUserError};

use super::control::Control;
use super::poll::Poll;
use super::ring::{Ring, SharedRing, Wake};
use super::{End, Options};
use crate::disk::Disk;
use crate::execute::Context;
use crate::queue::{self, Drain, Progress, Work};
use crate::stats::Stats;

pub(super) type Endpoint = BackendReqHandler<Mutex<Control>>;

pub(super) struct Worker<'a> {
    ring: &'a SharedRing,
    disk: &'a Arc<Disk>,
    options: &'a Options,
    drain: Drain,
    poll: Poll,
}

/// What to do after looking at the ring.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Sleep,
    Continue,
}

impl<'a> Worker<'a> {
    pub(super) fn new(ring: &'a SharedRing, disk: &'a Arc<Disk>, options: &'a Options) -> Self {
        Self {
            ring,
            disk,
            options,
            drain: Drain::default(),
            poll: Poll::new(options.poll),
        }
    }

    /// Serves until the session ends; says why, and what was done.
    pub(super) fn run(mut self, control: Option<&mut Endpoint>) -> (End, Stats) {
        let end = self.serve(control).unwrap_or_else(|end| end);
        (end, self.drain.stats)
    }

    fn serve(&mut self, mut control: Option<&mut Endpoint>) -> Result<End, End> {
        let mut events = Vec::with_capacity(4);
        let mut next = Next::Sleep;
        loop {
            let asleep = Instant::now();
            self.wait(next, &mut events).map_err(End::Host)?;
            let mut kicked = false;
            for event in &events {
                let token = event.data.u64();
                if token == Wake::Kick as u64 {
                    kicked = true;
                } else if token == Wake::Control as u64 {
                    if let Some(control) = &mut control {
                        handle_message(control)?;
                    }
                } else if token == Wake::DaemonStop as u64 {
                    return Ok(End::Stopped);
                } else {
                    return Ok(End::Elsewhere);
                }
            }
            if kicked && next == Next::Sleep {
                self.poll.slept(asleep.elapsed());
            }
            if kicked || next == Next::Continue {
                next = self.work().map_err(End::Ring)?;
            }
        }
    }

    fn wait(&self, next: Next, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let timeout = if next == Next::Continue {
            Some(&now)
        } else {
            None
        };
        events.clear();
        match epoll::wait(self.ring.epoll(), spare_capacity(events), timeout) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// One batch, then a look whether more is coming.
    fn work(&mut self) -> Result<Next, queue::Error> {
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
            serial: self.options.serial,
            write_through: *write_through,
        };
        queue::kicks_off(queue, memory)?;
        let work = Work {
            disk: self.disk,
            context,
        };
        if self.drain.batch(queue, memory, &work, call.as_ref())? == Progress::More {
            return Ok(Next::Continue);
        }
        if self.poll.look(|| queue::has_work(queue, memory))? {
            return Ok(Next::Continue);
        }
        Ok(if queue::kicks_on(queue, memory)? {
            Next::Continue
        } else {
            Next::Sleep
        })
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
