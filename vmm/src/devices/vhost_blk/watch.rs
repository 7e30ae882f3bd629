//! Noticing that a backend is gone, or does not answer.
//!
//! The front end library waits for an answer without end. So whoever starts a conversation arms a timer,
//! and the main thread, which never takes part in one, breaks the connection when it fires: the waiting
//! side then sees an end of file. A connection that ends by itself is noticed the same way.

use std::io;
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::backend::PATIENCE;
use crate::events::{EventSet, Registrar, Subscriber};
use crate::lock::lock;
use crate::outcome::Outcome;

const CONNECTION: u32 = 0;
const DEADLINE: u32 = 1;

/// A timer that means "the backend should have answered by now".
#[derive(Clone, Debug)]
pub struct Deadline(Arc<OwnedFd>);

impl Deadline {
    /// A timer at rest.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(Arc::new(timerfd_create(
            TimerfdClockId::Monotonic,
            flags,
        )?)))
    }

    /// A conversation starts.
    pub fn arm(&self) -> io::Result<()> {
        self.set(PATIENCE)
    }

    /// It is over. An expiry that nobody has read yet is forgotten, too (timerfd_settime(2)).
    pub fn disarm(&self) {
        if let Err(error) = self.set(Duration::ZERO) {
            log::error!("vhost-user: cannot stop a timer: {error}");
        }
    }

    /// True, once, if it was armed and not disarmed in time.
    fn has_passed(&self) -> bool {
        rustix::io::read(&*self.0, &mut [0; 8]).is_ok()
    }

    fn set(&self, after: Duration) -> io::Result<()> {
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec::try_from(after).map_err(io::Error::other)?,
        };
        timerfd_settime(&*self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

/// The main thread's eye on one backend.
#[derive(Debug)]
pub struct Watch {
    id: String,
    stream: UnixStream,
    deadline: Deadline,
}

impl Watch {
    /// Watches `stream`, another handle on the connection to the backend of disk `id`.
    pub fn new(id: &str, stream: UnixStream) -> io::Result<Self> {
        Ok(Self {
            id: id.to_owned(),
            stream,
            deadline: Deadline::new()?,
        })
    }

    /// The timer for those who talk to the backend.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.deadline.clone()
    }

    /// Starts watching.
    pub fn attach(&self, events: &Registrar) -> io::Result<()> {
        // Nobody reads here: the answers are read by whoever asked. Only the end is of interest.
        events.add(&self.stream, CONNECTION, EventSet::READ_HANG_UP)?;
        events.add(&*self.deadline.0, DEADLINE, EventSet::IN)
    }

    /// Ends the connection, and with it whatever waits for an answer on it.
    pub fn sever(&self) {
        // It may be gone already, which is as good.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Keeps an eye on conversations that the main thread itself has, while it cannot: when they last longer than
/// [`PATIENCE`], the connections are broken. Over when it is dropped.
#[derive(Debug)]
pub struct Chaperone {
    /// The thread hears this end.
    _over: Option<Sender<()>>,
}

impl Chaperone {
    /// Starts to watch these backends.
    pub fn start(watches: Vec<Arc<Mutex<Watch>>>) -> io::Result<Self> {
        if watches.is_empty() {
            return Ok(Self { _over: None });
        }
        let (over, end) = channel::<()>();
        Builder::new().name("chaperone".to_owned()).spawn(move || {
            if end.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                log::error!(
                    "vhost-user: a backend did not answer within {} s",
                    PATIENCE.as_secs()
                );
                for watch in watches {
                    lock(&watch).sever();
                }
            }
        })?;
        Ok(Self { _over: Some(over) })
    }
}

impl Subscriber for Watch {
    fn ready(&mut self, token: u32, _: EventSet) -> ControlFlow<Outcome> {
        let why = match token {
            CONNECTION => format!("disk {}: its backend closed the connection", self.id),
            // The conversation may have come to its end since the event was collected.
            DEADLINE if self.deadline.has_passed() => {
                format!(
                    "disk {}: its backend did not answer within {} s",
                    self.id,
                    PATIENCE.as_secs()
                )
            }
            _ => return ControlFlow::Continue(()),
        };
        self.sever();
        ControlFlow::Break(Outcome::BackendLost(why))
    }
}
