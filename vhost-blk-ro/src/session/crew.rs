//! The threads of all sessions. A queue has a thread while there is something to do for it; then it is
//! parked: its epoll set is watched, and whichever thread is free takes it up again.
//!
//! Must hold: unless the host is out of threads, one is always waiting, so that no session, however
//! slow its disk or silent its front end, keeps another one from being served. A parked queue wakes
//! nobody.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::epoll;
use rustix::io::Errno;

use super::End;
use super::worker::{Turn, Worker};
use crate::stats::Totals;

/// Far more than a thread touches. The C library keeps up to 40 MiB of stacks of threads that ended,
/// and with them the pages that were touched: a few large ones are less of that than many small.
const STACK_BYTES: usize = 1 << 20;

/// Threads that may wait for something to do; what is more ends.
const SPARE: usize = 4;

/// Threads per processor that may stay with a queue after its last request. More would not get to
/// run in time for the next.
const STAY: usize = 2;

type Parked = HashMap<u64, Worker>;

#[derive(Debug)]
pub struct Crew {
    /// Holds the epoll set of each worker, armed while that is parked.
    epoll: OwnedFd,
    parked: Mutex<Parked>,
    waiting: AtomicUsize,
    /// Places for threads that stay with a queue in case there is more.
    places: AtomicUsize,
    stopping: AtomicBool,
    totals: Totals,
}

/// One of those places.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a Crew);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.places.fetch_add(1, Ordering::Relaxed);
    }
}

impl Crew {
    /// For so many processors.
    pub fn start(processors: usize) -> io::Result<Arc<Self>> {
        let crew = Arc::new(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            parked: Mutex::default(),
            waiting: AtomicUsize::new(0),
            places: AtomicUsize::new(processors * STAY),
            stopping: AtomicBool::new(false),
            totals: Totals::default(),
        });
        crew.hire()?;
        Ok(crew)
    }

    /// One more thread.
    fn hire(self: &Arc<Self>) -> io::Result<()> {
        let crew = Arc::clone(self);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let thread = thread::Builder::new().name("blk-worker".into());
        let spawned = thread.stack_size(STACK_BYTES).spawn(move || crew.serve());
        if spawned.is_err() {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        spawned.map(drop)
    }

    /// The life of a thread.
    fn serve(self: &Arc<Self>) {
        loop {
            let mut room = [MaybeUninit::uninit()];
            let token = match epoll::wait(&self.epoll, &mut room, None) {
                Ok((events, _)) => events.first().map(|event| event.data.u64()),
                Err(Errno::INTR) => None,
                Err(error) => {
                    log::error!("a thread for the sessions ends: {error}");
                    self.waiting.fetch_sub(1, Ordering::SeqCst);
                    return;
                }
            };
            let Some(token) = token else { continue };
            if self.waiting.fetch_sub(1, Ordering::SeqCst) == 1
                && let Err(error) = self.hire()
            {
                log::error!("no more threads; sessions wait for each other: {error}");
            }
            self.take_turn(token);
            let stay = |waiting| (waiting < SPARE).then_some(waiting + 1);
            let stays = self
                .waiting
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, stay);
            if stays.is_err() {
                return;
            }
        }
    }

    fn take_turn(&self, token: u64) {
        // Gone when its session was ended meanwhile.
        let Some(mut worker) = self.lock().remove(&token) else {
            return;
        };
        match catch_unwind(AssertUnwindSafe(|| worker.run(self))) {
            Ok(Turn::Park) => self.park(worker, Arm::Again),
            Ok(Turn::End(end)) => self.dismiss(worker, end),
            Err(_) => self.dismiss(worker, End::Panic),
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// What all sessions did.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    pub(super) fn place(&self) -> Option<Place<'_>> {
        let take = |left: usize| left.checked_sub(1);
        let taken = self
            .places
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.is_ok().then_some(Place(self))
    }

    /// Takes in the worker of a new session.
    pub(super) fn enlist(&self, worker: Worker) {
        self.park(worker, Arm::First);
    }

    fn park(&self, worker: Worker, arm: Arm) {
        let (token, watched) = (worker.token(), Arc::clone(worker.epoll()));
        let mut parked = self.lock();
        // Under the lock: whoever ends sessions looks here for those who did not notice.
        if let Some(end) = worker.must_end(self) {
            drop(parked);
            return self.dismiss(worker, end);
        }
        parked.insert(token, worker);
        drop(parked);
        let data = epoll::EventData::new_u64(token);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        let armed = match arm {
            Arm::First => epoll::add(&self.epoll, &watched, data, flags),
            Arm::Again => epoll::modify(&self.epoll, &watched, data, flags),
        };
        if let Err(error) = armed {
            let worker = self.lock().remove(&token);
            if let Some(worker) = worker {
                self.dismiss(worker, End::Host(error.into()));
            }
        }
    }

    /// The end of a worker, which is the end of its session's others.
    fn dismiss(&self, worker: Worker, end: End) {
        let session = worker.leave(end);
        for token in session.tokens() {
            let other = self.lock().remove(&token);
            if let Some(other) = other {
                other.leave(End::Elsewhere);
            }
        }
    }

    /// Ends every session; those that are being served right now notice by themselves.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let parked = std::mem::take(&mut *self.lock());
        for worker in parked.into_values() {
            worker.leave(End::Stopped);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Parked> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a worker's epoll set is watched already.
#[derive(Debug, Clone, Copy)]
enum Arm {
    First,
    Again,
}
