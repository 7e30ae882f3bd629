//! `rundlet bench`: what sandboxes cost to start and to keep, ours and other systems' side by side.
//!
//! ```text
//! system       what is measured: a trait, and behind it ours, qemu, firecracker
//! batch        many starts at the same moment
//! start        batches over concurrency, on an empty host and on one with sandboxes
//! density      idle sandboxes, more and more
//! cgroup       a cgroup for each start, from the pool and without it
//! node         a daemon beside a fleet: what it adds to a start, and how many it keeps up
//! report       all figures as JSON; table and page make something to look at of it
//! ```
//!
//! What must hold: no figure that was not measured, and nothing left behind, however it ends.

mod batch;
mod cgroup;
mod contender;
mod copy;
mod density;
#[cfg(test)]
mod fake;
mod firecracker;
#[cfg(test)]
mod golden;
mod guest;
mod host;
mod lineup;
mod node;
mod numbers;
mod ours;
mod page;
mod process;
mod qemu;
mod report;
mod session;
mod start;
mod system;
mod table;
mod vsock;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::claim;
use crate::error::PathError;
use crate::image::Store;
use crate::places;
use crate::run::{Cause, Place};
use lineup::Lineup;
use session::Session;

pub use cgroup::{CgroupPlan, ROOT as CGROUP_ROOT, WayError, midwife, run as run_cgroup};
pub use density::DensityPlan;
pub use lineup::{Peer, PeerName, Sandboxes};
pub use node::{NodePlan, ROOT as NODE_ROOT, run as run_node};
pub use report::{Report, ReportError};
pub use start::StartPlan;

/// What was asked for.
#[derive(Debug)]
pub struct Request {
    pub plan: Plan,
    pub sandboxes: Sandboxes,
    pub peers: Vec<Peer>,
    /// How long the host may take to become quiet before something is measured.
    pub settle: Duration,
    pub output: Output,
    /// The command line, for the report.
    pub command: Vec<String>,
}

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    Start(StartPlan),
    Density(DensityPlan),
}

/// Where the figures go, besides a table on stdout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// A file, or stdout instead of the table: `-`.
    pub json: Option<PathBuf>,
    pub html: Option<PathBuf>,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Cause(#[from] Cause),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error(transparent)]
    Cgroup(#[from] WayError),
    #[error("cannot listen to signals")]
    Signals(#[source] io::Error),
    #[error("cannot write to stdout")]
    Stdout(#[source] io::Error),
    #[error("nothing to measure: give --template, --cold, or an image with --cold for the peers")]
    Nobody,
    #[error(
        "--cold names another image than the template was made of; systems are compared on the same guest"
    )]
    OtherImage,
    #[error("interrupted by signal {0}; nothing is left of it")]
    Interrupted(u8),
    #[error("no system could be measured: {0}")]
    Nothing(String),
}

impl BenchError {
    /// The exit code for the shell.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Interrupted(signal) => signal.saturating_add(128),
            _ => 1,
        }
    }
}

/// Measures, writes, prints.
///
/// # Errors
/// There is nothing to tell.
pub fn run(request: &Request) -> Result<(), BenchError> {
    // Before hours of work, not after.
    for path in request.output.files() {
        fs::write(path, "").map_err(PathError::at("write", path))?;
    }
    let session = Session::open(request.settle).map_err(BenchError::Signals)?;
    let place = Place {
        store: Store::open(&places::store()).map_err(Cause::Store)?,
        runtime: places::runtime().map_err(Cause::Place)?,
    };
    let lineup = Lineup::find(&place, &request.sandboxes, &request.peers)?;
    let mut contenders = lineup.contenders()?;
    match &request.plan {
        Plan::Start(plan) => start::measure(&mut contenders, plan, &session),
        Plan::Density(plan) => density::measure(&mut contenders, plan, &session),
    }
    session.progress.finish_and_clear();
    let systems: Vec<_> = contenders.into_iter().map(|it| it.report).collect();
    if let Err(error) = claim::sweep(&place.runtime) {
        log::warn!("{}", crate::error::chain(&error));
    }
    if let Some(signal) = session.interruption() {
        return Err(BenchError::Interrupted(signal));
    }
    if let [only] = &*systems
        && let Some(why) = &only.unusable
    {
        return Err(BenchError::Nothing(why.clone()));
    }
    let created = SystemTime::now().duration_since(UNIX_EPOCH);
    let report = Report {
        version: report::VERSION,
        created: created.unwrap_or_default().as_secs(),
        command: request.command.clone(),
        host: host::describe(),
        inputs: lineup.inputs(&systems),
        guest: lineup.guest(),
        systems,
        notes: Vec::new(),
    };
    write(&report, &request.output)
}

/// Makes one page, or table, of several runs' JSON.
///
/// # Errors
/// A file is no report, or cannot be written.
pub fn merge(files: &[PathBuf], output: &Output) -> Result<(), BenchError> {
    let reports = files.iter().map(|path| Report::read(path));
    let reports = reports.collect::<Result<Vec<_>, _>>()?;
    let report = Report::merged(reports).ok_or_else(|| BenchError::Nothing("no files".into()))?;
    write(&report, output)
}

impl Output {
    fn json_to_stdout(&self) -> bool {
        self.json.as_deref() == Some(Path::new("-"))
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let json = self.json.as_deref().filter(|_| !self.json_to_stdout());
        json.into_iter().chain(self.html.as_deref())
    }
}

fn write(report: &Report, output: &Output) -> Result<(), BenchError> {
    let to_file =
        |path: &Path, text: &str| fs::write(path, text).map_err(PathError::at("write", path));
    if let Some(path) = &output.html {
        to_file(path, &page::page(report))?;
    }
    let shown = match &output.json {
        Some(_) if output.json_to_stdout() => report.json(),
        Some(path) => {
            to_file(path, &report.json())?;
            table::table(report)
        }
        None => table::table(report),
    };
    print(&shown)
}

fn print(text: &str) -> Result<(), BenchError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(BenchError::Stdout)
}
