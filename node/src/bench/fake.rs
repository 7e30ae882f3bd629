//! A system that starts nothing and takes its time by a clock of its own: the same figures in every run.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::system::{Process, Role, Sandbox, StartFailure, Started, System, steps};

/// Number n is asked for n ms after the first one and takes 10 ms, of which 4 are for "one".
#[derive(Debug)]
pub(super) struct Fake {
    epoch: Instant,
    next: AtomicUsize,
    failing: Option<usize>,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    alive: usize,
    most_alive: usize,
    starting: usize,
    most: usize,
}

struct FakeSandbox {
    started: Started,
    counts: Arc<Mutex<Counts>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            next: AtomicUsize::new(0),
            failing: None,
            counts: Arc::default(),
        }
    }
}

impl Fake {
    pub(super) fn failing_at(number: usize) -> Self {
        Self {
            failing: Some(number),
            ..Self::default()
        }
    }

    fn counts<R>(&self, with: impl FnOnce(&mut Counts) -> R) -> R {
        with(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn alive(&self) -> usize {
        self.counts(|it| it.alive)
    }

    pub(super) fn most_alive(&self) -> usize {
        self.counts(|it| it.most_alive)
    }

    pub(super) fn most_at_once(&self) -> usize {
        self.counts(|it| it.most)
    }
}

impl System for Fake {
    fn start(&self, _: &str) -> Result<Box<dyn Sandbox>, StartFailure> {
        self.counts(|it| {
            it.starting += 1;
            it.most = it.most.max(it.starting);
        });
        // For the others to come.
        std::thread::sleep(Duration::from_millis(20));
        self.counts(|it| it.starting -= 1);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if self.failing == Some(number) {
            return Err(StartFailure(format!("number {number} does not start")));
        }
        self.counts(|it| {
            it.alive += 1;
            it.most_alive = it.most_alive.max(it.alive);
        });
        let requested = self.epoch + Duration::from_millis(u64::try_from(number).unwrap_or(0));
        let at = |ms| requested + Duration::from_millis(ms);
        Ok(Box::new(FakeSandbox {
            started: Started {
                requested,
                ready: at(10),
                steps: steps(requested, &[("one", at(4)), ("two", at(10))]),
            },
            counts: Arc::clone(&self.counts),
        }))
    }

    fn shared(&self) -> Vec<Process> {
        vec![Process {
            pid: u32::MAX,
            role: Role::Backend,
        }]
    }
}

impl Sandbox for FakeSandbox {
    fn started(&self) -> &Started {
        &self.started
    }

    /// This very process: one that has figures.
    fn processes(&self) -> Vec<Process> {
        vec![Process {
            pid: std::process::id(),
            role: Role::Vmm,
        }]
    }
}

impl Drop for FakeSandbox {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.alive -= 1;
    }
}
