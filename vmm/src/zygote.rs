//! The zygote: a process that becomes sandboxes. With a template, which is opened and verified once, they
//! are its clones; without one, they boot.
//!
//! One thread, nothing of its own to run: it waits for a request on its socket, forks straight into
//! the cgroup that came along, and tells the node when a child has ended. The child *returns* from
//! [`Zygote::serve`] with what it was ordered to be, after everything that is the zygote's has been
//! dropped, and goes on as the `clone` or `boot` command would; there is no second way to run a sandbox.
//!
//! What must hold:
//! * No threads, ever: a fork copies one only. [`fork::fork`] refuses otherwise.
//! * Nothing of a sandbox is touched here, least of all the template's RAM: what the zygote writes or
//!   faults in, every child pays for.
//! * Each child is reported exactly once, after it was announced, however slowly the node reads: while
//!   answers wait to be sent no request is taken, so that what is kept is one record per child and one
//!   refusal.
//! * A child with a `jail` is born in namespaces of its own; what else it takes to shut it in, it does itself
//!   ([`crate::jail`]).
//! * The socket belongs to one node. When it closes the zygote goes; children stay, each tied to a
//!   lifeline of its own.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rundlet_jail::filter::FilterError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, wait};
use thiserror::Error;

use self::channel::{Channel, Datagram, Received, Sent};
use self::child::Child;
use self::fork::{ChildSignal, Fork, Namespaces};
use self::order::{Order, Wanted};
use self::wire::{Answer, Request};
use crate::jail::Filters;
use crate::jail::seccomp::Duty;

pub mod channel;
pub mod child;
mod fork;
pub mod order;
pub mod wire;

/// How long to leave a kernel alone that cannot take a datagram and will not say when it can.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};
/// Characters of a refusal's message that are sent; it may quote the request.
const MAX_MESSAGE: usize = 1024;

/// Why a zygote cannot go on.
#[derive(Debug, Error)]
pub enum ZygoteError {
    /// Its children would have no filters.
    #[error(transparent)]
    Filters(#[from] FilterError),
    /// It cannot hear of its children.
    #[error("cannot watch for children that end")]
    Children(#[source] io::Error),
    /// It cannot wait.
    #[error("cannot wait for requests")]
    Wait(#[source] io::Error),
    /// It cannot hear.
    #[error("cannot receive a request")]
    Receive(#[source] io::Error),
    /// It cannot speak.
    #[error("cannot send an answer")]
    Send(#[source] io::Error),
}

/// What a zygote makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Makes {
    /// Clones of the template that it holds.
    Clones,
    /// Sandboxes that boot.
    Boots,
}

impl Makes {
    /// Why not.
    fn refusal(self, wanted: &Wanted) -> Option<&'static str> {
        match (self, wanted) {
            (Self::Clones, Wanted::Clone(_)) | (Self::Boots, Wanted::Boot(_)) => None,
            (Self::Clones, Wanted::Boot(_)) => {
                Some("boot: this zygote holds a template; ask one without --template")
            }
            (Self::Boots, Wanted::Clone(_)) => {
                Some("clone: this zygote holds no template; ask one with --template")
            }
        }
    }
}

/// How serving ended.
#[derive(Debug)]
pub enum Served {
    /// In the zygote: the node has closed the socket.
    Closed,
    /// In a child: this is what it shall be.
    Child(Box<Child>),
}

/// What keeps the zygote from, or ends, its turn.
#[derive(Debug)]
enum Turn {
    Next,
    End(Served),
}

/// An answer that waits to be sent.
#[derive(Debug)]
struct Waiting {
    answer: Answer,
    pidfd: Option<OwnedFd>,
}

/// The live zygote.
#[derive(Debug)]
pub struct Zygote {
    makes: Makes,
    /// Of all its children.
    filters: Filters,
    channel: Channel,
    signal: ChildSignal,
    /// Ids of the children that have not ended.
    children: BTreeMap<i32, String>,
    waiting: VecDeque<Waiting>,
    /// True if the kernel was short of something when we last sent.
    pause: bool,
}

impl Zygote {
    /// A zygote at the other end of `channel`.
    pub fn new(channel: Channel, makes: Makes) -> Result<Self, ZygoteError> {
        Ok(Self {
            makes,
            filters: Filters::compile(Duty::Run)?,
            channel,
            signal: ChildSignal::take().map_err(ZygoteError::Children)?,
            children: BTreeMap::new(),
            waiting: VecDeque::new(),
            pause: false,
        })
    }

    /// Says that it is ready, and serves until the node goes; also returns in each child.
    pub fn serve(mut self) -> Result<Served, ZygoteError> {
        self.say(Answer::Ready {});
        loop {
            if let Turn::End(served) = self.turn()? {
                return Ok(served);
            }
        }
    }

    /// Waits for something to happen, and deals with it.
    fn turn(&mut self) -> Result<Turn, ZygoteError> {
        if self.flush()? == Sent::Closed {
            return Ok(Turn::End(Served::Closed));
        }
        let (heard, ended) = self.wait()?;
        if ended.contains(PollFlags::IN) {
            self.reap()?;
        }
        let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR | PollFlags::NVAL;
        if heard.intersects(gone) {
            return Ok(Turn::End(Served::Closed));
        }
        if heard.contains(PollFlags::IN) && self.waiting.is_empty() {
            return self.receive();
        }
        Ok(Turn::Next)
    }

    /// What there is to do: on the socket, and about children.
    fn wait(&self) -> Result<(PollFlags, PollFlags), ZygoteError> {
        let (wanted, timeout) = match (self.waiting.is_empty(), self.pause) {
            (true, _) => (PollFlags::IN, None),
            (false, false) => (PollFlags::OUT, None),
            (false, true) => (PollFlags::empty(), Some(&PAUSE)),
        };
        let mut fds = [
            PollFd::new(&self.channel, wanted | PollFlags::RDHUP),
            PollFd::new(self.signal.descriptor(), PollFlags::IN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(ZygoteError::Wait(error.into())),
        }
        let [socket, signal] = fds;
        Ok((socket.revents(), signal.revents()))
    }

    fn receive(&mut self) -> Result<Turn, ZygoteError> {
        match self.channel.receive().map_err(ZygoteError::Receive)? {
            Received::Datagram(datagram) => Ok(self.obey(datagram, Instant::now())),
            Received::TooMuch(message) => {
                self.refuse(None, &message);
                Ok(Turn::Next)
            }
            Received::Nothing => Ok(Turn::Next),
            Received::Closed => Ok(Turn::End(Served::Closed)),
        }
    }

    /// Carries out one request. In the child, `self` is a copy that is about to be dropped.
    fn obey(&mut self, datagram: Datagram, since: Instant) -> Turn {
        let Datagram { bytes, descriptors } = datagram;
        let order = match Order::new(&bytes, descriptors) {
            Ok(order) => order,
            Err(error) => {
                let id = Request::id_of_unreadable(&bytes).filter(|id| order::usable(id));
                self.refuse(id, &error.to_string());
                return Turn::Next;
            }
        };
        if let Some(why) = self.makes.refusal(&order.wanted) {
            self.refuse(Some(order.id), why);
            return Turn::Next;
        }
        let cgroup = order.gifts.cgroup.as_ref().map(AsFd::as_fd);
        let namespaces = match order.wanted.jail() {
            Some(_) => Namespaces::New,
            None => Namespaces::Shared,
        };
        match fork::fork(cgroup, namespaces) {
            Ok(Fork::Child) => {
                let child = Child::new(order, since, self.filters.clone());
                Turn::End(Served::Child(Box::new(child)))
            }
            Ok(Fork::Parent { pid, pidfd }) => {
                self.children.insert(pid, order.id.clone());
                let answer = Answer::Cloned { id: order.id, pid };
                let pidfd = Some(pidfd);
                self.waiting.push_back(Waiting { answer, pidfd });
                Turn::Next
            }
            Err(error) => {
                let place = match order.gifts.cgroup {
                    Some(_) => format!(" in the cgroup of {}.fds", order.wanted.verb()),
                    None => String::new(),
                };
                let walls = match namespaces {
                    Namespaces::New => " with namespaces of its own",
                    Namespaces::Shared => "",
                };
                let message = format!("cannot start a process{walls}{place}: {error}");
                self.refuse(Some(order.id), &message);
                Turn::Next
            }
        }
    }

    /// Collects every child that has ended.
    fn reap(&mut self) -> Result<(), ZygoteError> {
        self.signal.drain().map_err(ZygoteError::Children)?;
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.ended(pid.as_raw_pid(), status),
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(ZygoteError::Children(error.into())),
            }
        }
    }

    fn ended(&mut self, pid: i32, status: WaitStatus) {
        // A program keeps its children over an exec; those are not ours to report.
        let Some(id) = self.children.remove(&pid) else {
            return;
        };
        if status.terminating_signal() == Some(libc::SIGSYS) {
            log::error!(
                "sandbox {id}, process {pid}: ended by its system call filter; the kernel's log \
                 has the number of the call (audit record 1326)"
            );
        }
        self.say(Answer::Ended {
            id,
            pid,
            code: status.exit_status(),
            signal: status.terminating_signal(),
        });
    }

    fn refuse(&mut self, id: Option<String>, message: &str) {
        let message: String = message.chars().take(MAX_MESSAGE).collect();
        log::warn!("refused a request: {message}");
        self.say(Answer::Refused { id, message });
    }

    fn say(&mut self, answer: Answer) {
        let pidfd = None;
        self.waiting.push_back(Waiting { answer, pidfd });
    }

    /// Sends what waits, as far as it goes without waiting.
    fn flush(&mut self) -> Result<Sent, ZygoteError> {
        while let Some(Waiting { answer, pidfd }) = self.waiting.front() {
            let pidfd = pidfd.as_ref().map(AsFd::as_fd);
            let sent = self.channel.send(&answer.to_bytes(), pidfd);
            let sent = sent.map_err(ZygoteError::Send)?;
            self.pause = sent == Sent::Later;
            if sent != Sent::Yes {
                return Ok(sent);
            }
            self.waiting.pop_front();
        }
        Ok(Sent::Yes)
    }
}
