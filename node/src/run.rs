//! `rundlet run`: one command in one throw-away sandbox, hosted in this process.
//!
//! Boot, then command: each phase is a loop over one channel that everything reports to (the sandbox,
//! the command, signals), with a deadline. Whatever happens, dropping the [`Sandbox`] takes it down.

mod error;
mod memory;
mod session;
mod signals;
mod stdio;
mod terminal;
mod timeline;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::agent::CommandEvent;
use crate::claim;
use crate::image::{ImageName, Store};
use crate::places;
use crate::sandbox::{self, Console, Event, Sandbox, SandboxSpec};
use crate::scratch;
use session::Session;
use timeline::Timeline;

pub use error::{Cause, RunError};

/// Exit code when `--timeout` has passed, as timeout(1).
pub const TIMED_OUT: u8 = 124;

/// Exit code for errors of ours.
pub const OUR_ERROR: u8 = 125;

/// What was asked for.
#[derive(Debug)]
pub struct Request {
    pub image: ImageName,
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    pub tty: bool,
    pub interactive: bool,
    /// For the command, from its start.
    pub timeout: Option<Duration>,
    /// For the boot, until the agent is ready.
    pub boot_timeout: Duration,
    pub memory_mib: u32,
    pub vcpus: u8,
    pub scratch_mib: u64,
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    pub console: Option<PathBuf>,
    /// Whether to print the named instants.
    pub timeline: bool,
    /// Whether to print the memory of the processes.
    pub stats: bool,
}

/// Everything that the two loops hear of.
enum News {
    Sandbox(Event),
    Command(CommandEvent),
    Signal(i32),
}

/// Runs it; the exit code for the shell. `since` is when the request came.
///
/// # Errors
/// Something of ours failed; nothing is left of the sandbox.
pub fn run(request: &Request, since: Instant) -> Result<u8, RunError> {
    let (sender, news) = mpsc::channel();
    signals::listen({
        let sender = sender.clone();
        move |signal| sender.send(News::Signal(signal)).is_ok()
    })
    .map_err(Cause::Signals)?;
    let spec = prepare(request)?;
    let runtime = places::runtime().map_err(Cause::Place)?;
    let events = {
        let sender = sender.clone();
        // Nobody listens any more while it is taken down.
        Arc::new(move |event| drop(sender.send(News::Sandbox(event)))) as sandbox::Sink
    };
    let sandbox = Sandbox::start(&spec, &runtime, &events).map_err(Cause::Start)?;
    let mut timeline = Timeline::new(since);
    timeline.mark_at("backend_listening", sandbox.instants().backend_listening);
    timeline.mark_at("vmm_started", sandbox.instants().vmm_started);
    let mut session = Session {
        request,
        news,
        sandbox,
        timeline,
        memory: Vec::new(),
        guest_files: [spec.kernel.clone(), spec.initrd.clone()],
    };
    let outcome = session.boot().and_then(|early| match early {
        Some(code) => Ok(code),
        None => session.command(move |event| drop(sender.send(News::Command(event)))),
    });
    let result = session.conclude(outcome);
    // Runs that were killed together with their janitor.
    if let Err(error) = claim::sweep(&runtime) {
        log::warn!("{}", crate::error::chain(&error));
    }
    result
}

fn prepare(request: &Request) -> Result<SandboxSpec, Cause> {
    let guest = |told: &Option<PathBuf>, name| match told {
        Some(path) => Ok(path.clone()),
        None => places::guest(name),
    };
    let kernel = guest(&request.kernel, "vmlinux")?;
    let initrd = guest(&request.initrd, "initrd.cpio")?;
    let store = Store::open(&places::store())?;
    let spec = SandboxSpec {
        id: claim::random_hex().map_err(Cause::Random)?,
        memory_mib: request.memory_mib,
        vcpus: request.vcpus,
        kernel,
        initrd,
        image: store.find(&request.image)?,
        scratch: scratch::template(&store, request.scratch_mib)?,
        console: request
            .console
            .clone()
            .map_or(Console::Internal, Console::File),
        verbose: log::log_enabled!(log::Level::Debug),
    };
    Ok(spec.check()?)
}
