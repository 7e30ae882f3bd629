//! The command of a session: its process, its streams, and the order in which its end is told.
//!
//! Starting (the child has not said whether it became the program) → running → ended, when the process
//! has been waited for and every byte it wrote itself is in the connection.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rundlet_protocol::{ExecSpec, ExitStatus, Failure, FailureKind, Frame, Reply, Stream, TtySize};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use crate::cgroup::Cgroups;
use crate::connection::Connection;
use crate::process::{self, Ends, Process};
use crate::session::{misplaced, protocol};
use crate::streams::{Input, Output, Overrun};
use crate::watch::Role;

/// Longest report of a failed start; it names at most a few hundred characters of the request.
const LONGEST_REPORT: usize = 16 * 1024;

#[derive(Debug)]
pub(crate) struct Command {
    process: Process,
    /// The child's report on its start, until it has ended.
    report: Option<OwnedFd>,
    reported: Vec<u8>,
    input: Option<Input>,
    outputs: Vec<Output>,
    /// Set when the process has been waited for: its number may be another's from then on.
    status: Option<ExitStatus>,
}

impl Command {
    pub(crate) fn start(spec: &ExecSpec, cgroups: &mut Cgroups) -> Result<Self, Failure> {
        let started = process::start(spec, cgroups)?;
        let (input, outputs) = match started.ends {
            Ends::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                let input = stdin.map(|fd| Input::new(fd, false));
                let stdout = Output::new(Stream::Stdout, stdout, None);
                (
                    input,
                    vec![stdout, Output::new(Stream::Stderr, stderr, None)],
                )
            }
            Ends::Terminal {
                keyboard,
                screen,
                slave,
            } => {
                let input = keyboard.map(|fd| Input::new(fd, true));
                (
                    input,
                    vec![Output::new(Stream::Stdout, screen, Some(slave))],
                )
            }
        };
        Ok(Command {
            process: started.process,
            report: Some(started.report),
            reported: Vec::new(),
            input,
            outputs,
            status: None,
        })
    }

    /// What there is to watch, and under which name.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = (Role, BorrowedFd<'_>)> {
        let report = self.report.as_ref().map(AsFd::as_fd);
        let report = report.map(|fd| (Role::Report, fd));
        let input = self.input.as_ref().and_then(Input::fd);
        let input = input.map(|fd| (Role::Stdin, fd));
        let outputs = self.outputs.iter().filter_map(|output| {
            let role = match output.stream() {
                Stream::Stderr => Role::Stderr,
                _ => Role::Stdout,
            };
            Some((role, output.fd()?))
        });
        report.into_iter().chain(input).chain(outputs)
    }

    /// Whether `pid` is its process, still to be waited for.
    pub(crate) fn is(&self, pid: i32) -> bool {
        self.process.pid == pid && self.status.is_none()
    }

    pub(crate) fn notice(&mut self, role: Role, flags: EventFlags) {
        let stream = match role {
            Role::Stdin => {
                if let Some(input) = &mut self.input {
                    input.notice(flags);
                }
                return;
            }
            Role::Stdout => Stream::Stdout,
            Role::Stderr => Stream::Stderr,
            // Read at every turn.
            _ => return,
        };
        if let Some(output) = self.output(stream) {
            output.notice();
        }
    }

    pub(crate) fn process_ended(&mut self, status: ExitStatus) {
        self.status = Some(status);
        for output in &mut self.outputs {
            output.command_ended();
        }
    }

    /// The status, once everything before it has been queued.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        let told = self.report.is_none() && self.outputs.iter().all(Output::is_done);
        self.status.filter(|_| told)
    }

    pub(crate) fn signal(&self, signal: i32) {
        if self.status.is_none() {
            self.process.signal(signal);
        }
    }

    pub(crate) fn kill(&mut self) {
        if self.status.is_none() {
            self.process.kill();
        }
    }

    /// Kills what still runs and gives back what the agent holds.
    pub(crate) fn end(mut self, cgroups: &mut Cgroups) {
        self.kill();
        self.process.release(cgroups);
    }

    /// The host has gone and the command stays: its stdin ends, its output is thrown away.
    pub(crate) fn detach(&mut self) {
        if let Some(input) = &mut self.input {
            input.host_ended();
        }
        for output in &mut self.outputs {
            output.throw_away();
        }
    }

    pub(crate) fn resize(&self, size: TtySize) {
        for output in &self.outputs {
            output.resize(size);
        }
    }

    pub(crate) fn take_stdin(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Some(input) = &mut self.input else {
            return Err(misplaced("stdin for a command that asked for none"));
        };
        input
            .push(bytes)
            .map_err(|Overrun| misplaced("stdin beyond its credit or its end"))
    }

    pub(crate) fn end_stdin(&mut self) -> Result<(), Failure> {
        match &mut self.input {
            Some(input) => {
                input.host_ended();
                Ok(())
            }
            None => Err(misplaced("the end of a stdin that was not asked for")),
        }
    }

    pub(crate) fn take_credit(&mut self, stream: Stream, credit: u32) -> Result<(), Failure> {
        let Some(output) = self.output(stream) else {
            return Err(misplaced("credit for a stream that a terminal has not"));
        };
        if !output.add_credit(credit) {
            return Err(misplaced("credit for bytes that were never sent"));
        }
        Ok(())
    }

    /// Turns each pump once. Whether anything moved.
    pub(crate) fn pump(
        &mut self,
        scratch: &mut [u8],
        connection: &mut Connection,
    ) -> Result<bool, Failure> {
        if self.report.is_some() && !self.read_report(connection)? {
            // Nothing before `Started`.
            return Ok(false);
        }
        let mut moved = false;
        if let Some(input) = &mut self.input {
            moved |= input.pump();
            if let Some(credit) = input.take_credit() {
                let frame = Frame::Credit(Stream::Stdin, credit);
                connection.queue(&frame).map_err(|error| protocol(&error))?;
                moved = true;
            }
        }
        for output in &mut self.outputs {
            moved |= output
                .pump(scratch, connection)
                .map_err(|error| protocol(&error))?;
        }
        Ok(moved)
    }

    /// Whether the program runs by now; its failure to do so is the error.
    fn read_report(&mut self, connection: &mut Connection) -> Result<bool, Failure> {
        while let Some(report) = &self.report {
            self.reported.reserve(512);
            match rustix::io::read(report, spare_capacity(&mut self.reported)) {
                Ok(0) => self.report = None,
                Ok(_) if self.reported.len() <= LONGEST_REPORT => {}
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Ok(_) | Err(_) => return Err(no_report()),
            }
        }
        if self.reported.is_empty() {
            let pid = self.process.pid.unsigned_abs();
            let started = Reply::Started { pid };
            connection
                .reply(&started)
                .map_err(|error| protocol(&error))?;
            return Ok(true);
        }
        let failure = serde_json::from_slice(&self.reported);
        Err(failure.unwrap_or_else(|_| no_report()))
    }

    fn output(&mut self, stream: Stream) -> Option<&mut Output> {
        let mut outputs = self.outputs.iter_mut();
        outputs.find(|output| output.stream() == stream)
    }
}

fn no_report() -> Failure {
    Failure {
        kind: FailureKind::Resources,
        message: "the child that was to become the program died before it could say why".to_owned(),
    }
}
