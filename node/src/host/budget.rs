//! How much there may be at a time: living sandboxes and their memory have a limit. Who finds the node full waits as
//! long as is configured, and is refused with a reason then.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{HostError, LimitsConfig};

/// What the living may have, and have.
#[derive(Debug)]
pub(super) struct Budget {
    sandboxes: u32,
    memory_mib: Option<u64>,
    patience: Duration,
    taken: Mutex<Taken>,
    /// Something was given back.
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    sandboxes: u64,
    memory_mib: u64,
    /// Nobody gets anything any more.
    closed: bool,
}

/// A sandbox's part, given back when dropped.
#[derive(Debug)]
pub(super) struct Part {
    budget: Arc<Budget>,
    memory_mib: u32,
}

impl Budget {
    pub(super) fn new(limits: &LimitsConfig, patience: Duration) -> Self {
        Self {
            sandboxes: limits.sandboxes,
            memory_mib: limits.memory_mib,
            patience,
            taken: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A part for one more sandbox, perhaps after a while.
    pub(super) fn take(self: &Arc<Self>, memory_mib: u32) -> Result<Part, HostError> {
        let deadline = Instant::now() + self.patience;
        let mut taken = self.lock();
        while let Err(full) = self.fits(&taken, memory_mib) {
            let left = deadline.saturating_duration_since(Instant::now());
            // What no end of others can make possible is not waited for.
            if taken.closed || left.is_zero() || self.fits(&Taken::default(), memory_mib).is_err() {
                return Err(full);
            }
            let woken = self.changed.wait_timeout(taken, left);
            taken = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        taken.sandboxes += 1;
        taken.memory_mib = taken.memory_mib.saturating_add(memory_mib.into());
        drop(taken);
        Ok(self.part(memory_mib))
    }

    fn fits(&self, taken: &Taken, memory_mib: u32) -> Result<(), HostError> {
        if taken.closed {
            return Err(HostError::Closing);
        }
        if taken.sandboxes >= self.sandboxes.into() {
            return Err(HostError::Full {
                what: "sandboxes",
                limit: self.sandboxes.into(),
                message: format!(
                    "{} sandboxes live already, which is the limit (limits.sandboxes)",
                    self.sandboxes
                ),
            });
        }
        match self.memory_mib {
            Some(most) if taken.memory_mib.saturating_add(memory_mib.into()) > most => {
                Err(HostError::Full {
                    what: "memory",
                    limit: most,
                    message: format!(
                        "{memory_mib} MiB more than the {} MiB that sandboxes have would be over the limit of {most} MiB (limits.memory_mib)",
                        taken.memory_mib
                    ),
                })
            }
            _ => Ok(()),
        }
    }

    /// The part of a sandbox that lives already, whatever the limit is now.
    pub(super) fn keep(self: &Arc<Self>, memory_mib: u32) -> Part {
        let mut taken = self.lock();
        taken.sandboxes += 1;
        taken.memory_mib = taken.memory_mib.saturating_add(memory_mib.into());
        drop(taken);
        self.part(memory_mib)
    }

    fn part(self: &Arc<Self>, memory_mib: u32) -> Part {
        Part {
            budget: Arc::clone(self),
            memory_mib,
        }
    }

    pub(super) fn memory_mib(&self) -> u64 {
        self.lock().memory_mib
    }

    /// Refuses whoever comes, and who waits.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut taken = self.budget.lock();
        taken.sandboxes = taken.sandboxes.saturating_sub(1);
        taken.memory_mib = taken.memory_mib.saturating_sub(self.memory_mib.into());
        drop(taken);
        // What one waits for may be too little, and enough for another.
        self.budget.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn budget(patience: Duration) -> Arc<Budget> {
        let limits = LimitsConfig {
            sandboxes: 2,
            memory_mib: Some(300),
            starts_at_once: 2,
            start_queue: 3,
            start_deadline_s: 60,
            first_command_s: 60,
            ended_records: 0,
            defaults: crate::host::model::Limits::default(),
        };
        Arc::new(Budget::new(&limits, patience))
    }

    fn full(result: Result<Part, HostError>) -> (&'static str, u64) {
        match result {
            Err(HostError::Full { what, limit, .. }) => (what, limit),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_living_have_a_limit_of_number_and_memory() {
        let budget = budget(Duration::ZERO);
        let first = budget.take(200).unwrap();
        assert_eq!(full(budget.take(101)), ("memory", 300));
        let second = budget.take(100).unwrap();
        assert_eq!(full(budget.take(0)), ("sandboxes", 2));
        drop(first);
        assert_eq!(budget.memory_mib(), 100);
        let third = budget.take(200).unwrap();
        drop((second, third));
        assert_eq!(budget.memory_mib(), 0);
        // One that lives already is never refused.
        let found = budget.keep(5000);
        assert!(budget.take(1).is_err());
        drop(found);
    }

    #[test]
    fn who_may_wait_gets_what_another_gives_back_and_no_more() {
        let budget = budget(Duration::from_secs(600));
        let (first, second) = (budget.take(100).unwrap(), budget.take(100).unwrap());
        let waits = thread::spawn({
            let budget = Arc::clone(&budget);
            move || budget.take(250)
        });
        drop(first);
        assert!(!waits.is_finished(), "there is a place, and no memory");
        drop(second);
        let third = waits.join().unwrap().unwrap();
        assert_eq!(budget.memory_mib(), 250);
        // More than there can ever be is refused at once.
        assert_eq!(full(budget.take(301)), ("memory", 300));
        let waits = thread::spawn({
            let budget = Arc::clone(&budget);
            move || budget.take(100)
        });
        budget.close();
        assert!(matches!(waits.join().unwrap(), Err(HostError::Closing)));
        drop(third);
    }

    #[test]
    fn nobody_waits_longer_than_is_configured() {
        let budget = budget(Duration::from_millis(50));
        let held = budget.take(300).unwrap();
        let since = Instant::now();
        assert_eq!(full(budget.take(1)), ("memory", 300));
        assert!(since.elapsed() >= Duration::from_millis(50));
        drop(held);
    }
}
