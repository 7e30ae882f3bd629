//! Who hears of ends: one thread that waits for every process of the host, VMMs and block backends, and for
//! the deadlines of sandboxes.
//!
//! A pidfd says that a process has ended, and a zygote, a moment later, how; of a process whose zygote has died
//! nobody knows that.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::Inner;
use super::bury::bury;
use super::events::now_ms;
use super::line::Line;
use super::model::{Phase, What};
use super::resident::Resident;
use crate::sandbox::process;
use crate::sandbox::zygote::CloneEnd;

/// How long a zygote may take to say how a process ended.
const HINDSIGHT: Duration = Duration::from_secs(1);

/// How often idle lines are looked for.
const ROUND: Duration = Duration::from_secs(10);

const INBOX: u64 = 0;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum News {
    /// To be watched from now on.
    Sandbox(Arc<Resident>),
    /// Likewise.
    Line(Arc<Line>),
    /// It is ready: its time begins to count.
    Ready(Arc<Resident>),
    /// How a process ended.
    Told {
        id: String,
        end: CloneEnd,
    },
    ZygoteGone {
        template: String,
    },
    Stop,
}

/// Where news are put.
#[derive(Debug)]
pub(super) struct Inbox {
    news: Mutex<Vec<News>>,
    wake: OwnedFd,
}

impl Inbox {
    pub(super) fn tell(&self, news: News) {
        self.news
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(news);
        // Fails only when its counter is full: then it is readable anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn take(&self) -> Vec<News> {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        std::mem::take(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the host holds of the thread.
#[derive(Debug)]
pub(super) struct Ends {
    inbox: Arc<Inbox>,
    epoll: OwnedFd,
}

impl Ends {
    pub(super) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(INBOX);
        epoll::add(&epoll, &wake, data, epoll::EventFlags::IN)?;
        Ok(Self {
            inbox: Arc::new(Inbox {
                news: Mutex::default(),
                wake,
            }),
            epoll,
        })
    }

    pub(super) fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.inbox)
    }
}

/// A process that is waited for.
#[derive(Clone, Debug)]
enum Watched {
    Sandbox(Arc<Resident>, Arc<OwnedFd>),
    Line(Arc<Line>, Arc<OwnedFd>),
}

/// What is over at a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Clock {
    /// The wait for the command that the sandbox was made for.
    FirstCommand,
    /// The time that it was given.
    Life,
}

/// The thread.
pub(super) struct Watcher {
    inner: Arc<Inner>,
    watched: HashMap<u64, Watched>,
    next: u64,
    /// Have ended, and how is about to be told.
    untold: Vec<(Instant, Arc<Resident>)>,
    /// By the time of day, milliseconds, and what is so then of which sandbox.
    deadlines: BTreeMap<(u64, u64, Clock), Weak<Resident>>,
    round: Instant,
}

impl Watcher {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self {
            inner,
            watched: HashMap::new(),
            next: INBOX + 1,
            untold: Vec::new(),
            deadlines: BTreeMap::new(),
            round: Instant::now(),
        }
    }

    /// Until it is told to stop.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        loop {
            events.clear();
            let limit = self.patience();
            let waited = epoll::wait(
                &self.inner.ends.epoll,
                spare_capacity(&mut events),
                Some(&limit),
            );
            if let Err(error) = waited
                && error != rustix::io::Errno::INTR
            {
                log::error!("cannot wait for processes: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
            for event in &events {
                match event.data.u64() {
                    INBOX => {}
                    token => self.ended(token),
                }
            }
            for news in self.inner.ends.inbox.take() {
                if matches!(news, News::Stop) {
                    return;
                }
                self.hear(news);
            }
            self.look_at_the_clock();
        }
    }

    /// How long there is nothing to do unless something happens.
    fn patience(&self) -> Timespec {
        let untold = self.untold.iter().map(|(until, _)| *until).min();
        let mut limit = ROUND;
        if let Some(until) = untold {
            limit = limit.min(until.saturating_duration_since(Instant::now()));
        }
        if let Some(((deadline, ..), _)) = self.deadlines.first_key_value() {
            limit = limit.min(Duration::from_millis(deadline.saturating_sub(now_ms())));
        }
        Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(1),
            tv_nsec: limit.subsec_nanos().into(),
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Sandbox(resident) => {
                let process = resident.lock().process.clone();
                if let Some(process) = process {
                    let pidfd = Arc::clone(&process.pidfd);
                    self.watch(Watched::Sandbox(resident, process.pidfd), &pidfd);
                }
            }
            News::Line(line) => {
                let pidfd = Arc::clone(&line.pidfd);
                self.watch(Watched::Line(line, Arc::clone(&pidfd)), &pidfd);
            }
            News::Ready(resident) => {
                let deadline = resident.deadline_ms(&resident.lock());
                if let Some(deadline) = deadline {
                    self.set(deadline, Clock::Life, &resident);
                }
                if resident.wish.auto_remove {
                    self.await_first_command(&resident);
                }
            }
            News::Told { id, end } => self.told(&id, end),
            News::ZygoteGone { template } => {
                log::warn!("a zygote has died (template {template:?}); what it made lives on");
                self.inner.events.publish(What::ZygoteLost { template });
            }
            News::Stop => {}
        }
    }

    fn set(&mut self, deadline_ms: u64, clock: Clock, resident: &Arc<Resident>) {
        let at = (deadline_ms, resident.number, clock);
        self.deadlines.insert(at, Arc::downgrade(resident));
    }

    /// From now on: whoever was about to run it has to find a new daemon first, if this is one.
    fn await_first_command(&mut self, resident: &Arc<Resident>) {
        let limit = self.inner.first_command_s.saturating_mul(1000);
        self.set(
            now_ms().saturating_add(limit),
            Clock::FirstCommand,
            resident,
        );
    }

    fn watch(&mut self, watched: Watched, pidfd: &Arc<OwnedFd>) {
        let token = self.next;
        self.next += 1;
        let data = epoll::EventData::new_u64(token);
        let added = epoll::add(
            &self.inner.ends.epoll,
            pidfd.as_fd(),
            data,
            epoll::EventFlags::IN,
        );
        self.watched.insert(token, watched);
        if let Err(error) = added {
            // Out of memory for it (fs.epoll.max_user_watches): as if it had ended, since nobody would notice.
            log::error!("cannot watch a process, which is ended: {error}");
            process::kill(pidfd);
            self.ended(token);
        }
    }

    /// A process has ended.
    fn ended(&mut self, token: u64) {
        match self.watched.remove(&token) {
            Some(Watched::Sandbox(resident, pidfd)) => {
                let _ = epoll::delete(&self.inner.ends.epoll, &pidfd);
                self.sandbox_ended(resident);
            }
            Some(Watched::Line(line, pidfd)) => {
                let _ = epoll::delete(&self.inner.ends.epoll, &pidfd);
                // One that was closed has ended as it should.
                if line.set_over() {
                    self.backend_ended(&line);
                }
            }
            None => {}
        }
    }

    fn sandbox_ended(&mut self, resident: Arc<Resident>) {
        let mut state = resident.lock();
        state.exited = true;
        if state.starting {
            // Who starts it, buries it.
            drop(state);
            resident.notify();
            return;
        }
        let zygote = state.process.as_ref().and_then(|it| it.zygote.upgrade());
        let more_to_hear = state.end.is_none() && zygote.is_some_and(|it| it.is_alive());
        drop(state);
        if more_to_hear {
            self.untold.push((Instant::now() + HINDSIGHT, resident));
        } else {
            bury(&self.inner, &resident, None);
        }
    }

    fn told(&mut self, id: &str, end: CloneEnd) {
        let Some(resident) = self.inner.registry.get(id) else {
            return;
        };
        resident.lock().end = Some(end);
        resident.notify();
        let place = self
            .untold
            .iter()
            .position(|(_, it)| Arc::ptr_eq(it, &resident));
        if let Some(place) = place {
            self.untold.swap_remove(place);
            bury(&self.inner, &resident, None);
        }
    }

    /// Its sandboxes have lost their disks.
    fn backend_ended(&self, line: &Arc<Line>) {
        let how = line
            .how()
            .map(|how| format!(" ({how})"))
            .unwrap_or_default();
        log::error!("line {}: the block backend has ended{how}", line.name);
        self.inner.lines.lost(line);
        self.inner.events.publish(What::BackendLost {
            source: line.source.clone(),
        });
        for resident in self.inner.registry.all() {
            let mut state = resident.lock();
            let seated = state.seat.as_ref();
            if seated.is_some_and(|seat| Arc::ptr_eq(seat.line(), line)) {
                state.doom = Some(format!("its block backend has ended{how}"));
                Resident::kill(&state);
            }
        }
        self.inner.remove_layers(&line.name);
        if let Err(error) = super::lines::remove_directory(&line.directory) {
            log::warn!("{}", crate::error::chain(&error));
        }
    }

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        let (late, untold) = std::mem::take(&mut self.untold)
            .into_iter()
            .partition(|(until, _)| *until <= now);
        self.untold = untold;
        let late: Vec<(Instant, Arc<Resident>)> = late;
        for (_, resident) in late {
            bury(&self.inner, &resident, None);
        }
        while let Some(entry) = self.deadlines.first_entry()
            && entry.key().0 <= now_ms()
        {
            let (_, _, clock) = *entry.key();
            match (entry.remove().upgrade(), clock) {
                (Some(resident), Clock::Life) => self.time_is_over(&resident),
                (Some(resident), Clock::FirstCommand) => self.nobody_came(&resident),
                (None, _) => {}
            }
        }
        if now >= self.round {
            self.round = now + ROUND;
            self.inner.lines.close_idle(&self.inner);
        }
    }

    /// It was made for one command, which would have taken it along: whoever wanted to run that has gone.
    fn nobody_came(&mut self, resident: &Arc<Resident>) {
        let mut state = resident.lock();
        if state.streamed || !matches!(state.phase, Phase::Ready | Phase::Running) {
            return;
        }
        if state.commands > 0 {
            // Somebody is there.
            drop(state);
            return self.await_first_command(resident);
        }
        let seconds = self.inner.first_command_s;
        let why = format!("it was made for one command, and none came within {seconds} seconds");
        state.remove_when_ended = true;
        resident.enter(&mut state, Phase::Stopping, Some(&why), &self.inner.events);
        Resident::kill(&state);
    }

    fn time_is_over(&self, resident: &Resident) {
        let mut state = resident.lock();
        if matches!(state.phase, Phase::Ready | Phase::Running) {
            let seconds = resident.wish.timeout_s.unwrap_or_default();
            let why = format!("its time of {seconds} seconds is over");
            resident.enter(&mut state, Phase::Stopping, Some(&why), &self.inner.events);
            Resident::kill(&state);
        }
    }
}
