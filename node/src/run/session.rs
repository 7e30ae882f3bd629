//! The two loops of a run: until the guest is ready, and until the command has ended.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rundlet_protocol::ExecSpec;

use super::signals::{self, SIGWINCH};
use super::timeline::Timeline;
use super::{Cause, News, Request, RunError, TIMED_OUT, memory, stdio, terminal};
use crate::agent::{Command, CommandEvent, Streams};
use crate::doctor::kvm;
use crate::sandbox::{Event, Sandbox, VmmEnd};

/// A shell's code for a process that a signal ended, plus SIGPIPE: our reader has gone.
const BROKEN_PIPE: u8 = 128 + 13;

/// How long to wait for the second half of a story: why a connection broke, which process ended first.
const HINDSIGHT: Duration = Duration::from_secs(1);

/// One run, from the started processes on.
pub(super) struct Session<'a> {
    pub(super) request: &'a Request,
    pub(super) news: Receiver<News>,
    pub(super) sandbox: Sandbox,
    pub(super) timeline: Timeline,
    pub(super) memory: Vec<memory::Sample>,
    /// Kernel and initrd: the VMM maps them into guest RAM.
    pub(super) guest_files: [PathBuf; 2],
}

impl Session<'_> {
    /// Until the agent is ready. `Some` is an exit code: a signal ended it.
    pub(super) fn boot(&mut self) -> Result<Option<u8>, Cause> {
        let deadline = Instant::now() + self.request.boot_timeout;
        loop {
            match self.next(Some(deadline)) {
                None => return Err(Cause::BootTimeout(self.request.boot_timeout)),
                Some(News::Sandbox(Event::Ready(ready))) => {
                    self.timeline.mark("ready");
                    self.timeline.guest(&ready);
                    self.sandbox.ready(&ready);
                    self.sample("ready");
                    return Ok(None);
                }
                Some(News::Sandbox(event)) => self.sandbox_event(event)?,
                Some(News::Signal(SIGWINCH)) | Some(News::Command(_)) => {}
                Some(News::Signal(signal)) => return Ok(Some(signals::code(signal))),
            }
        }
    }

    /// Runs the command to its end.
    pub(super) fn command(
        &mut self,
        sink: impl Fn(CommandEvent) + Send + Sync + 'static,
    ) -> Result<u8, Cause> {
        let request = self.request;
        let connection = self.sandbox.connect()?;
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
        let command = connection.exec(spec, streams, sink)?;
        self.supervise(&command)
    }

    fn supervise(&mut self, command: &Command) -> Result<u8, Cause> {
        // Set by the start, as slow boots are not the command's fault.
        let mut deadline = None;
        let mut interrupts = signals::Interrupts::default();
        loop {
            match self.next(deadline) {
                None => return Ok(TIMED_OUT),
                Some(News::Command(CommandEvent::Started(_))) => {
                    self.timeline.mark("exec_started");
                    deadline = self.request.timeout.map(|limit| Instant::now() + limit);
                }
                Some(News::Command(event)) => {
                    if let Some(code) = self.command_event(event)? {
                        return Ok(code);
                    }
                }
                Some(News::Sandbox(event)) => self.sandbox_event(event)?,
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
            CommandEvent::FirstOutput => self.timeline.mark("first_output"),
            CommandEvent::OutputClosed(_, error)
                if error.kind() == std::io::ErrorKind::BrokenPipe =>
            {
                return Ok(Some(BROKEN_PIPE));
            }
            CommandEvent::OutputClosed(stream, source) => {
                return Err(Cause::Output { stream, source });
            }
            CommandEvent::Exited(status) => {
                self.timeline.mark("exit");
                self.sample("exit");
                let code = u8::try_from(status.shell_code());
                return code.map(Some).map_err(|_| Cause::Status(status));
            }
            CommandEvent::Failed(failure) => return Err(Cause::Command(failure)),
            // Most often the machine is gone, and the VMM is about to say why.
            CommandEvent::Lost(error) => {
                self.hindsight()?;
                return Err(Cause::Agent(error));
            }
        }
        Ok(None)
    }

    /// What the sandbox did: an end of its processes is an error.
    fn sandbox_event(&mut self, event: Event) -> Result<(), Cause> {
        match event {
            Event::Timeline(instants) => self.timeline.vmm(instants),
            Event::Ready(_) => {}
            Event::NotReady(why) => {
                self.hindsight()?;
                return Err(Cause::NotReady(why));
            }
            Event::BackendEnded(status) => return Err(Cause::BackendEnded(status)),
            Event::VmmEnded(end) => return Err(self.vmm_ended(end)),
        }
        Ok(())
    }

    fn vmm_ended(&mut self, end: VmmEnd) -> Cause {
        let lost = end
            .exit
            .as_ref()
            .is_some_and(|exit| exit.reason == "backend_lost");
        if lost && let Some(status) = self.backend_status() {
            return Cause::BackendEnded(status);
        }
        let failed = end.exit.as_ref().is_some_and(|exit| exit.reason == "error");
        if failed && let Some((found, advice)) = kvm::trouble() {
            return Cause::Kvm { found, advice };
        }
        Cause::VmmEnded(end)
    }

    /// How the backend ended, if that is heard of soon.
    fn backend_status(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + HINDSIGHT;
        loop {
            match self.next(Some(deadline))? {
                News::Sandbox(Event::BackendEnded(status)) => return Some(status),
                _ => continue,
            }
        }
    }

    /// Fails with the reason behind a broken connection, if that is heard of soon.
    fn hindsight(&mut self) -> Result<(), Cause> {
        let deadline = Instant::now() + HINDSIGHT;
        while let Some(news) = self.next(Some(deadline)) {
            match news {
                News::Sandbox(Event::VmmEnded(end)) => return Err(self.vmm_ended(end)),
                News::Sandbox(Event::BackendEnded(status)) => {
                    return Err(Cause::BackendEnded(status));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The next thing that happens, `None` at the deadline.
    fn next(&self, deadline: Option<Instant>) -> Option<News> {
        let Some(deadline) = deadline else {
            // The session holds a sender through its sandbox: this ends with news only.
            return self.news.recv().ok();
        };
        let left = deadline.saturating_duration_since(Instant::now());
        self.news.recv_timeout(left).ok()
    }

    fn sample(&mut self, at: &'static str) {
        if self.request.stats {
            let (vmm, backend) = self.sandbox.pids();
            self.memory
                .push(memory::sample(at, vmm, backend, &self.guest_files));
        }
    }

    /// Takes the sandbox down and prints what was asked for.
    pub(super) fn conclude(mut self, outcome: Result<u8, Cause>) -> Result<u8, RunError> {
        if self.request.timeline && outcome.is_ok() && !self.timeline.has_vmm() {
            // The VMM says it at the same moment as the agent says ready; a short command may be first.
            let deadline = Instant::now() + HINDSIGHT;
            while let Some(news) = self.next(Some(deadline)) {
                if let News::Sandbox(Event::Timeline(instants)) = news {
                    self.timeline.vmm(instants);
                    break;
                }
            }
        }
        let result = outcome.map_err(|cause| {
            let evidence = self.sandbox.fail(&cause.to_string());
            RunError::new(cause, evidence)
        });
        self.sandbox.stop();
        self.timeline.mark("stopped");
        if self.request.timeline {
            eprintln!("{}", self.timeline.json());
        }
        if self.request.stats {
            eprintln!("{}", memory::json(&self.memory));
        }
        result
    }
}
