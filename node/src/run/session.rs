//! A command in a ready sandbox, to its end.

use std::path::PathBuf;
use std::time::Instant;

use rundlet_protocol::ExecSpec;

use super::signals::{self, SIGWINCH};
use super::watch::{News, Watch};
use super::{Cause, Request, RunError, TIMED_OUT, memory, stdio, terminal};
use crate::agent::{Command, CommandEvent, Streams};

/// A shell's code for a process that a signal ended, plus SIGPIPE: our reader has gone.
pub(crate) const BROKEN_PIPE: u8 = 128 + 13;

/// One run, from the started processes on.
pub(super) struct Session<'a> {
    pub(super) request: &'a Request,
    pub(super) watch: Watch<'a>,
    pub(super) memory: Vec<memory::Sample>,
    /// What the VMM maps into guest RAM.
    pub(super) guest_files: [PathBuf; 2],
}

impl Session<'_> {
    /// All of it: the exit code.
    pub(super) fn run(mut self) -> Result<u8, RunError> {
        let outcome = self.outcome();
        self.conclude(outcome)
    }

    fn outcome(&mut self) -> Result<u8, Cause> {
        if let Some(signal) = self.watch.until_ready(self.request.boot_timeout)? {
            return Ok(signals::code(signal));
        }
        self.sample("ready");
        self.command()
    }

    fn command(&mut self) -> Result<u8, Cause> {
        let request = self.request;
        let connection = self.watch.sandbox.connect()?;
        let size = request.tty.then(terminal::size);
        let _raw = (request.tty && request.interactive).then(terminal::Raw::enter);
        let spec = ExecSpec {
            argv: request.argv.clone(),
            env: request.env.clone(),
            cwd: request.workdir.clone(),
            user: request.user.clone(),
            tty: size,
            stdin: request.interactive,
            keep: false,
        };
        let streams = Streams {
            stdin: request
                .interactive
                .then(stdio::stdin)
                .transpose()
                .map_err(Cause::Stdio)?,
            stdout: stdio::stdout().map_err(Cause::Stdio)?,
            stderr: stdio::stderr().map_err(Cause::Stdio)?,
        };
        let tell = self.watch.teller();
        let command = connection.exec(spec, streams, move |event| tell(News::Command(event)))?;
        self.supervise(&command)
    }

    fn supervise(&mut self, command: &Command) -> Result<u8, Cause> {
        // Set by the start, as slow boots are not the command's fault.
        let mut deadline = None;
        let mut interrupts = signals::Interrupts::default();
        loop {
            match self.watch.next(deadline) {
                None => return Ok(TIMED_OUT),
                Some(News::Command(CommandEvent::Started(_))) => {
                    self.watch.timeline.mark("exec_started");
                    deadline = self.request.timeout.map(|limit| Instant::now() + limit);
                }
                Some(News::Command(event)) => {
                    if let Some(code) = self.command_event(event)? {
                        return Ok(code);
                    }
                }
                Some(News::ReadyLine) => {}
                Some(News::Sandbox(event)) => self.watch.event(event)?,
                Some(News::Signal(SIGWINCH)) => {
                    if self.request.tty {
                        command.resize(terminal::size())?;
                    }
                }
                Some(News::Signal(signal)) => {
                    if interrupts.is_last(signal) {
                        return Ok(signals::code(signal));
                    }
                    command.signal(signal)?;
                }
            }
        }
    }

    /// What the command did; its exit code at the end.
    fn command_event(&mut self, event: CommandEvent) -> Result<Option<u8>, Cause> {
        match event {
            CommandEvent::Started(_) => {}
            CommandEvent::FirstOutput => self.watch.timeline.mark("first_output"),
            CommandEvent::OutputClosed(_, error)
                if error.kind() == std::io::ErrorKind::BrokenPipe =>
            {
                return Ok(Some(BROKEN_PIPE));
            }
            CommandEvent::OutputClosed(stream, source) => {
                return Err(Cause::Output { stream, source });
            }
            CommandEvent::Exited(status) => {
                self.watch.timeline.mark("exit");
                self.sample("exit");
                let code = u8::try_from(status.shell_code());
                return code.map(Some).map_err(|_| Cause::Status(status));
            }
            CommandEvent::Failed(failure) => return Err(Cause::Command(failure)),
            // Most often the machine is gone, and the VMM is about to say why.
            CommandEvent::Lost(error) => {
                self.watch.hindsight()?;
                return Err(Cause::Agent(error));
            }
        }
        Ok(None)
    }

    fn sample(&mut self, at: &'static str) {
        if self.request.stats {
            let (vmm, backend) = self.watch.sandbox.pids();
            self.memory
                .push(memory::sample(at, vmm, backend, &self.guest_files));
        }
    }

    /// Takes the sandbox down and prints what was asked for.
    fn conclude(mut self, outcome: Result<u8, Cause>) -> Result<u8, RunError> {
        if self.request.timeline && outcome.is_ok() {
            self.watch.await_timeline();
        }
        let result = outcome.map_err(|cause| self.watch.fail(cause));
        let Watch {
            sandbox,
            mut timeline,
            ..
        } = self.watch;
        sandbox.stop();
        timeline.mark("stopped");
        if result.as_ref().is_err_and(RunError::is_template_unfit) {
            // There will be another run, and that is the one to tell about.
            return result;
        }
        if self.request.timeline {
            eprintln!("{}", timeline.json());
        }
        if self.request.stats {
            eprintln!("{}", memory::json(&self.memory));
        }
        result
    }
}
