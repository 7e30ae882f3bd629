//! Starts in a row: each begins as soon as a starter is free, and the oldest sandbox is ended for it once as many live as
//! may. So a start is paid for with an end, as on a host that is full.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::super::batch::{self, Shared, total};
use super::super::contender::Contender;
use super::super::host::CpuClock;
use super::super::numbers::{Summary, float};
use super::super::report::{milliseconds, rounded};
use super::super::session::Session;
use super::super::system::{Sandbox, StartFailure, System};

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SustainedPlan {
    pub(super) count: usize,
    pub(super) alive: usize,
    /// Not more than `alive`.
    pub(super) at_once: usize,
}

/// Many failures in a row are a system that is broken, and the rest would only be more of them.
const FAILURES: usize = 10;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct SustainedRow {
    pub(super) system: String,
    pub(super) alive: usize,
    pub(super) at_once: usize,
    pub(super) ready: usize,
    pub(super) failed: usize,
    /// The first failure's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<String>,
    /// Why there are fewer starts than asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stopped: Option<String>,
    /// From the first request to the last ready.
    pub(super) took_s: f64,
    pub(super) starts_per_s: f64,
    /// From a start's request to its ready; the end that made room for it is not in it.
    pub(super) start_ms: Option<Summary>,
    /// For each ready start, ends included: all of the host's processor time, and of it the system's and ours.
    pub(super) host_cpu_ms: Option<f64>,
    pub(super) process_cpu_ms: Option<f64>,
}

/// Measures one system after the other.
pub(super) fn measure(
    contenders: &mut [Contender<'_>],
    plan: &SustainedPlan,
    session: &Session,
) -> Vec<SustainedRow> {
    let starts = contenders.len() * (1 + plan.count);
    session.progress.reset();
    session
        .progress
        .set_length(starts.try_into().unwrap_or(u64::MAX));
    let mut rows = Vec::new();
    for contender in contenders {
        if session.is_interrupted() {
            break;
        }
        session.say(format!(
            "{}: {} starts, at most {} alive",
            contender.name(),
            plan.count,
            plan.alive
        ));
        contender.open();
        if let Some(system) = contender.system() {
            // Not counted: it finds its files on the disk, the others in memory.
            batch::end(batch::start(system, 1, 1, session).ready);
            session.settle();
            rows.push(one(contender.name(), system, plan, session));
        }
        contender.close();
    }
    rows
}

/// What the starters share.
#[derive(Default)]
struct Living {
    /// The oldest first.
    ready: VecDeque<Box<dyn Sandbox>>,
    /// Begun, whatever became of them.
    begun: usize,
    /// Places that are taken: by those that are ready, and in starters' hands.
    taken: usize,
    started: Vec<(Instant, Instant)>,
    failed: usize,
    failure: Option<String>,
    stopped: Option<String>,
}

/// A place for a start, and who has to be ended for it.
struct Turn(Option<Box<dyn Sandbox>>);

impl Living {
    fn turn(&mut self, plan: &SustainedPlan) -> Option<Turn> {
        if self.begun == plan.count || self.stopped.is_some() {
            return None;
        }
        if self.taken < plan.alive {
            self.stopped = Session::out_of_memory(1, 0);
            if self.stopped.is_some() {
                return None;
            }
            self.taken += 1;
            self.begun += 1;
            return Some(Turn(None));
        }
        // Starters are not more than places, so that not all places are in their hands.
        let oldest = self.ready.pop_front()?;
        self.begun += 1;
        Some(Turn(Some(oldest)))
    }

    fn done(&mut self, result: Result<Box<dyn Sandbox>, StartFailure>) {
        match result {
            Ok(sandbox) => {
                let started = sandbox.started();
                self.started.push((started.requested, started.ready));
                self.ready.push_back(sandbox);
            }
            Err(failure) => {
                self.taken -= 1;
                self.failed += 1;
                self.failure.get_or_insert(failure.0);
                if self.started.is_empty() && self.failed >= FAILURES {
                    self.stopped = Some(format!("the first {} starts failed", self.failed));
                }
            }
        }
    }
}

fn one(name: &str, system: &dyn System, plan: &SustainedPlan, session: &Session) -> SustainedRow {
    let living = Mutex::new(Living::default());
    let lock = || living.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        while !session.is_interrupted() {
            let Some(Turn(oldest)) = lock().turn(plan) else {
                return;
            };
            drop(oldest);
            let result = system.start(&session.next_id());
            lock().done(result);
            session.progress.inc(1);
        }
    };
    let shared = Shared::of(system);
    let clock = CpuClock::now();
    thread::scope(|scope| {
        for _ in 0..plan.at_once {
            scope.spawn(work);
        }
    });
    let host_cpu = CpuClock::now().busy_since(clock);
    let living = living.into_inner().unwrap_or_else(PoisonError::into_inner);
    let own = living.ready.iter().flat_map(|it| it.processes()).map(total);
    let process_cpu = own.sum::<Duration>() + shared.used(system);
    let row = row(name, plan, &living, host_cpu, process_cpu);
    batch::end(living.ready.into());
    row
}

fn row(
    name: &str,
    plan: &SustainedPlan,
    living: &Living,
    host_cpu: Duration,
    process_cpu: Duration,
) -> SustainedRow {
    let took = |&(requested, ready): &(Instant, Instant)| {
        milliseconds(ready.saturating_duration_since(requested))
    };
    let starts_ms: Vec<f64> = living.started.iter().map(took).collect();
    let ready = starts_ms.len();
    let first = living.started.iter().map(|(requested, _)| *requested).min();
    let last = living.started.iter().map(|(_, ready)| *ready).max();
    let took = last.zip(first).map(|(last, first)| last - first);
    let took_s = took.unwrap_or_default().as_secs_f64();
    let per_start =
        |time: Duration| (ready > 0).then(|| rounded(milliseconds(time) / float(ready)));
    SustainedRow {
        system: name.into(),
        alive: plan.alive,
        at_once: plan.at_once,
        ready,
        failed: living.failed,
        failure: living.failure.clone(),
        stopped: living.stopped.clone(),
        took_s: rounded(took_s),
        starts_per_s: if took_s > 0.0 {
            rounded(float(ready) / took_s)
        } else {
            0.0
        },
        start_ms: Summary::of(&starts_ms),
        host_cpu_ms: per_start(host_cpu),
        process_cpu_ms: per_start(process_cpu),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fake::Fake;

    fn plan(count: usize, alive: usize, at_once: usize) -> SustainedPlan {
        SustainedPlan {
            count,
            alive,
            at_once,
        }
    }

    #[test]
    fn never_more_live_than_may_and_all_are_started() {
        let fake = Fake::default();
        let row = one("fake", &fake, &plan(20, 4, 3), &Session::quiet());
        assert_eq!((row.ready, row.failed, &row.stopped), (20, 0, &None));
        assert!(fake.most_alive() <= 4, "{}", fake.most_alive());
        assert!(fake.most_at_once() <= 3);
        assert_eq!(fake.alive(), 0);
        // By the fake's clock one is asked for each millisecond, and ready 10 later: 29 ms for 20.
        assert!((row.took_s - 0.029).abs() < 1e-9, "{row:?}");
        assert!((row.starts_per_s - 20.0 / 0.029).abs() < 0.001, "{row:?}");
        assert!((row.start_ms.unwrap().p50 - 10.0).abs() < 0.01);
        assert!(row.process_cpu_ms.is_some() && row.host_cpu_ms.is_some());
    }

    #[test]
    fn as_many_starters_as_places_do_not_wait_for_each_other() {
        let fake = Fake::default();
        let row = one("fake", &fake, &plan(9, 2, 2), &Session::quiet());
        assert_eq!((row.ready, fake.most_alive() <= 2), (9, true));
    }

    #[test]
    fn a_failure_is_counted_and_gives_its_place_back() {
        let fake = Fake::failing_at(1);
        let row = one("fake", &fake, &plan(6, 2, 1), &Session::quiet());
        assert_eq!((row.ready, row.failed), (5, 1));
        assert_eq!(row.failure.as_deref(), Some("number 1 does not start"));
        assert_eq!(fake.alive(), 0);
    }

    #[test]
    fn what_never_works_is_given_up() {
        let mut living = Living::default();
        for _ in 0..FAILURES {
            living.taken += 1;
            living.done(Err(StartFailure("no".into())));
        }
        assert!(living.turn(&plan(100, 4, 1)).is_none());
        let row = row(
            "x",
            &plan(100, 4, 1),
            &living,
            Duration::ZERO,
            Duration::ZERO,
        );
        assert_eq!((row.ready, row.failed), (0, FAILURES));
        assert_eq!((row.start_ms, row.host_cpu_ms), (None, None));
        assert_eq!(row.stopped.as_deref(), Some("the first 10 starts failed"));
    }

    #[test]
    fn nothing_is_started_after_an_interruption() {
        let session = Session::quiet();
        session.interrupt(2);
        let row = one("fake", &Fake::default(), &plan(5, 2, 1), &session);
        assert_eq!((row.ready, row.failed), (0, 0));
    }
}
