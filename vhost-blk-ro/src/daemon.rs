//! The whole daemon: open every disk, bind every socket, close the door, say so, accept until told to
//! stop, clean up. One thread accepts for all sockets and tells figures; a crew of others serves all sessions.

use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};

use crate::config::Config;
use crate::event::{self, Event};
use crate::figures::{Desk, Figures};
use crate::jail;
use crate::listener::{Images, Listener, Walls};
use crate::session::{Crew, Options};

/// How long the daemon waits for its sessions to notice that it stops.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long it leaves connections waiting when the host is out of descriptors or threads.
const BREATHER: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

const STOP: u64 = u64::MAX;
const FIGURES: u64 = u64::MAX - 1;

/// Serves `config` until SIGTERM, SIGINT, or the end of the lifeline.
pub fn run(config: &Config, lifeline: Option<RawFd>) -> anyhow::Result<()> {
    let signals = catch_signals().context("cannot catch signals")?;
    let lifeline = lifeline.map(open_lifeline).transpose()?;
    raise_descriptor_limit();
    let listeners = bind_all(config)?;
    let desk = config.figures.as_deref().map(Desk::bind).transpose()?;
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    jail::close(config, &listeners).context("cannot close the daemon off")?;
    event::say(&Event::Listening).context("cannot write to standard output")?;

    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot create epoll")?;
    let watch = |fd: &dyn AsFd, token| {
        let data = epoll::EventData::new_u64(token);
        epoll::add(&epoll, fd.as_fd(), data, epoll::EventFlags::IN).context("cannot watch a socket")
    };
    watch(&signals, STOP)?;
    if let Some(lifeline) = &lifeline {
        watch(lifeline, STOP)?;
    }
    if let Some(desk) = &desk {
        watch(desk, FIGURES)?;
    }
    for (listener, token) in listeners.iter().zip(0..) {
        watch(listener, token)?;
    }
    let crew = Crew::start(processors).context("cannot start a thread for the sessions")?;
    let sessions = Sessions {
        crew,
        count: Arc::default(),
    };
    accept_until_stopped(&epoll, &listeners, desk.as_ref(), &sessions)?;
    log::info!("stopping");
    // No new connections, no socket files; then the sessions.
    drop((listeners, desk));
    sessions.end();
    Ok(())
}

fn bind_all(config: &Config) -> anyhow::Result<Vec<Listener>> {
    let mut images = Images::new();
    let walls = match config.jail {
        Some(_) => Walls::Jail,
        None => Walls::None,
    };
    let mut listeners = Vec::with_capacity(config.listeners.len());
    for listener in &config.listeners {
        let options = Options {
            serial: listener.serial,
            queues: config.queues,
            trust: listener.trust,
            resumes: listener.disk.resumes(),
            poll: config.poll,
        };
        listeners.push(Listener::bind(listener, options, &mut images, walls)?);
    }
    Ok(listeners)
}

fn accept_until_stopped(
    epoll: &OwnedFd,
    listeners: &[Listener],
    desk: Option<&Desk>,
    sessions: &Sessions,
) -> anyhow::Result<()> {
    let mut events = Vec::with_capacity(64);
    let mut numbers = 1u64..;
    loop {
        events.clear();
        match epoll::wait(epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for events"),
        }
        for event in &events {
            let token = event.data.u64();
            if token == STOP {
                return Ok(());
            }
            if token == FIGURES {
                if let Some(desk) = desk
                    && let Err(error) = desk.answer(&sessions.figures())
                {
                    log::error!("nobody can be told figures: {error}");
                    rest();
                }
                continue;
            }
            let listener = usize::try_from(token)
                .ok()
                .and_then(|index| listeners.get(index));
            let Some(listener) = listener else { continue };
            let number = numbers.next().unwrap_or_default();
            if let Err(error) = accept_one(listener, number, sessions) {
                log::error!(
                    "cannot serve a connection on {}: {error}",
                    listener.path().display()
                );
                // Out of descriptors or threads: the listener stays readable, so do not spin.
                rest();
            }
        }
    }
}

fn accept_one(listener: &Listener, number: u64, sessions: &Sessions) -> io::Result<()> {
    let Some(connection) = listener.accept()? else {
        return Ok(());
    };
    listener.begin(&sessions.crew, connection, number, sessions.enter())
}

fn rest() {
    let pause = rustix::thread::nanosleep(&BREATHER);
    if let rustix::thread::NanosleepRelativeResult::Err(error) = pause {
        log::debug!("cannot sleep: {error}");
    }
}

/// The sessions under way.
struct Sessions {
    crew: Arc<Crew>,
    count: Arc<(Mutex<usize>, Condvar)>,
}

/// One session's place in the count.
struct Alive(Arc<(Mutex<usize>, Condvar)>);

impl Sessions {
    fn enter(&self) -> Alive {
        *self.count.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Alive(Arc::clone(&self.count))
    }

    fn figures(&self) -> Figures {
        Figures {
            sessions: *self.count.0.lock().unwrap_or_else(PoisonError::into_inner),
            totals: self.crew.totals().now(),
        }
    }

    /// Ends every session, and waits for that as long as is decent.
    fn end(&self) {
        self.crew.stop();
        let (count, changed) = &*self.count;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(count, FAREWELL, |count| *count > 0);
        let (left, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *left > 0 {
            log::warn!("{} sessions did not end in time", *left);
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.1.notify_all();
    }
}

/// A descriptor that becomes readable with SIGTERM or SIGINT.
fn catch_signals() -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGTERM, theirs.try_clone()?)?;
    signal_hook::low_level::pipe::register(SIGINT, theirs)?;
    // A write past RLIMIT_FSIZE should fail with EFBIG, which the guest sees, not kill everybody.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    Ok(ours)
}

/// Our own end of the inherited pipe; readable (at its end) when the other side is closed.
fn open_lifeline(fd: RawFd) -> anyhow::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{fd}");
    rustix::fs::open(
        &path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .with_context(|| format!("--lifeline {fd}: not an inherited pipe"))
}

/// A session holds five descriptors, or six with a layer, so the usual soft limit is 170 sessions.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}
