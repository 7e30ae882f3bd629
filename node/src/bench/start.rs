//! `rundlet bench start`: batches of starts, on a host without other sandboxes and on one with some.
//!
//! Batches of all systems alternate, and take turns in who goes first: what changes on the host meanwhile
//! is everybody's. Between two of them everything is ended and the host has become quiet. With sandboxes
//! deployed there is one system at a time, as its sandboxes are the host's load. The very first start of each
//! does not count.

use std::time::Duration;

use super::batch::{self, Batch};
use super::contender::Contender;
use super::numbers::{Summary, float, sorted};
use super::report::{StartRow, StepMean, milliseconds, rounded};
use super::session::Session;
use super::system::{Sandbox, StartFailure, System};

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartPlan {
    /// Starts for each concurrency, rounded up to whole batches.
    pub count: usize,
    /// Sizes of batches.
    pub concurrency: Vec<usize>,
    /// Sandboxes to have deployed in a second pass; 0 for no such pass.
    pub deployed: usize,
}

/// How many are deployed at a time.
pub(super) const DEPLOY_AT_ONCE: usize = 8;

impl StartPlan {
    fn rounds(&self, at_once: usize) -> usize {
        self.count.div_ceil(at_once.max(1)).max(1)
    }

    /// Sandboxes that one system starts, for the progress.
    fn starts(&self) -> usize {
        let pass: usize = (self.concurrency.iter())
            .map(|&at_once| self.rounds(at_once) * at_once)
            .sum();
        match self.deployed {
            0 => 1 + pass,
            deployed => 1 + 2 * pass + deployed,
        }
    }
}

/// Measures all contenders and writes their rows.
pub(super) fn measure(contenders: &mut [Contender<'_>], plan: &StartPlan, session: &Session) {
    let starts = contenders.len() * plan.starts();
    session
        .progress
        .set_length(starts.try_into().unwrap_or(u64::MAX));
    for contender in contenders.iter_mut() {
        session.say(format!("{}: preparing", contender.name()));
        contender.open();
        if let Some(system) = contender.system() {
            // Not counted: it finds its files on the disk, the others in memory.
            batch::end(batch::start(system, 1, 1, session).ready);
        }
    }
    for &at_once in &plan.concurrency {
        alternate(contenders, plan, at_once, session);
    }
    for contender in contenders.iter_mut() {
        if plan.deployed > 0 && !session.is_interrupted() {
            with_deployed(contender, plan, session);
        }
        contender.close();
    }
}

fn alternate(
    contenders: &mut [Contender<'_>],
    plan: &StartPlan,
    at_once: usize,
    session: &Session,
) {
    let rounds = plan.rounds(at_once);
    let mut tallies: Vec<Tally> = contenders.iter().map(|_| Tally::new(0, at_once)).collect();
    for round in 0..rounds {
        for turn in 0..contenders.len() {
            let place = (round + turn) % contenders.len();
            let (Some(contender), Some(tally)) = (contenders.get(place), tallies.get_mut(place))
            else {
                continue;
            };
            if let Some(system) = contender.system() {
                session.say(format!("{}: {at_once} at once", contender.name()));
                one_batch(system, tally, session);
            }
        }
    }
    for (contender, tally) in contenders.iter_mut().zip(tallies) {
        if contender.system().is_some() {
            contender.report.start.extend(tally.row());
        }
    }
}

fn with_deployed(contender: &mut Contender<'_>, plan: &StartPlan, session: &Session) {
    let Some(system) = contender.system() else {
        return;
    };
    session.say(format!("{}: deploying {}", contender.name(), plan.deployed));
    let (deployed, trouble) = deploy(system, plan.deployed, session);
    let mut rows = Vec::new();
    for &at_once in &plan.concurrency {
        let mut tally = Tally::new(deployed.len(), at_once);
        tally.stopped = trouble.as_ref().map(|why| {
            format!(
                "only {} of {} could be deployed before: {why}",
                deployed.len(),
                plan.deployed
            )
        });
        if trouble.is_none() {
            session.say(format!(
                "{}: {at_once} at once, {} deployed",
                contender.name(),
                deployed.len()
            ));
            for _ in 0..plan.rounds(at_once) {
                one_batch(system, &mut tally, session);
            }
        }
        rows.extend(tally.row());
    }
    batch::end(deployed);
    contender.report.start.extend(rows);
}

/// Starts sandboxes to stay; fewer than asked for, and why, when something is in the way.
fn deploy(
    system: &dyn System,
    count: usize,
    session: &Session,
) -> (Vec<Box<dyn Sandbox>>, Option<String>) {
    let mut deployed = Vec::with_capacity(count);
    while deployed.len() < count && !session.is_interrupted() {
        let next = DEPLOY_AT_ONCE.min(count - deployed.len());
        if let Some(why) = Session::out_of_memory(next, 0) {
            return (deployed, Some(why));
        }
        let batch = batch::start(system, next, next, session);
        deployed.extend(batch.ready);
        if let Some(StartFailure(why)) = batch.failed.into_iter().next() {
            return (deployed, Some(why));
        }
    }
    (deployed, None)
}

fn one_batch(system: &dyn System, tally: &mut Tally, session: &Session) {
    if tally.stopped.is_some() || session.is_interrupted() {
        return;
    }
    tally.stopped = Session::out_of_memory(tally.at_once, 0);
    if tally.stopped.is_none() {
        session.settle();
        let batch = batch::start(system, tally.at_once, tally.at_once, session);
        if !session.is_interrupted() {
            tally.add(&batch);
        }
        batch::end(batch.ready);
    }
}

/// Batches of one size, added up.
#[derive(Debug, Default)]
struct Tally {
    deployed: usize,
    at_once: usize,
    rounds: usize,
    starts_ms: Vec<f64>,
    batches_ms: Vec<f64>,
    failed: usize,
    failure: Option<String>,
    stopped: Option<String>,
    host_cpu: Duration,
    process_cpu: Duration,
    /// Sums, in the order in which the steps come.
    steps: Vec<(String, Duration)>,
}

impl Tally {
    fn new(deployed: usize, at_once: usize) -> Self {
        Self {
            deployed,
            at_once,
            ..Self::default()
        }
    }

    fn add(&mut self, batch: &Batch) {
        self.rounds += 1;
        self.batches_ms.extend(batch.took.map(milliseconds));
        self.host_cpu += batch.host_cpu;
        self.process_cpu += batch.process_cpu;
        self.failed += batch.failed.len();
        if self.failure.is_none() {
            self.failure = batch.failed.first().map(ToString::to_string);
        }
        if batch.ready.is_empty() {
            self.stopped = Some("no start of a whole batch became ready".into());
        }
        for sandbox in &batch.ready {
            let started = sandbox.started();
            self.starts_ms.push(milliseconds(started.took()));
            for step in &started.steps {
                match self.steps.iter_mut().find(|(name, _)| *name == step.name) {
                    Some((_, sum)) => *sum += step.took,
                    None => self.steps.push((step.name.clone(), step.took)),
                }
            }
        }
    }

    /// `None` if nothing was tried.
    fn row(self) -> Option<StartRow> {
        if self.rounds == 0 && self.stopped.is_none() {
            return None;
        }
        let ready = self.starts_ms.len();
        let per_start =
            |time: Duration| (ready > 0).then(|| rounded(milliseconds(time) / float(ready)));
        let steps = self.steps.iter().filter_map(|(name, sum)| {
            Some(StepMean {
                name: name.clone(),
                mean_ms: per_start(*sum)?,
            })
        });
        Some(StartRow {
            deployed: self.deployed,
            at_once: self.at_once,
            rounds: self.rounds,
            ready,
            failed: self.failed,
            failure: self.failure.clone(),
            stopped: self.stopped.clone(),
            batch_ms: Summary::of(&self.batches_ms),
            start_ms: Summary::of(&self.starts_ms),
            starts_ms: sorted(&self.starts_ms),
            host_cpu_ms: per_start(self.host_cpu),
            process_cpu_ms: per_start(self.process_cpu),
            steps: steps.collect(),
        })
    }
}

#[cfg(test)]
mod tests;
