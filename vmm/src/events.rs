//! The epoll loop of the main thread, and how others register with it.
//!
//! In-process devices, the control socket and the lifeline are *subscribers*. Each has one
//! [`Registrar`], with which it adds its file descriptors under tokens of its own choice, from any
//! thread; the loop calls [`Subscriber::ready`] on the main thread with the token. Events are level
//! triggered. An event that was already collected may still arrive after its descriptor was removed
//! (a device reset by a vCPU thread): subscribers ignore tokens that mean nothing to them any more.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};

use crate::lock::lock;
use crate::outcome::Outcome;

pub use vmm_sys_util::epoll::EventSet;

/// Events collected by one `epoll_wait`; more simply come with the next.
const BATCH: usize = 16;

/// Something that the main thread calls when one of its descriptors is ready.
pub trait Subscriber: Send {
    /// Handles readiness of the descriptor registered under `token`; `Break` ends the sandbox.
    fn ready(&mut self, token: u32, events: EventSet) -> ControlFlow<Outcome>;
}

/// A subscriber as the loop holds it.
pub type Shared = Arc<Mutex<dyn Subscriber>>;

/// One subscriber's access to the loop's set of descriptors.
#[derive(Clone)]
pub struct Registrar {
    epoll: Arc<Epoll>,
    subscriber: u32,
}

impl fmt::Debug for Registrar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registrar")
            .field("subscriber", &self.subscriber)
            .finish_non_exhaustive()
    }
}

impl Registrar {
    /// Watches `fd` for `events` under `token`.
    pub fn add(&self, fd: &dyn AsRawFd, token: u32, events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Add, fd.as_raw_fd(), token, events)
    }

    /// Changes what is watched on `fd`.
    pub fn modify(&self, fd: &dyn AsRawFd, token: u32, events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Modify, fd.as_raw_fd(), token, events)
    }

    /// Stops watching `fd`. Needed before closing it if a duplicate stays open elsewhere.
    pub fn remove(&self, fd: &dyn AsRawFd) -> io::Result<()> {
        self.control(
            ControlOperation::Delete,
            fd.as_raw_fd(),
            0,
            EventSet::empty(),
        )
    }

    fn control(
        &self,
        operation: ControlOperation,
        fd: RawFd,
        token: u32,
        events: EventSet,
    ) -> io::Result<()> {
        let data = (u64::from(self.subscriber) << 32) | u64::from(token);
        self.epoll.ctl(operation, fd, EpollEvent::new(events, data))
    }
}

/// The main thread's loop.
pub struct EventLoop {
    epoll: Arc<Epoll>,
    subscribers: Vec<Shared>,
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLoop")
            .field("subscribers", &self.subscribers.len())
            .finish_non_exhaustive()
    }
}

impl EventLoop {
    /// An empty loop.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Arc::new(Epoll::new()?),
            subscribers: Vec::new(),
        })
    }

    /// Takes in a subscriber; its descriptors are added through the registrar.
    pub fn subscribe(&mut self, subscriber: Shared) -> Registrar {
        let index = u32::try_from(self.subscribers.len()).expect("a sandbox has few subscribers");
        self.subscribers.push(subscriber);
        Registrar {
            epoll: Arc::clone(&self.epoll),
            subscriber: index,
        }
    }

    /// Runs until a subscriber ends the sandbox.
    pub fn run(&mut self) -> io::Result<Outcome> {
        loop {
            if let ControlFlow::Break(outcome) = self.turn(-1)? {
                return Ok(outcome);
            }
        }
    }

    /// Waits once (`timeout_ms` as in epoll_wait(2)) and handles what came.
    pub fn turn(&mut self, timeout_ms: i32) -> io::Result<ControlFlow<Outcome>> {
        let mut batch = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(timeout_ms, &mut batch) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in batch.iter().take(count) {
            let [subscriber, token] = halves(event.data());
            let Some(subscriber) = self.subscribers.get(subscriber as usize) else {
                continue;
            };
            let flow = lock(subscriber).ready(token, event.event_set());
            if let ControlFlow::Break(outcome) = flow {
                return Ok(ControlFlow::Break(outcome));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Splits the epoll cookie into subscriber and token.
fn halves(data: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = data.to_be_bytes();
    [
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    struct Recorder {
        seen: Vec<u32>,
        fd: EventFd,
        end_at: u32,
    }

    impl Subscriber for Recorder {
        fn ready(&mut self, token: u32, _: EventSet) -> ControlFlow<Outcome> {
            self.fd.read().unwrap();
            self.seen.push(token);
            if token == self.end_at {
                return ControlFlow::Break(Outcome::Stopped);
            }
            ControlFlow::Continue(())
        }
    }

    #[test]
    fn events_reach_their_subscriber_with_their_token() {
        let mut events = EventLoop::new().unwrap();
        let fds: Vec<EventFd> = (0..2)
            .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
            .collect();
        let make = |i: usize| {
            let fd = fds[i].try_clone().unwrap();
            Arc::new(Mutex::new(Recorder {
                seen: Vec::new(),
                fd,
                end_at: 9,
            }))
        };
        let (a, b) = (make(0), make(1));
        let first = events.subscribe(a.clone());
        let second = events.subscribe(b.clone());
        first.add(&fds[0], 7, EventSet::IN).unwrap();
        second.add(&fds[1], u32::MAX, EventSet::IN).unwrap();

        fds[1].write(1).unwrap();
        assert!(events.turn(1000).unwrap().is_continue());
        assert_eq!(
            (a.lock().unwrap().seen.len(), b.lock().unwrap().seen.clone()),
            (0, vec![u32::MAX])
        );

        second.modify(&fds[1], 9, EventSet::IN).unwrap();
        fds[1].write(1).unwrap();
        assert_eq!(events.run().unwrap(), Outcome::Stopped);

        first.remove(&fds[0]).unwrap();
        fds[0].write(1).unwrap();
        assert!(events.turn(0).unwrap().is_continue());
        assert!(a.lock().unwrap().seen.is_empty());
    }
}
