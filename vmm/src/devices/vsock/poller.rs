//! Everything the device waits for on the host, behind one file descriptor for the main loop.
//!
//! Streams are watched edge-triggered: a connection remembers that it is readable, and
//! while the guest grants no credit nobody is woken for it. A stream leaves the set by being closed.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::connection::Readiness;

/// Events handled in one go; the descriptor stays readable while there are more.
const BATCH: usize = 64;

const AGAIN: u64 = 0;
const TIMER: u64 = 1;
const LISTENER: u64 = 2;
/// Tokens from here on are streams.
const FIRST_STREAM: u64 = 3;

/// Names a stream here; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

impl Token {
    /// The listening socket, where something must stand for it.
    pub const LISTENER: Self = Self(LISTENER);
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// [`Poller::again`] was called: there is work left.
    Again,
    /// The timer ran out.
    Timer,
    /// Somebody connected.
    Incoming,
    /// A stream has news. It may be gone already.
    Stream(Token, Readiness),
}

/// The set of descriptors.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    again: OwnedFd,
    timer: OwnedFd,
    next: u64,
}

impl Poller {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        let poller = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            again: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            timer: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?,
            next: FIRST_STREAM,
        };
        poller.add(&poller.again, AGAIN, epoll::EventFlags::IN)?;
        poller.add(&poller.timer, TIMER, epoll::EventFlags::IN)?;
        Ok(poller)
    }

    fn add(&self, fd: &impl AsFd, data: u64, flags: epoll::EventFlags) -> io::Result<()> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(data), flags)?;
        Ok(())
    }

    /// Watches for connections to a listening socket. Edge-triggered, so that running out of
    /// descriptors does not spin: accept until it would block.
    pub fn add_listener(&self, listener: &impl AsFd) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        self.add(listener, LISTENER, flags)
    }

    /// Stops watching for connections.
    pub fn remove_listener(&self, listener: &impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, listener)?)
    }

    /// Watches a stream; its present state comes as the first event.
    pub fn add_stream(&mut self, stream: &impl AsFd) -> io::Result<Token> {
        let token = self.next;
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        self.add(stream, token, flags)?;
        self.next += 1;
        Ok(Token(token))
    }

    /// What happened since the last call, without waiting; at most [`BATCH`] events.
    pub fn events(&self) -> io::Result<Vec<Event>> {
        let mut buffer = [const { MaybeUninit::uninit() }; BATCH];
        let now = Timespec::default();
        let found = match epoll::wait(&self.epoll, &mut buffer, Some(&now)) {
            Ok((found, _)) => found,
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut events = Vec::with_capacity(found.len());
        for event in found {
            let flags = event.flags;
            events.push(match event.data.u64() {
                AGAIN => {
                    drain(&self.again)?;
                    Event::Again
                }
                TIMER => {
                    drain(&self.timer)?;
                    Event::Timer
                }
                LISTENER => Event::Incoming,
                stream => Event::Stream(Token(stream), readiness(flags)),
            });
        }
        Ok(events)
    }

    /// Makes the descriptor readable: the caller stopped for fairness, not for lack of work.
    pub fn again(&self) -> io::Result<()> {
        match rustix::io::write(&self.again, &1u64.to_ne_bytes()) {
            // Full means that it is readable.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sets the timer to run out once after `delay`, or never.
    pub fn set_timer(&self, delay: Option<Duration>) -> io::Result<()> {
        // Zero would disarm it.
        let it_value = match delay {
            Some(delay) => Timespec::try_from(delay.max(Duration::from_nanos(1)))
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
            None => Timespec::default(),
        };
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

fn readiness(flags: epoll::EventFlags) -> Readiness {
    let any = |wanted: epoll::EventFlags| flags.intersects(wanted);
    Readiness {
        readable: any(epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ERR),
        writable: any(epoll::EventFlags::OUT),
        hangup: any(epoll::EventFlags::HUP),
    }
}

/// Takes the count out of an eventfd or timerfd.
fn drain(fd: &OwnedFd) -> io::Result<()> {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
