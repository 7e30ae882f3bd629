//! `rundlet bench node`: what the daemon adds to a start, and how many starts a second it keeps up.
//!
//! Two systems start clones of one template: a fleet in this process, and a daemon through its API. One start at a
//! time, in turns: the difference is the daemon's. Then many, with old ones ended as soon as there are too many.

mod daemon;
mod report;
mod sustained;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::contender::Contender;
use super::lineup::{Lineup, Sandboxes};
use super::session::Session;
use super::start::{self, StartPlan};
use super::system::{Kind, StartFailure};
use super::{BenchError, Output};
use crate::claim;
use crate::error::{PathError, chain};
use crate::image::Store;
use crate::places;
use crate::run::{Cause, Place};
use crate::template::TemplateName;
use daemon::{Daemon, Wanted};
use report::NodeReport;
use sustained::SustainedPlan;

/// Where nothing else is.
pub const ROOT: &str = "/sys/fs/cgroup/rundlet-bench-node";

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    pub template: TemplateName,
    /// Starts by each of the two, one at a time and in turns.
    pub pairs: usize,
    /// Starts in a row.
    pub count: usize,
    /// Living sandboxes at most while they are started.
    pub alive: usize,
    /// How many of them are started at a time.
    pub at_once: usize,
    /// Of a daemon that serves already; one is started for the bench where absent.
    pub socket: Option<PathBuf>,
    /// The cgroup of a daemon that is started for the bench, made and removed.
    pub root: PathBuf,
    /// How long the host may take to become quiet before something is measured.
    pub settle: Duration,
    /// A file for JSON, `-` for stdout instead of the table.
    pub json: Option<PathBuf>,
    /// The command line, for the report.
    pub command: Vec<String>,
}

impl NodePlan {
    fn sustained(&self) -> SustainedPlan {
        SustainedPlan {
            count: self.count,
            alive: self.alive,
            at_once: self.at_once.clamp(1, self.alive.max(1)),
        }
    }
}

/// Measures, writes, prints.
///
/// # Errors
/// There is nothing to tell.
pub fn run(plan: &NodePlan) -> Result<(), BenchError> {
    let output = Output {
        json: plan.json.clone(),
        html: None,
    };
    for path in output.files() {
        fs::write(path, "").map_err(PathError::at("write", path))?;
    }
    let session = Session::open(plan.settle).map_err(BenchError::Signals)?;
    let place = Place {
        store: Store::open(&places::store()).map_err(Cause::Store)?,
        runtime: places::runtime().map_err(Cause::Place)?,
    };
    let sandboxes = Sandboxes {
        template: Some(plan.template.clone()),
        cold: None,
    };
    let lineup = Lineup::find(&place, &sandboxes, &[])?;
    let report = measured(plan, &place, &lineup, &session);
    session.progress.finish_and_clear();
    if let Err(error) = claim::sweep(&place.runtime) {
        log::warn!("{}", chain(&error));
    }
    if let Some(signal) = session.interruption() {
        return Err(BenchError::Interrupted(signal));
    }
    let report = report?;
    if let Some(path) = output.files().next() {
        fs::write(path, report.json()).map_err(PathError::at("write", path))?;
    }
    super::print(&if output.json_to_stdout() {
        report.json()
    } else {
        report.table()
    })
}

fn measured(
    plan: &NodePlan,
    place: &Place,
    lineup: &Lineup<'_>,
    session: &Session,
) -> Result<NodeReport, BenchError> {
    let mut contenders = lineup.contenders()?;
    contenders.push(Contender::new("daemon", Kind::Restore, Vec::new(), || {
        Ok(Box::new(daemon(plan, place)?))
    }));
    let mut sustained = Vec::new();
    if plan.pairs > 0 {
        let pairs = StartPlan {
            count: plan.pairs,
            concurrency: vec![1],
            deployed: 0,
        };
        start::measure(&mut contenders, &pairs, session);
    }
    if plan.count > 0 && usable(&contenders).is_ok() {
        sustained = sustained::measure(&mut contenders, &plan.sustained(), session);
    }
    usable(&contenders)?;
    let systems = contenders.into_iter().map(|it| it.report).collect();
    Ok(NodeReport::of(plan, lineup, systems, sustained))
}

fn daemon(plan: &NodePlan, place: &Place) -> Result<Daemon, StartFailure> {
    let template = plan.template.clone();
    match &plan.socket {
        Some(socket) => Daemon::found(socket, template),
        None => Daemon::start(
            place,
            template,
            &Wanted {
                root: plan.root.clone(),
                alive: plan.alive.max(1),
                at_once: plan.sustained().at_once,
            },
        ),
    }
}

/// Half of it would be no comparison.
fn usable(contenders: &[Contender<'_>]) -> Result<(), BenchError> {
    let broken = contenders.iter().find_map(|it| {
        let why = it.report.unusable.as_ref()?;
        Some(format!("{}: {why}", it.name()))
    });
    broken.map_or(Ok(()), |why| Err(BenchError::Nothing(why)))
}
