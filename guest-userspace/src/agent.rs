//! The agent: one thread, one epoll loop, one slot per session.
//!
//! What must hold: nothing here blocks and nothing wakes up by itself. An idle agent sleeps in
//! epoll_wait(2) without a timeout. The one exception, [`renewal`], blocks while there is nothing to serve.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rundlet_protocol::frame::{MAX_DATA, write_message};
use rundlet_protocol::{Failure, FailureKind, HOST_CID, Ready, Reply};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::cgroup::Cgroups;
use crate::reap::{self, Reaper};
use crate::renewal::{self, Identity};
use crate::session::{Session, Tools, Turn, Wish};
use crate::sys;
use crate::watch::{Role, Token, Watch};

/// Sessions at once. One more is told so.
const SESSIONS: usize = 256;

/// Connections at once, those included that are being told so.
const CONNECTIONS: u16 = 320;

/// Events taken at a time.
const EVENTS: usize = 64;

/// How long the host may take to close the connection on which it asked for the end.
const FAREWELL: Duration = Duration::from_millis(500);

/// Why the agent cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("cannot set up the agent's event loop")]
    SetUp(#[source] io::Error),
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
}

#[derive(Debug)]
pub(crate) struct Agent {
    epoll: OwnedFd,
    listener: OwnedFd,
    reaper: Reaper,
    cgroups: Cgroups,
    identity: Box<dyn Identity>,
    slots: Vec<Slot>,
    /// Slots that want a turn.
    runnable: Vec<u16>,
    scratch: Vec<u8>,
    /// The connection to the host's ready port, and what to say on it.
    announcement: Option<(OwnedFd, Ready)>,
    /// Set once the machine is to go off.
    deadline: Option<Instant>,
    /// More processes may have ended than one batch takes.
    unreaped: bool,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    session: Option<Session>,
    runnable: bool,
}

impl Agent {
    /// Takes a listening socket that does not block.
    pub(crate) fn new(
        listener: OwnedFd,
        cgroups: Cgroups,
        identity: Box<dyn Identity>,
    ) -> Result<Self, AgentError> {
        Self::set_up(listener, cgroups, identity).map_err(AgentError::SetUp)
    }

    fn set_up(
        listener: OwnedFd,
        cgroups: Cgroups,
        identity: Box<dyn Identity>,
    ) -> io::Result<Self> {
        let agent = Agent {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            listener,
            reaper: Reaper::new()?,
            cgroups,
            identity,
            slots: Vec::new(),
            runnable: Vec::new(),
            scratch: Vec::new(),
            announcement: None,
            deadline: None,
            unreaped: false,
        };
        let watch = agent.watch(0);
        watch.add_with(agent.listener.as_fd(), Role::Listener, EventFlags::IN)?;
        watch.add_with(agent.reaper.fd().as_fd(), Role::Children, EventFlags::IN)?;
        Ok(agent)
    }

    /// Says `ready` on `socket`, which is being connected, as soon as that is done.
    pub(crate) fn announce(&mut self, socket: OwnedFd, ready: Ready) -> io::Result<()> {
        let flags = EventFlags::OUT;
        self.watch(0)
            .add_with(socket.as_fd(), Role::Announcement, flags)?;
        self.announcement = Some((socket, ready));
        Ok(())
    }

    /// Serves until the host asks for the end.
    pub(crate) fn run(mut self) -> Result<(), AgentError> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        while !self.is_over() {
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(AgentError::Wait(error.into())),
            }
            for event in events.drain(..) {
                if let Some(token) = Token::unpack(event.data.u64()) {
                    self.dispatch(token, event.flags);
                }
            }
            if self.unreaped {
                self.reap();
            }
            self.take_turns();
        }
        for slot in &mut self.slots {
            if let Some(session) = slot.session.take() {
                session.end(&mut self.cgroups);
            }
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Timespec> {
        if !self.runnable.is_empty() || self.unreaped {
            return Some(Timespec::default());
        }
        let left = self.deadline?.saturating_duration_since(Instant::now());
        left.try_into().ok()
    }

    /// The host that asked for the end has had time to hear of it: it has closed, or enough has passed.
    fn is_over(&self) -> bool {
        let Some(deadline) = self.deadline else {
            return false;
        };
        let mut sessions = self.slots.iter().filter_map(|slot| slot.session.as_ref());
        deadline <= Instant::now() || !sessions.any(Session::wants_shutdown)
    }

    fn dispatch(&mut self, token: Token, flags: EventFlags) {
        match token.role {
            Role::Listener => self.accept(),
            Role::Children => self.unreaped = true,
            Role::Announcement => {
                // A host that does not listen loses nothing.
                if let Some((socket, ready)) = self.announcement.take() {
                    let _ = write_message(&mut std::fs::File::from(socket), &ready);
                }
            }
            role => {
                let slot = self.slots.get_mut(usize::from(token.slot));
                let slot = slot.filter(|slot| slot.generation == token.generation);
                if let Some(session) = slot.and_then(|slot| slot.session.as_mut()) {
                    session.notice(role, flags);
                    self.wake(token.slot);
                }
            }
        }
    }

    fn accept(&mut self) {
        // Every error concerns one connection, or passes: the next event tries again.
        let Ok((socket, cid)) = sys::accept(self.listener.as_fd()) else {
            return;
        };
        // A program in the sandbox may reach this port too, and must not get an agent with it.
        if cid.is_some_and(|cid| cid != HOST_CID) {
            return;
        }
        let live = self.slots.iter().filter(|slot| slot.session.is_some());
        let live = live.count();
        let Some(index) = self.free_slot() else {
            return;
        };
        let mut session = Session::new(socket);
        let watch = self.watch(index);
        let watched = session.connection().fd().map(AsFd::as_fd);
        let watched = watched.map(|fd| watch.add(fd, Role::Connection));
        if !matches!(watched, Some(Ok(()))) {
            return;
        }
        if live >= SESSIONS {
            session.fail(Failure {
                kind: FailureKind::Resources,
                message: format!("the sandbox already serves {SESSIONS} sessions, its limit"),
            });
        }
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            slot.session = Some(session);
        }
        self.wake(index);
    }

    fn free_slot(&mut self) -> Option<u16> {
        let free = self.slots.iter().position(|slot| slot.session.is_none());
        let index = u16::try_from(free.unwrap_or(self.slots.len())).ok()?;
        if index >= CONNECTIONS {
            return None;
        }
        if free.is_none() {
            self.slots.push(Slot::default());
        }
        Some(index)
    }

    fn reap(&mut self) {
        self.reaper.acknowledge();
        for _ in 0..reap::BATCH {
            let Some((pid, status)) = reap::next_ended() else {
                self.unreaped = false;
                break;
            };
            let ran = |slot: &Slot| slot.session.as_ref().is_some_and(|s| s.runs(pid));
            let Some(index) = self.slots.iter().position(ran) else {
                continue;
            };
            if let Some(session) = self.slots.get_mut(index).and_then(|s| s.session.as_mut()) {
                session.process_ended(status);
            }
            if let Ok(index) = u16::try_from(index) {
                self.wake(index);
            }
        }
        self.cgroups.sweep();
    }

    fn wake(&mut self, index: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(index))
            && !slot.runnable
        {
            slot.runnable = true;
            self.runnable.push(index);
        }
    }

    /// One turn for every slot that wants one.
    fn take_turns(&mut self) {
        self.scratch.resize(MAX_DATA, 0);
        for index in std::mem::take(&mut self.runnable) {
            let Some(slot) = self.slots.get_mut(usize::from(index)) else {
                continue;
            };
            slot.runnable = false;
            let Some(session) = &mut slot.session else {
                continue;
            };
            let mut tools = Tools {
                watch: Watch {
                    epoll: &self.epoll,
                    generation: slot.generation,
                    slot: index,
                },
                cgroups: &mut self.cgroups,
                scratch: &mut self.scratch,
            };
            let turn = session.turn(&mut tools);
            if session.wants_shutdown() && self.deadline.is_none() {
                self.deadline = Some(Instant::now() + FAREWELL);
            }
            let wish = session.take_wish();
            match turn {
                Turn::Wait | Turn::Again if wish.is_some() => self.fulfil(index, wish),
                Turn::Wait => {}
                Turn::Again => self.wake(index),
                Turn::Ended => {
                    slot.generation = slot.generation.wrapping_add(1);
                    if let Some(session) = slot.session.take() {
                        session.end(&mut self.cgroups);
                    }
                }
            }
        }
    }

    /// Does what the session at `index` asked for, and has it say so.
    fn fulfil(&mut self, index: u16, wish: Option<Wish>) {
        let identity = &mut *self.identity;
        let reply = match wish {
            Some(Wish::Prepare) => {
                let mut sessions = self.slots.iter().filter_map(|slot| slot.session.as_ref());
                if sessions.any(Session::is_bound) {
                    Err(Failure {
                        kind: FailureKind::State,
                        message:
                            "a command runs that would end with its connection: wait for it, or \
                                  start it with `keep`"
                                .to_owned(),
                    })
                } else {
                    renewal::prepare(identity, &mut self.cgroups).map(|()| Reply::Prepared {})
                }
            }
            Some(Wish::Renew(renewal)) => {
                let took = renewal::renew(&renewal, identity, &mut self.cgroups);
                took.map(|took| Reply::Renewed {
                    took_us: took.as_micros().try_into().unwrap_or(u64::MAX),
                })
            }
            None => return,
        };
        if let Some(slot) = self.slots.get_mut(usize::from(index))
            && let Some(session) = &mut slot.session
        {
            session.grant(reply);
            self.wake(index);
        }
    }

    fn watch(&self, slot: u16) -> Watch<'_> {
        let generation = self.slots.get(usize::from(slot));
        Watch {
            epoll: &self.epoll,
            generation: generation.map_or(0, |slot| slot.generation),
            slot,
        }
    }
}
