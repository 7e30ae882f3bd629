//! One sandbox and all that is heard of it: everything reports to one channel (the sandbox, a command,
//! signals), which is read with a deadline.

use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use super::signals::{self, SIGWINCH};
use super::timeline::Timeline;
use super::{Cause, RunError};
use crate::agent::CommandEvent;
use crate::doctor::kvm;
use crate::sandbox::{self, Event, Origin, Sandbox, SandboxSpec, VmmEnd};

/// How long to wait for the second half of a story: why a connection broke, which process ended first.
pub(super) const HINDSIGHT: Duration = Duration::from_secs(1);

/// Everything that is heard of.
#[derive(Debug)]
pub(crate) enum News {
    Sandbox(Event),
    Command(CommandEvent),
    /// The command has printed the line that was waited for.
    ReadyLine,
    Signal(i32),
}

/// The channel: as a rule one for the whole process, as its signals are, and one sandbox at a time.
#[derive(Debug)]
pub(crate) struct Wire {
    sender: Sender<(Option<u32>, News)>,
    news: Receiver<(Option<u32>, News)>,
    turns: AtomicU32,
}

impl Wire {
    /// Begins to listen to signals.
    pub(crate) fn open() -> Result<Self, Cause> {
        let wire = Self::without_signals();
        let signals = wire.sender.clone();
        signals::listen(move |signal| signals.send((None, News::Signal(signal))).is_ok())
            .map_err(Cause::Signals)?;
        Ok(wire)
    }

    /// For a process whose signals are somebody else's.
    pub(crate) fn without_signals() -> Self {
        let (sender, news) = mpsc::channel();
        Self {
            sender,
            news,
            turns: AtomicU32::new(0),
        }
    }

    /// The next thing that happens, while there is no sandbox to watch.
    pub(crate) fn next(&self) -> Option<News> {
        // We hold a sender: this ends with news only.
        self.news.recv().ok().map(|(_, news)| news)
    }
}

/// A started sandbox. Dropping it takes it down.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    wire: &'a Wire,
    /// News of earlier sandboxes have another number and are no news.
    turn: u32,
    pub(crate) sandbox: Sandbox,
    pub(crate) timeline: Timeline,
    cloned: bool,
}

impl<'a> Watch<'a> {
    /// Starts the sandbox; `since` is when it was asked for.
    pub(crate) fn start(
        wire: &'a Wire,
        spec: &SandboxSpec,
        runtime: &Path,
        since: Instant,
    ) -> Result<Self, Cause> {
        let turn = wire.turns.fetch_add(1, Ordering::Relaxed);
        let events = {
            let sender = wire.sender.clone();
            // Nobody listens any more while it is taken down.
            let tell = move |event| drop(sender.send((Some(turn), News::Sandbox(event))));
            Arc::new(tell) as sandbox::Sink
        };
        let mut timeline = Timeline::new(since);
        timeline.mark("prepared");
        let sandbox = Sandbox::start(spec, runtime, &events).map_err(Cause::Start)?;
        timeline.mark_at("backend_listening", sandbox.instants().backend_listening);
        timeline.mark_at("vmm_started", sandbox.instants().vmm_started);
        Ok(Self {
            wire,
            turn,
            sandbox,
            timeline,
            cloned: matches!(spec.origin, Origin::Clone(_)),
        })
    }

    /// A sender of news about this sandbox's command.
    pub(crate) fn teller(&self) -> impl Fn(News) + Send + Sync + Clone + 'static {
        let (sender, turn) = (self.wire.sender.clone(), self.turn);
        move |news| drop(sender.send((Some(turn), news)))
    }

    /// Until the agent is ready. `Some` is the signal that ended the wait.
    pub(crate) fn until_ready(&mut self, limit: Duration) -> Result<Option<i32>, Cause> {
        let deadline = Instant::now() + limit;
        loop {
            match self.next(Some(deadline)) {
                None => return Err(Cause::BootTimeout(limit)),
                Some(News::Sandbox(Event::Ready(ready))) => {
                    self.timeline.guest(&ready);
                    break;
                }
                Some(News::Sandbox(Event::Renewed(took))) => {
                    self.timeline.renewed(took);
                    break;
                }
                Some(News::Sandbox(event)) => self.event(event)?,
                Some(News::Signal(SIGWINCH) | News::Command(_) | News::ReadyLine) => {}
                Some(News::Signal(signal)) => return Ok(Some(signal)),
            }
        }
        self.timeline.mark("ready");
        self.sandbox.ready();
        Ok(None)
    }

    /// The next thing that happens, `None` at the deadline.
    pub(crate) fn next(&self, deadline: Option<Instant>) -> Option<News> {
        loop {
            // We hold a sender: without a deadline this ends with news only.
            let (turn, news) = match deadline {
                None => self.wire.news.recv().ok()?,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    self.wire.news.recv_timeout(left).ok()?
                }
            };
            if turn.is_none_or(|turn| turn == self.turn) {
                return Some(news);
            }
        }
    }

    /// What the sandbox did: an end of its processes is an error.
    pub(crate) fn event(&mut self, event: Event) -> Result<(), Cause> {
        match event {
            Event::Timeline(instants) => {
                if self.cloned {
                    self.timeline.mark("running");
                }
                self.timeline.vmm(instants);
            }
            Event::Ready(_) | Event::Renewed(_) | Event::Kept => {}
            Event::NotKept(why) => return Err(Cause::NotKept(why)),
            Event::NotReady(why) => {
                self.hindsight()?;
                return Err(Cause::NotReady(why));
            }
            Event::BackendEnded(status) => return Err(Cause::BackendEnded(status)),
            Event::VmmEnded(end) => return Err(self.vmm_ended(end)),
        }
        Ok(())
    }

    /// Fails with the reason behind a broken connection, if that is heard of soon.
    pub(crate) fn hindsight(&mut self) -> Result<(), Cause> {
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

    /// The VMM's timeline, which it says at the same moment as the agent says ready; a short command may
    /// be first.
    pub(crate) fn await_timeline(&mut self) {
        let deadline = Instant::now() + HINDSIGHT;
        while !self.timeline.has_vmm()
            && let Some(news) = self.next(Some(deadline))
        {
            if let News::Sandbox(Event::Timeline(instants)) = news {
                self.timeline.vmm(instants);
            }
        }
    }

    /// Takes it down because of `cause`, with what there is to read about it.
    pub(crate) fn fail(&mut self, cause: Cause) -> RunError {
        let evidence = self.sandbox.fail(&cause.to_string());
        RunError::new(cause, evidence)
    }

    fn vmm_ended(&mut self, end: VmmEnd) -> Cause {
        if let Some(why) = end.template_unfit() {
            return Cause::TemplateUnfit(why.to_owned());
        }
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
}
