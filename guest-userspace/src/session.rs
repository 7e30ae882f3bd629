//! One session: the messages of one connection, and the command it runs.
//!
//! Greeting → Asked → Serving → Parting. In Parting the last message is queued; the session then only
//! waits for the host to close. A host that closes earlier has its command killed, unless that is to be
//! kept: then Serving → Kept, until the command ends.
//!
//! What concerns the whole machine is not the session's to do: it has a [`Wish`], and the agent answers.

use std::os::fd::{AsFd, OwnedFd};

use rundlet_protocol::{
    ExecSpec, ExitStatus, Failure, FailureKind, Frame, FrameError, Renewal, Reply, Request, Stream,
    VERSION, frame,
};
use rustix::event::epoll::EventFlags;

use crate::cgroup::Cgroups;
use crate::command::Command;
use crate::connection::Connection;
use crate::sys::LAST_SIGNAL;
use crate::watch::{Role, Watch};

/// How often a session's pumps turn before the others get theirs.
const ROUNDS: usize = 8;

/// What a session works with; all of it the agent's.
#[derive(Debug)]
pub(crate) struct Tools<'a> {
    pub(crate) watch: Watch<'a>,
    pub(crate) cgroups: &'a mut Cgroups,
    /// Room for one data frame, shared by all sessions.
    pub(crate) scratch: &'a mut [u8],
}

/// What a session wants after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing until the next event.
    Wait,
    /// Another turn.
    Again,
    /// To be dropped.
    Ended,
}

/// What a session asks of the agent.
#[derive(Debug)]
pub(crate) enum Wish {
    Prepare,
    Renew(Renewal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    Asked,
    Serving,
    Kept,
    Parting,
}

#[derive(Debug)]
pub(crate) struct Session {
    connection: Connection,
    phase: Phase,
    command: Option<Command>,
    /// The command outlives the connection.
    keep: bool,
    wish: Option<Wish>,
    /// The host has asked for the machine to go off.
    shutdown: bool,
}

impl Session {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Session {
            connection: Connection::new(socket),
            phase: Phase::Greeting,
            command: None,
            keep: false,
            wish: None,
            shutdown: false,
        }
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(crate) fn wants_shutdown(&self) -> bool {
        self.shutdown
    }

    /// Whether its command would end with its connection, and so would not be in a clone.
    pub(crate) fn is_bound(&self) -> bool {
        self.phase == Phase::Serving && !self.keep
    }

    pub(crate) fn take_wish(&mut self) -> Option<Wish> {
        self.wish.take()
    }

    /// Answers its wish.
    pub(crate) fn grant(&mut self, reply: Result<Reply, Failure>) {
        let reply = reply.unwrap_or_else(Reply::Failed);
        // A message this short always fits a frame.
        let _ = self.part(&reply);
    }

    /// Whether the session waits for the end of process `pid`.
    pub(crate) fn runs(&self, pid: i32) -> bool {
        self.command.as_ref().is_some_and(|command| command.is(pid))
    }

    pub(crate) fn notice(&mut self, role: Role, flags: EventFlags) {
        if role == Role::Connection {
            self.connection.notice(flags);
        } else if let Some(command) = &mut self.command {
            command.notice(role, flags);
        }
    }

    pub(crate) fn process_ended(&mut self, status: ExitStatus) {
        if let Some(command) = &mut self.command {
            command.process_ended(status);
        }
    }

    /// Moves everything that can be moved, for a bounded while.
    pub(crate) fn turn(&mut self, tools: &mut Tools<'_>) -> Turn {
        for _ in 0..ROUNDS {
            if self.phase == Phase::Kept {
                match self.run_kept(tools) {
                    Turn::Again => continue,
                    other => return other,
                }
            }
            let mut moved = self.connection.fill();
            moved |= match self.serve(tools) {
                Ok(moved) => moved,
                Err(failure) => {
                    self.fail(failure);
                    true
                }
            };
            moved |= self.connection.flush();
            if self.connection.is_closed() {
                if !self.detach() {
                    return Turn::Ended;
                }
                continue;
            }
            if !moved {
                return Turn::Wait;
            }
        }
        Turn::Again
    }

    /// The session is over: a command that still runs is killed with all it started.
    pub(crate) fn end(mut self, cgroups: &mut Cgroups) {
        if let Some(command) = self.command.take() {
            command.end(cgroups);
        }
    }

    /// Queues `failure` as the last message.
    pub(crate) fn fail(&mut self, failure: Failure) {
        if self.phase == Phase::Parting {
            return;
        }
        if let Some(command) = &mut self.command {
            command.kill();
        }
        // A message this short always fits a frame.
        let _ = self.part(&Reply::Failed(failure));
    }

    fn part(&mut self, last: &Reply) -> Result<(), Failure> {
        self.phase = Phase::Parting;
        self.connection
            .reply(last)
            .map_err(|error| protocol(&error))?;
        self.connection.finish();
        Ok(())
    }

    fn serve(&mut self, tools: &mut Tools<'_>) -> Result<bool, Failure> {
        let bytes = self.connection.take_inbound();
        let mut used = 0;
        let result = self.read_frames(&bytes, &mut used, tools);
        self.connection.put_inbound(bytes, used);
        result?;
        if self.phase != Phase::Serving {
            return Ok(used > 0);
        }
        Ok(self.run_command(tools)? || used > 0)
    }

    fn read_frames(
        &mut self,
        bytes: &[u8],
        used: &mut usize,
        tools: &mut Tools<'_>,
    ) -> Result<(), Failure> {
        while self.phase != Phase::Parting && self.wish.is_none() {
            let rest = bytes.get(*used..).unwrap_or_default();
            let Some((frame, size)) = frame::decode(rest).map_err(|error| protocol(&error))? else {
                return Ok(());
            };
            *used += size;
            self.take_frame(&frame, tools)?;
        }
        // After the last message nothing the host says matters.
        *used = bytes.len();
        Ok(())
    }

    fn take_frame(&mut self, frame: &Frame<'_>, tools: &mut Tools<'_>) -> Result<(), Failure> {
        if let Frame::Control(json) = frame {
            let request = frame::parse_message(json).map_err(|error| protocol(&error))?;
            return self.take_request(request, tools);
        }
        let Some(command) = &mut self.command else {
            return Err(misplaced("a stream's frame before a command"));
        };
        match frame {
            Frame::Data(Stream::Stdin, bytes) => command.take_stdin(bytes),
            Frame::Eof(Stream::Stdin) => command.end_stdin(),
            Frame::Credit(stream @ (Stream::Stdout | Stream::Stderr), credit) => {
                command.take_credit(*stream, *credit)
            }
            _ => Err(misplaced("a frame for the other direction")),
        }
    }

    fn take_request(&mut self, request: Request, tools: &mut Tools<'_>) -> Result<(), Failure> {
        match (self.phase, request) {
            (Phase::Greeting, Request::Hello { version }) => self.greet(version),
            (Phase::Greeting, _) => Err(misplaced("a request before hello")),
            (Phase::Asked, Request::Exec(spec)) => self.exec(&spec, tools),
            (Phase::Asked, Request::Prepare {}) => {
                self.wish = Some(Wish::Prepare);
                Ok(())
            }
            (Phase::Asked, Request::Renew(renewal)) => {
                self.wish = Some(Wish::Renew(renewal));
                Ok(())
            }
            (Phase::Asked | Phase::Serving, Request::Shutdown) => {
                self.shutdown = true;
                if let Some(command) = &mut self.command {
                    command.kill();
                }
                self.part(&Reply::ShuttingDown)
            }
            (Phase::Serving, Request::Signal { signal }) => match &self.command {
                Some(command) if (1..=LAST_SIGNAL).contains(&signal) => {
                    command.signal(signal);
                    Ok(())
                }
                _ => Err(misplaced("a signal that is not 1 to 64")),
            },
            (Phase::Serving, Request::Resize { rows, columns }) => {
                if let Some(command) = &self.command {
                    command.resize(rundlet_protocol::TtySize { rows, columns });
                }
                Ok(())
            }
            (_, Request::Hello { .. }) => Err(misplaced("a second hello")),
            (_, Request::Exec(_)) => Err(misplaced("a second command")),
            (_, Request::Prepare {} | Request::Renew(_)) => Err(misplaced(
                "to prepare or renew the guest behind another request",
            )),
            (_, Request::Signal { .. } | Request::Resize { .. }) => {
                Err(misplaced("a signal or size before a command"))
            }
            (Phase::Parting | Phase::Kept, Request::Shutdown) => Ok(()),
        }
    }

    fn greet(&mut self, version: u32) -> Result<(), Failure> {
        if version != VERSION {
            return Err(Failure {
                kind: FailureKind::Version,
                message: format!(
                    "the host speaks protocol version {version}, this agent {VERSION}; take both \
                     from the same release"
                ),
            });
        }
        self.phase = Phase::Asked;
        let hello = Reply::Hello { version: VERSION };
        self.connection
            .reply(&hello)
            .map_err(|error| protocol(&error))
    }

    fn exec(&mut self, spec: &ExecSpec, tools: &mut Tools<'_>) -> Result<(), Failure> {
        if tools.cgroups.is_frozen() {
            return Err(Failure {
                kind: FailureKind::State,
                message: "the guest is prepared for a template: no command before it is renewed"
                    .to_owned(),
            });
        }
        let command = Command::start(spec, tools.cgroups)?;
        self.phase = Phase::Serving;
        self.keep = spec.keep;
        // Kept before anything else can fail: from now on there is a process to kill.
        let command = self.command.insert(command);
        for (role, fd) in command.descriptors() {
            tools.watch.add(fd.as_fd(), role).map_err(|error| Failure {
                kind: FailureKind::Resources,
                message: format!("cannot watch the command's streams: {error}"),
            })?;
        }
        Ok(())
    }

    /// The host has closed. Whether the command stays nevertheless.
    fn detach(&mut self) -> bool {
        if self.phase != Phase::Serving || !self.keep {
            return false;
        }
        if let Some(command) = &mut self.command {
            command.detach();
        }
        self.connection.close();
        self.phase = Phase::Kept;
        true
    }

    /// As [`Self::run_command`], for a command that nobody listens to.
    fn run_kept(&mut self, tools: &mut Tools<'_>) -> Turn {
        let Some(command) = &mut self.command else {
            return Turn::Ended;
        };
        match command.pump(tools.scratch, &mut self.connection) {
            // It never became the program.
            Err(_) => Turn::Ended,
            Ok(_) if command.ended().is_some() => Turn::Ended,
            Ok(true) => Turn::Again,
            Ok(false) => Turn::Wait,
        }
    }

    /// Turns the command's pumps once.
    fn run_command(&mut self, tools: &mut Tools<'_>) -> Result<bool, Failure> {
        let Some(command) = &mut self.command else {
            return Ok(false);
        };
        let moved = command.pump(tools.scratch, &mut self.connection)?;
        if let Some(status) = command.ended() {
            self.part(&Reply::Exited(status))?;
            return Ok(true);
        }
        Ok(moved)
    }
}

/// A frame or message that cannot be understood.
pub(crate) fn protocol(error: &FrameError) -> Failure {
    let cause = match std::error::Error::source(error) {
        Some(cause) => format!(": {cause}"),
        None => String::new(),
    };
    Failure {
        kind: FailureKind::Protocol,
        message: format!("{error}{cause}"),
    }
}

/// One that comes in the wrong place.
pub(crate) fn misplaced(what: &str) -> Failure {
    Failure {
        kind: FailureKind::Protocol,
        message: format!("{what} is not allowed here"),
    }
}
