//! One virtqueue between the control side, which sets it up, and its worker, which drains it.
//!
//! A ring runs while it has addresses, a kick and the front end's permission; the kick is in the
//! worker's epoll set for exactly that time. The lock around it is held for a whole batch, so when
//! the control side has it, no request is in flight.
//!
//! A ring may begin in the middle of its guest's life: after a reconnect, or in a clone of a guest
//! that was saved. Then it goes on where the guest's own used index says, whatever was available
//! before is done without waiting for a kick, and the notification state that an earlier session
//! left in the ring is written anew.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::epoll;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::descriptors;

/// The longest queue a driver may choose (vhost-user, SET_VRING_NUM).
pub(super) const QUEUE_SIZE_MAX: u16 = 1024;

/// What wakes a worker; the tokens of its epoll set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Wake {
    Kick = 0,
    Control = 1,
}

#[derive(Debug)]
pub(super) struct Ring {
    pub(super) queue: Queue,
    pub(super) memory: Option<Arc<GuestMemoryMmap>>,
    pub(super) call: Option<File>,
    kick: Option<OwnedFd>,
    addressed: bool,
    enabled: bool,
    /// Whether the kick is in the worker's epoll set.
    pub(super) running: bool,
    /// Whether it ever ran in this session.
    started: bool,
    /// Whether the addresses were checked against the memory since either changed.
    pub(super) checked: bool,
    pub(super) write_through: bool,
}

impl Ring {
    pub(super) fn new() -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            queue: Queue::new(QUEUE_SIZE_MAX)?,
            memory: None,
            call: None,
            kick: None,
            addressed: false,
            enabled: false,
            running: false,
            started: false,
            checked: false,
            write_through: false,
        })
    }

    /// Whether the front end has stopped it since; nothing for a ring that never ran.
    pub(super) fn is_stopped(&self) -> Option<bool> {
        self.started.then_some(self.kick.is_none())
    }

    /// Goes on where the guest's used index stands; it is not part of the protocol's ring state.
    ///
    /// What was taken from the ring before and not answered is lost for good, and a guest that waits
    /// for it hangs. Better to refuse it.
    fn find_place(&mut self) -> io::Result<()> {
        let memory = self
            .memory
            .as_deref()
            .ok_or_else(|| io::Error::other("the ring has addresses but no memory"))?;
        let answered = self.queue.used_idx(memory, Ordering::Acquire);
        let answered = answered.map_err(io::Error::other)?.0;
        let taken = self.queue.next_avail();
        if taken != 0 && taken != answered {
            return Err(io::Error::other(format!(
                "the ring resumes at {taken}, but its guest has answers up to {answered}: requests \
                 were in flight when it was stopped"
            )));
        }
        self.queue.set_next_used(answered);
        Ok(())
    }
}

/// A ring and the epoll set of the worker that drains it.
#[derive(Debug, Clone)]
pub(super) struct SharedRing {
    ring: Arc<Mutex<Ring>>,
    epoll: Arc<OwnedFd>,
    /// The control side waits for the lock; std's mutex is not fair to it by itself.
    wanted: Arc<AtomicBool>,
}

/// How long a busy worker leaves the lock to the control side.
const GIVE_WAY: Duration = Duration::from_micros(100);

impl SharedRing {
    pub(super) fn new() -> io::Result<Self> {
        let ring = Ring::new().map_err(io::Error::other)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self {
            ring: Arc::new(Mutex::new(ring)),
            epoll: Arc::new(epoll),
            wanted: Arc::new(AtomicBool::new(false)),
        })
    }

    /// For the control side.
    pub(super) fn lock(&self) -> MutexGuard<'_, Ring> {
        self.wanted.store(true, Ordering::Relaxed);
        // A panic elsewhere ends that session anyway; the ring itself is plain data.
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.store(false, Ordering::Relaxed);
        ring
    }

    /// For the worker, which would otherwise take the lock again before a waiter wakes up.
    pub(super) fn lock_for_batch(&self) -> MutexGuard<'_, Ring> {
        if self.wanted.load(Ordering::Relaxed) {
            thread::sleep(GIVE_WAY);
        }
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn epoll(&self) -> &Arc<OwnedFd> {
        &self.epoll
    }

    pub(super) fn watch(&self, fd: impl AsFd, wake: Wake) -> io::Result<()> {
        // The kick's counter is never read: an edge per kick saves that system call. It can be
        // written from the start, which makes the first edge: so a ring that starts is looked at
        // once, whether its guest kicked before, after, or in an earlier session.
        let edge = if wake == Wake::Kick {
            epoll::EventFlags::ET | epoll::EventFlags::OUT
        } else {
            epoll::EventFlags::empty()
        };
        let flags = epoll::EventFlags::IN | edge;
        Ok(epoll::add(
            &*self.epoll,
            fd,
            epoll::EventData::new_u64(wake as u64),
            flags,
        )?)
    }

    pub(super) fn set_memory(&self, memory: &Arc<GuestMemoryMmap>) {
        let mut ring = self.lock();
        ring.memory = Some(Arc::clone(memory));
        ring.checked = false;
    }

    pub(super) fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        let mut ring = self.lock();
        ring.enabled = enabled;
        self.settle(&mut ring)
    }

    pub(super) fn set_addresses(
        &self,
        descriptors: GuestAddress,
        available: GuestAddress,
        used: GuestAddress,
    ) -> io::Result<()> {
        let mut ring = self.lock();
        let queue = &mut ring.queue;
        queue
            .try_set_desc_table_address(descriptors)
            .and_then(|()| queue.try_set_avail_ring_address(available))
            .and_then(|()| queue.try_set_used_ring_address(used))
            .map_err(io::Error::other)?;
        ring.addressed = true;
        ring.checked = false;
        self.settle(&mut ring)
    }

    pub(super) fn set_kick(&self, kick: File) -> io::Result<()> {
        expect_eventfd(&kick)?;
        let mut ring = self.lock();
        self.unwatch(&mut ring)?;
        ring.kick = Some(kick.into());
        ring.checked = false;
        ring.queue.set_ready(true);
        self.settle(&mut ring)
    }

    pub(super) fn set_call(&self, call: Option<File>) -> io::Result<()> {
        if let Some(call) = &call {
            expect_eventfd(call)?;
            // A front end that fills the counter must not be able to block the worker.
            fcntl_setfl(call, fcntl_getfl(call)? | OFlags::NONBLOCK)?;
        }
        self.lock().call = call;
        Ok(())
    }

    /// Stops the queue and forgets its events; returns where the next start should resume.
    pub(super) fn stop(&self) -> io::Result<u16> {
        let mut ring = self.lock();
        self.unwatch(&mut ring)?;
        ring.queue.set_ready(false);
        ring.kick = None;
        ring.call = None;
        ring.checked = false;
        Ok(ring.queue.next_avail())
    }

    fn settle(&self, ring: &mut Ring) -> io::Result<()> {
        match &ring.kick {
            Some(_) if ring.enabled && ring.addressed && !ring.running => {
                ring.find_place()?;
                if let Some(kick) = &ring.kick {
                    self.watch(kick, Wake::Kick)?;
                }
                (ring.running, ring.started) = (true, true);
                Ok(())
            }
            Some(_) if !ring.enabled => self.unwatch(ring),
            _ => Ok(()),
        }
    }

    /// Must happen before the kick is closed: the front end holds the same open file, so closing
    /// our end would leave it in the epoll set for good.
    fn unwatch(&self, ring: &mut Ring) -> io::Result<()> {
        if let (true, Some(kick)) = (ring.running, &ring.kick) {
            epoll::delete(&*self.epoll, kick)?;
        }
        ring.running = false;
        Ok(())
    }
}

/// Kicks and calls are eventfds. Anything else could block a write or never wake us.
fn expect_eventfd(file: &File) -> io::Result<()> {
    let name = descriptors::name(file)?;
    if name.to_bytes() == b"anon_inode:[eventfd]" {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "kick or call is {name:?}, not an eventfd"
        )))
    }
}
