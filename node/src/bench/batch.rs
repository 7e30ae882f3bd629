//! Many starts of one system at the same moment, and what they cost together.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::host::CpuClock;
use super::process;
use super::session::Session;
use super::system::{Process, Sandbox, StartFailure, System};

/// What came of them.
pub(super) struct Batch {
    pub(super) ready: Vec<Box<dyn Sandbox>>,
    pub(super) failed: Vec<StartFailure>,
    /// From the first request to the last ready; `None` unless all became ready.
    pub(super) took: Option<Duration>,
    /// All of the host's.
    pub(super) host_cpu: Duration,
    /// Of it the system's processes and ours, those that have ended included.
    pub(super) process_cpu: Duration,
}

/// Starts `count` sandboxes, `at_once` at a time: with `at_once` of `count` or more, all at the same moment.
/// Those that were asked for before an interruption are in the batch; no others are asked for.
pub(super) fn start(system: &dyn System, count: usize, at_once: usize, session: &Session) -> Batch {
    let ids: Vec<String> = (0..count).map(|_| session.next_id()).collect();
    let threads = at_once.clamp(1, count.max(1));
    let barrier = Barrier::new(threads + 1);
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Result<Box<dyn Sandbox>, StartFailure>>> = Mutex::default();
    let work = || {
        barrier.wait();
        while !session.is_interrupted()
            && let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed))
        {
            let result = system.start(id);
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            results.push(result);
            drop(results);
            session.progress.inc(1);
        }
    };
    let shared = Shared::of(system);
    let clock = thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
        // Every thread is there before the clock starts: threads are the bench's, not the system's.
        let clock = CpuClock::now();
        barrier.wait();
        clock
    });
    let host_cpu = CpuClock::now().busy_since(clock);
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (mut ready, mut failed) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(sandbox) => ready.push(sandbox),
            Err(failure) => failed.push(failure),
        }
    }
    let own = ready.iter().flat_map(|it| it.processes()).map(total);
    Batch {
        took: (ready.len() == count).then(|| span(&ready)).flatten(),
        process_cpu: own.sum::<Duration>() + shared.used(system),
        host_cpu,
        ready,
        failed,
    }
}

fn span(ready: &[Box<dyn Sandbox>]) -> Option<Duration> {
    let first = ready.iter().map(|it| it.started().requested).min()?;
    let last = ready.iter().map(|it| it.started().ready).max()?;
    Some(last.saturating_duration_since(first))
}

/// Processor time of a process and of the children that it has waited for.
pub(super) fn total(process: Process) -> Duration {
    process::cpu(process.pid).map_or(Duration::ZERO, |cpu| cpu.own + cpu.children)
}

/// Processes that were there before the batch, with what they had used: the system's common ones, and this
/// one, whose children that end meanwhile count as its own.
pub(super) struct Shared(HashMap<u32, Duration>);

impl Shared {
    pub(super) fn of(system: &dyn System) -> Self {
        Self(all(system).map(|it| (it.pid, total(it))).collect())
    }

    /// What they have used since. One that is new has used it all in this batch.
    pub(super) fn used(&self, system: &dyn System) -> Duration {
        let since = |it: Process| {
            let before = self.0.get(&it.pid).copied().unwrap_or_default();
            total(it).saturating_sub(before)
        };
        all(system).map(since).sum()
    }
}

fn all(system: &dyn System) -> impl Iterator<Item = Process> {
    let this = Process {
        pid: std::process::id(),
        role: super::system::Role::Helper,
    };
    system.shared().into_iter().chain([this])
}

/// Ends sandboxes, as many at a time as helps.
pub(super) fn end(sandboxes: Vec<Box<dyn Sandbox>>) {
    let queue = Mutex::new(sandboxes);
    let threads = thread::available_parallelism().map_or(2, usize::from) * 4;
    let take = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.pop()
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| while take().is_some() {});
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fake::Fake;

    #[test]
    fn all_at_once_means_that_nobody_waits_for_another() {
        let fake = Fake::default();
        let session = Session::quiet();
        let batch = start(&fake, 8, 8, &session);
        assert_eq!((batch.ready.len(), batch.failed.len()), (8, 0));
        assert_eq!(fake.most_at_once(), 8);
        assert_eq!(fake.alive(), 8);
        // The last one is asked for 7 ms after the first and ready 10 ms later, by the fake's clock.
        assert_eq!(batch.took, Some(Duration::from_millis(17)));
        end(batch.ready);
        assert_eq!(fake.alive(), 0);
    }

    #[test]
    fn some_at_a_time_are_never_more_than_that() {
        let fake = Fake::default();
        let batch = start(&fake, 9, 2, &Session::quiet());
        assert_eq!(batch.ready.len(), 9);
        assert!(fake.most_at_once() <= 2);
        end(batch.ready);
        assert!(start(&fake, 0, 4, &Session::quiet()).ready.is_empty());
    }

    #[test]
    fn a_batch_with_a_failure_has_no_time() {
        let fake = Fake::failing_at(3);
        let batch = start(&fake, 5, 5, &Session::quiet());
        assert_eq!((batch.ready.len(), batch.failed.len()), (4, 1));
        assert_eq!(batch.failed[0].to_string(), "number 3 does not start");
        assert_eq!(batch.took, None);
    }

    #[test]
    fn nothing_is_started_after_an_interruption() {
        let fake = Fake::default();
        let session = Session::quiet();
        session.interrupt(2);
        assert!(start(&fake, 5, 2, &session).ready.is_empty());
    }
}
