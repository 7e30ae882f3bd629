//! The thread that empties slots and brings them back: kill, wait for `populated 0`, reset. One thread for all of them:
//! it waits for every slot at once.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::cgroup::{Inner, Place, Stage};
use super::group::Events;
use super::limits;
use crate::host::model::Limits;

/// How long a slot may take to become empty before it is set aside.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Looks between the kernel's own hints, which are for changes only: a kill that could not be written is tried again.
const TICK: Duration = Duration::from_millis(200);

/// Looks at slots that were set aside.
const SLOW_TICK: Duration = Duration::from_secs(5);

/// Memory that stays charged to an empty slot and is not worth asking the kernel for, bytes.
const LITTLE: u64 = 256 * 1024;

/// The way in.
#[derive(Debug)]
pub(super) struct Queue {
    places: Option<Sender<Place>>,
    wake: OwnedFd,
}

/// The way out.
#[derive(Debug)]
pub(super) struct Orders {
    places: Receiver<Place>,
    wake: OwnedFd,
}

pub(super) fn queue() -> io::Result<(Queue, Orders)> {
    let (sender, receiver) = mpsc::channel();
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let orders = Orders {
        places: receiver,
        wake: wake.try_clone()?,
    };
    let queue = Queue {
        places: Some(sender),
        wake,
    };
    Ok((queue, orders))
}

impl Queue {
    pub(super) fn push(&self, place: Place) {
        if let Some(places) = &self.places {
            // The thread ends when the queue does, so there is somebody to take it.
            let _ = places.send(place);
        }
        self.wake();
    }

    fn wake(&self) {
        // Full means that the thread has been woken already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.places = None;
        self.wake();
    }
}

/// Starts the thread. It ends with the pool, after the slots that were given back until then.
pub(super) fn start(pool: &Arc<Inner>, orders: Orders, patience: Duration) -> io::Result<()> {
    let mut releaser = Releaser {
        pool: Arc::downgrade(pool),
        orders,
        patience,
        leaving: Vec::new(),
    };
    thread::Builder::new()
        .name("pool-release".into())
        .spawn(move || releaser.run())?;
    Ok(())
}

struct Releaser {
    /// Weak: the pool must be able to end.
    pool: Weak<Inner>,
    orders: Orders,
    patience: Duration,
    leaving: Vec<Leaving>,
}

/// A slot on its way back.
struct Leaving {
    place: Place,
    /// Not there when descriptors are short; then the slot is looked at by time alone.
    events: Option<Events>,
    deadline: Instant,
    /// When it is looked at, and what is in it killed, without a hint.
    next_look: Instant,
    /// The kernel has given a hint.
    hinted: bool,
    set_aside: bool,
}

impl Releaser {
    fn run(&mut self) {
        loop {
            let open = self.take_orders();
            self.look();
            if !open && self.leaving.iter().all(|it| it.set_aside) {
                return;
            }
            self.wait();
        }
    }

    /// Whether more can come.
    fn take_orders(&mut self) -> bool {
        loop {
            match self.orders.places.try_recv() {
                Ok(place) => self.leaving.push(Leaving::begin(place, self.patience)),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Brings back what is empty, sets aside what is late.
    fn look(&mut self) {
        let now = Instant::now();
        for mut leaving in std::mem::take(&mut self.leaving) {
            if leaving.is_due(now) && leaving.is_empty(now) {
                self.bring_back(leaving);
                continue;
            }
            if !leaving.set_aside && now >= leaving.deadline {
                leaving.set_aside = true;
                if let Some(pool) = self.pool.upgrade() {
                    pool.set_aside(&leaving.place.name, &leaving.who_is_left(self.patience));
                }
            }
            self.leaving.push(leaving);
        }
    }

    fn bring_back(&self, leaving: Leaving) {
        let Leaving {
            mut place,
            set_aside,
            ..
        } = leaving;
        // Without a pool nobody wants it any more, and the next pool resets what it finds.
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        if !recycle(&mut place, &pool.resting) {
            place.surplus = true;
        }
        if set_aside {
            log::warn!("{} has become empty after all and is back", place.name);
        }
        let from = if set_aside {
            Stage::SetAside
        } else {
            Stage::Releasing
        };
        pool.give_back(place, from);
    }

    /// Until there is something to look at.
    fn wait(&mut self) {
        let first = self.leaving.iter().map(|it| it.next_look).min();
        let left = first.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        // A changed file of kernfs is POLLPRI.
        let events = self.leaving.iter().enumerate();
        let events = events.filter_map(|(index, it)| Some((index, it.events.as_ref()?.file())));
        let (indices, files): (Vec<usize>, Vec<_>) = events.unzip();
        let wake = PollFd::new(&self.orders.wake, PollFlags::IN);
        let files = files.iter().map(|file| PollFd::new(*file, PollFlags::PRI));
        let mut all: Vec<PollFd<'_>> = std::iter::once(wake).chain(files).collect();
        if let Err(error) = poll(&mut all, left.as_ref())
            && error != rustix::io::Errno::INTR
        {
            log::warn!("cannot wait for slots: {error}");
            thread::sleep(TICK);
        }
        let hinted: Vec<usize> = indices
            .into_iter()
            .zip(all.iter().skip(1))
            .filter_map(|(index, polled)| (!polled.revents().is_empty()).then_some(index))
            .collect();
        for index in hinted {
            if let Some(leaving) = self.leaving.get_mut(index) {
                leaving.hinted = true;
            }
        }
        let mut count = [0_u8; 8];
        // Nothing in it is fine.
        let _ = rustix::io::read(&self.orders.wake, &mut count);
    }
}

impl Leaving {
    fn begin(place: Place, patience: Duration) -> Self {
        Self {
            events: Events::open(&place.group).ok(),
            place,
            deadline: Instant::now() + patience,
            next_look: Instant::now(),
            hinted: false,
            set_aside: false,
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.hinted || now >= self.next_look
    }

    /// Kills what is still there, but not at every hint: each kill has the kernel walk the cgroup under a lock of all.
    fn is_empty(&mut self, now: Instant) -> bool {
        let kill = now >= self.next_look;
        self.hinted = false;
        if kill {
            self.next_look = now + if self.set_aside { SLOW_TICK } else { TICK };
        }
        let populated = match &self.events {
            Some(events) => events.is_populated(),
            None => self.place.group.is_populated(),
        };
        match populated {
            Ok(false) => true,
            // Somebody has removed it: there is nothing in it, and `recycle` notices.
            Err(error) if is_gone(&error) => true,
            Ok(true) => {
                if kill && let Err(error) = self.place.group.kill() {
                    log::warn!("cannot kill what is in {}: {error}", self.place.name);
                }
                false
            }
            Err(error) => {
                log::warn!("cannot look into {}: {error}", self.place.name);
                false
            }
        }
    }

    fn who_is_left(&self, patience: Duration) -> String {
        let procs = self.place.group.read("cgroup.procs").unwrap_or_default();
        let pids: Vec<&str> = procs.lines().collect();
        let first = pids.first().copied().unwrap_or("?");
        let status = fs::read_to_string(format!("/proc/{first}/status")).unwrap_or_default();
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or("unknown").trim().to_owned()
        };
        format!(
            "{} processes were still in it {} s after they were killed, one is {first} ({}, state {})",
            pids.len(),
            patience.as_secs(),
            of("Name:"),
            of("State:")
        )
    }
}

/// What the kernel says of files of a cgroup that was removed.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// Makes an empty slot as good as new: limits at rest, memory of its former owner given up, usage noted. Removes a
/// surplus one. Whether it can be claimed.
pub(super) fn recycle(place: &mut Place, resting: &Limits) -> bool {
    let group = &place.group;
    if place.surplus {
        if let Err(error) = fs::remove_dir(group.path()) {
            log::warn!("cannot remove {}: {error}", group.path().display());
        }
        return false;
    }
    if !group.path().is_dir()
        && let Err(error) = fs::create_dir(group.path())
    {
        log::error!("cannot make {} again: {error}", group.path().display());
        return false;
    }
    if place.limits.as_ref() != Some(resting) {
        let written = limits::write(group, place.limits.as_ref(), resting);
        place.limits = written.is_ok().then(|| resting.clone());
        if let Err(error) = written {
            log::warn!("{}", crate::error::chain(&error));
        }
    }
    if let Ok(bytes) = group.memory_current()
        && bytes > LITTLE
    {
        // What cannot be given up is in use elsewhere: EAGAIN. Before Linux 5.19 there is no such file.
        let _ = group.write("memory.reclaim", &bytes.to_string());
    }
    if let Ok(base) = group.cpu_total_us() {
        place.cpu_base_us = base;
        // Without it the sandbox seems to have used more, once it is found by another daemon.
        let _ = group.set_cpu_base_us(base);
    }
    true
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
