//! `rundlet run`: one command in one throw-away sandbox, hosted in this process.
//!
//! Until the sandbox is ready, then the command: each phase is a loop over one channel that everything
//! reports to (the sandbox, the command, signals), with a deadline. Whatever happens, dropping the
//! sandbox takes it down.

mod error;
mod memory;
pub(crate) mod session;
pub(crate) mod signals;
pub(crate) mod stdio;
pub(crate) mod terminal;
mod timeline;
pub(crate) mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::claim;
use crate::image::{ImageName, Store};
use crate::places;
use crate::sandbox::{Boot, Cloned, Console, Origin, SandboxSpec};
use crate::scratch;
use crate::template::{self, Template, TemplateName, Templates};
use session::Session;
use watch::{Watch, Wire};

pub use error::{Cause, RunError};

/// Exit code when `--timeout` has passed, as timeout(1).
pub const TIMED_OUT: u8 = 124;

/// Exit code for errors of ours.
pub const OUR_ERROR: u8 = 125;

/// What was asked for.
#[derive(Debug)]
pub struct Request {
    pub source: Source,
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
    pub console: Option<PathBuf>,
    /// Whether to print the named instants.
    pub timeline: bool,
    /// Whether to print the memory of the processes.
    pub stats: bool,
}

/// What the sandbox is made of.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    Image(Machine),
    Template(TemplateName),
}

/// A machine to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    pub image: ImageName,
    pub memory_mib: u32,
    pub vcpus: u8,
    pub scratch_mib: u64,
    /// Kernel and initrd, where they are not the usual ones.
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
}

/// Runs it; the exit code for the shell. `since` is when the request came.
///
/// # Errors
/// Something of ours failed; nothing is left of the sandbox.
pub fn run(request: &Request, since: Instant) -> Result<u8, RunError> {
    let wire = Wire::open()?;
    let place = Place {
        store: Store::open(&places::store()).map_err(Cause::Store)?,
        runtime: places::runtime().map_err(Cause::Place)?,
    };
    let result = match &request.source {
        Source::Image(machine) => run_booted(request, machine, &wire, &place, since),
        Source::Template(name) => run_cloned(request, name, &wire, &place, since),
    };
    // Runs that were killed together with their janitor.
    if let Err(error) = claim::sweep(&place.runtime) {
        log::warn!("{}", crate::error::chain(&error));
    }
    result
}

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) store: Store,
    pub(crate) runtime: PathBuf,
}

fn run_booted(
    request: &Request,
    machine: &Machine,
    wire: &Wire,
    place: &Place,
    since: Instant,
) -> Result<u8, RunError> {
    let store = &place.store;
    // First what the user named: that it is not there says more than what else is missing.
    let image = store.find(&machine.image).map_err(Cause::Store)?;
    let (kernel, initrd) = template::guest_files(&machine.kernel, &machine.initrd)?;
    let guest_files = [kernel.clone(), initrd.clone()];
    let boot = Boot {
        memory_mib: machine.memory_mib,
        vcpus: machine.vcpus,
        kernel,
        initrd,
        image,
        scratch: scratch::template(store, machine.scratch_mib).map_err(Cause::Scratch)?,
        keep: None,
        verbose: log::log_enabled!(log::Level::Debug),
    };
    let boot = boot.check().map_err(Cause::Spec)?;
    let spec = spec(request, Origin::Boot(Box::new(boot)))?;
    session(request, wire, &spec, &place.runtime, guest_files, since)
}

fn run_cloned(
    request: &Request,
    name: &TemplateName,
    wire: &Wire,
    place: &Place,
    since: Instant,
) -> Result<u8, RunError> {
    // The building of another template is no part of a second start.
    let mut since = Some(since);
    template::with_fitting(place, wire, name, |template| {
        let since = since.take().unwrap_or_else(Instant::now);
        run_once(request, template, wire, place, since)
    })
}

fn run_once(
    request: &Request,
    template: Template,
    wire: &Wire,
    place: &Place,
    since: Instant,
) -> Result<u8, RunError> {
    let guest_files = ["memory", "window"].map(|name| template.path.join(name));
    let binding = template::binding_now(&place.store, &template.record)?;
    let clone = Cloned {
        template,
        binding,
        controlled: false,
    };
    let spec = spec(request, Origin::Clone(Box::new(clone)))?;
    let result = session(request, wire, &spec, &place.runtime, guest_files, since);
    if let Origin::Clone(clone) = spec.origin {
        Templates::of(&place.store).release(clone.template);
    }
    result
}

fn spec(request: &Request, origin: Origin) -> Result<SandboxSpec, Cause> {
    Ok(SandboxSpec {
        id: claim::random_hex().map_err(Cause::Random)?,
        console: request
            .console
            .clone()
            .map_or(Console::Internal, Console::File),
        origin,
    })
}

fn session(
    request: &Request,
    wire: &Wire,
    spec: &SandboxSpec,
    runtime: &Path,
    guest_files: [PathBuf; 2],
    since: Instant,
) -> Result<u8, RunError> {
    let session = Session {
        request,
        watch: Watch::start(wire, spec, runtime, since)?,
        memory: Vec::new(),
        guest_files,
    };
    session.run()
}
