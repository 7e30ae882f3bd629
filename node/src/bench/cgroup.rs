//! `rundlet bench cgroup`: what a cgroup for each sandbox costs a start, from a pool and without one.
//!
//! A start here is a process that waits, in a cgroup with limits of its own, made by one small process as a zygote makes
//! sandboxes. All ways do the same fork, which is measured alone as well and taken off before ways are compared.

mod birth;
pub mod midwife;
mod report;
mod way;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime};

use super::session::Session;
use super::{BenchError, Output, host};
use crate::error::{PathError, chain};
use crate::host::model::Limits;
use crate::pool::dismantle;
use report::{CgroupReport, Measured};
use way::{WayName, Ways};

pub use way::WayError;

/// Where nothing else is.
pub const ROOT: &str = "/sys/fs/cgroup/rundlet-bench";

/// Enough for what a start calls; mappings of the starter are copied by each fork.
const STACK: usize = 64 * 1024;

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPlan {
    /// Starts of a batch: all of them begin at the same moment.
    pub at_once: Vec<u32>,
    /// Starts by each way for each of these, rounded up to whole batches.
    pub count: u32,
    /// A directory of the cgroup2 hierarchy, made and removed.
    pub root: PathBuf,
    /// A file for JSON, `-` for stdout instead of the table.
    pub json: Option<PathBuf>,
}

/// Limits of every start: all that a slot can have but those of a disk.
fn limits() -> Limits {
    Limits {
        cpu_millis: Some(1000),
        memory_mib: Some(256),
        pids: Some(64),
        io: Vec::new(),
    }
}

/// Measures, writes, prints.
///
/// # Errors
/// There is nothing to tell.
pub fn run(plan: &CgroupPlan) -> Result<(), BenchError> {
    let output = Output {
        json: plan.json.clone(),
        html: None,
    };
    for path in output.files() {
        fs::write(path, "").map_err(PathError::at("write", path))?;
    }
    if plan.root.exists() {
        return Err(WayError::There(plan.root.clone()).into());
    }
    let session = Session::open(Duration::ZERO).map_err(BenchError::Signals)?;
    let measured = measure(plan, &session);
    session.progress.finish_and_clear();
    if let Err(error) = dismantle(&plan.root) {
        log::warn!("{}", chain(&error));
    }
    if let Some(signal) = session.interruption() {
        return Err(BenchError::Interrupted(signal));
    }
    let report = CgroupReport::of(host::describe(), limits(), &measured?);
    if let Some(path) = output.files().next() {
        fs::write(path, report.json()).map_err(PathError::at("write", path))?;
    }
    super::print(&if output.json_to_stdout() {
        report.json()
    } else {
        report.table()
    })
}

fn measure(plan: &CgroupPlan, session: &Session) -> Result<Vec<Measured>, WayError> {
    let slots = plan.at_once.iter().copied().max().unwrap_or(1);
    let ways = Ways::open(&plan.root, slots, &limits())?;
    let mut all = Vec::new();
    for &at_once in &plan.at_once {
        session.say(format!("{at_once} at once"));
        let mut measured = WayName::ALL.map(|way| Measured::new(way, at_once));
        for batch in 0..plan.count.div_ceil(at_once) {
            // Whatever one way leaves to the next is left to each of them.
            let turns = measured.len();
            for turn in 0..turns {
                if session.is_interrupted() {
                    return Ok(all);
                }
                let turn = (turn + usize::try_from(batch).unwrap_or(0)) % turns;
                if let Some(of) = measured.get_mut(turn) {
                    self::batch(&ways, of)?;
                }
            }
        }
        all.extend(measured);
    }
    Ok(all)
}

/// Many starts at the same moment, and their end.
fn batch(ways: &Ways, of: &mut Measured) -> Result<(), WayError> {
    let way = of.way;
    let start = || ways.start(way).map(|started| (Instant::now(), started));
    let midwife = ways.midwife.cpu();
    let AtOnce {
        results,
        began,
        cpu,
    } = at_once(of.at_once, start)?;
    let cpu = cpu + ways.midwife.cpu().saturating_sub(midwife);
    let mut ended = began;
    let mut each = Vec::with_capacity(results.len());
    let mut started = Vec::with_capacity(results.len());
    for (began, result) in results {
        let (ready, one) = result?;
        ended = ended.max(ready);
        each.push(ready.saturating_duration_since(began));
        started.push(one);
    }
    let cpu_before = cpu_time();
    ways.end(started)?;
    let end_cpu = cpu_time().saturating_sub(cpu_before);
    of.add(&each, ended.saturating_duration_since(began), cpu, end_cpu);
    Ok(())
}

/// What came of many calls at the same moment.
struct AtOnce<T> {
    /// When each began, and what it returned.
    results: Vec<(Instant, T)>,
    /// When the first could begin.
    began: Instant,
    /// Processor time of all threads.
    cpu: Duration,
}

/// Runs `each` in so many threads, which wait for each other first.
fn at_once<T: Send>(count: u32, each: impl Fn() -> T + Sync) -> Result<AtOnce<T>, WayError> {
    let gate = RwLock::new(());
    let arrived = AtomicU32::new(0);
    let run = || {
        arrived.fetch_add(1, Ordering::Relaxed);
        drop(gate.read());
        (Instant::now(), each())
    };
    thread::scope(|scope| {
        let closed = gate.write();
        let threads: io::Result<Vec<_>> = (0..count)
            .map(|_| {
                let thread = thread::Builder::new().stack_size(STACK);
                thread.spawn_scoped(scope, run)
            })
            .collect();
        // The gate opens also when there are too few: those that are there have to end.
        let threads = threads.map_err(WayError::Thread)?;
        while arrived.load(Ordering::Relaxed) < count {
            thread::sleep(Duration::from_millis(1));
        }
        let (cpu, began) = (cpu_time(), Instant::now());
        drop(closed);
        let results = threads
            .into_iter()
            .map(|it| it.join().expect("starts do not panic"));
        Ok(AtOnce {
            results: results.collect(),
            began,
            cpu: cpu_time().saturating_sub(cpu),
        })
    })
}

/// Of all threads of this process.
fn cpu_time() -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(tv_sec).unwrap_or(0),
        u32::try_from(tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_begin_when_all_are_there() {
        let there = AtomicU32::new(0);
        let seen = at_once(20, || there.fetch_add(1, Ordering::Relaxed)).unwrap();
        assert!(seen.results.iter().all(|(at, _)| *at >= seen.began));
        let mut numbers: Vec<u32> = seen.results.into_iter().map(|(_, number)| number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn a_root_that_is_there_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let plan = CgroupPlan {
            at_once: vec![1],
            count: 1,
            root: directory.path().to_path_buf(),
            json: None,
        };
        let error = run(&plan).unwrap_err().to_string();
        assert!(error.contains("is there already"), "{error}");
        assert!(directory.path().exists());
    }
}
