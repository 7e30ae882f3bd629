//! Who may start, and when: starts wait in a queue with an end, in the order they came, no longer than the
//! deadline. Then there has to be room ([`Budget`]). What is over a limit is refused with a reason.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::budget::Budget;
use super::{HostError, LimitsConfig};

/// The queue of starts, and what the living have taken.
#[derive(Debug)]
pub(super) struct Admission {
    starts: Arc<Semaphore>,
    at_once: usize,
    queue: u32,
    deadline: Duration,
    waiting: AtomicUsize,
    admitted: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
    budget: Arc<Budget>,
}

/// The right to start one sandbox, until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    _permit: OwnedSemaphorePermit,
}

/// Starts, as figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Starts {
    pub running: usize,
    pub queued: usize,
    pub admitted_total: u64,
    /// By reason.
    pub refused_total: BTreeMap<&'static str, u64>,
}

impl Admission {
    /// `patience` is for who finds the node full.
    pub(super) fn new(limits: &LimitsConfig, patience: Duration) -> Self {
        let at_once = usize::try_from(limits.starts_at_once).unwrap_or(usize::MAX);
        let at_once = at_once.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            starts: Arc::new(Semaphore::new(at_once)),
            at_once,
            queue: limits.start_queue,
            deadline: Duration::from_secs(limits.start_deadline_s),
            waiting: AtomicUsize::new(0),
            admitted: AtomicU64::new(0),
            refused: Mutex::default(),
            budget: Arc::new(Budget::new(limits, patience)),
        }
    }

    /// Waits for a turn.
    pub(super) async fn admit(&self) -> Result<Admitted, HostError> {
        let result = self.turn().await;
        match &result {
            Ok(_) => drop(self.admitted.fetch_add(1, Ordering::Relaxed)),
            Err(error) => self.refuse(error.kind()),
        }
        result
    }

    async fn turn(&self) -> Result<Admitted, HostError> {
        // Free permits are there only while nobody waits.
        if let Ok(permit) = Arc::clone(&self.starts).try_acquire_owned() {
            return Ok(Admitted { _permit: permit });
        }
        let _place = Waiting::enter(&self.waiting, self.queue)?;
        let turn = Arc::clone(&self.starts).acquire_owned();
        match tokio::time::timeout(self.deadline, turn).await {
            Ok(Ok(permit)) => Ok(Admitted { _permit: permit }),
            Ok(Err(_)) => Err(HostError::Closing),
            Err(_) => Err(HostError::Late {
                message: format!(
                    "no start was possible within {} seconds: {} were at work and others before this one",
                    self.deadline.as_secs(),
                    self.at_once
                ),
            }),
        }
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Counts a refusal.
    pub(super) fn refuse(&self, reason: &'static str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry(reason).or_default() += 1;
    }

    pub(super) fn stats(&self) -> Starts {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        Starts {
            running: self.at_once.saturating_sub(self.starts.available_permits()),
            queued: self.waiting.load(Ordering::Relaxed),
            admitted_total: self.admitted.load(Ordering::Relaxed),
            refused_total: refused.clone(),
        }
    }

    /// Nobody is admitted any more; those who wait are told.
    pub(super) fn close(&self) {
        self.starts.close();
        self.budget.close();
    }
}

/// A place in the queue.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize, most: u32) -> Result<Self, HostError> {
        let place = Self(count);
        let before = count.fetch_add(1, Ordering::Relaxed);
        if before < usize::try_from(most).unwrap_or(usize::MAX) {
            return Ok(place);
        }
        Err(HostError::Full {
            what: "start_queue",
            limit: most.into(),
            message: format!("{most} starts wait already, which is the limit (limits.start_queue)"),
        })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> LimitsConfig {
        LimitsConfig {
            sandboxes: 2,
            memory_mib: None,
            starts_at_once: 2,
            start_queue: 3,
            start_deadline_s: 60,
            first_command_s: 60,
            ended_records: 0,
            defaults: crate::host::model::Limits::default(),
        }
    }

    #[tokio::test]
    async fn a_burst_is_served_in_order_and_the_rest_is_refused_at_once() {
        let admission = Arc::new(Admission::new(&limits(), Duration::ZERO));
        let first = admission.admit().await.unwrap();
        let second = admission.admit().await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..3 {
            let (admission_, order) = (Arc::clone(&admission), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let admitted = admission_.admit().await.unwrap();
                order.lock().unwrap().push(number);
                drop(admitted);
            }));
            while admission.stats().queued <= number {
                tokio::task::yield_now().await;
            }
        }
        let refused = admission.admit().await.unwrap_err();
        assert!(
            matches!(
                refused,
                HostError::Full {
                    what: "start_queue",
                    limit: 3,
                    ..
                }
            ),
            "{refused}"
        );
        drop((first, second));
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
        let stats = admission.stats();
        assert_eq!((stats.running, stats.queued), (0, 0));
        assert_eq!(stats.admitted_total, 5);
        assert_eq!(stats.refused_total["start_queue"], 1);
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_the_deadline() {
        let admission = Admission::new(
            &LimitsConfig {
                start_deadline_s: 0,
                ..limits()
            },
            Duration::ZERO,
        );
        let held = (
            admission.admit().await.unwrap(),
            admission.admit().await.unwrap(),
        );
        let late = admission.admit().await.unwrap_err();
        assert!(matches!(late, HostError::Late { .. }), "{late}");
        assert_eq!(admission.stats().queued, 0);
        drop(held);
        admission.admit().await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_when_the_daemon_ends_is_told() {
        let admission = Arc::new(Admission::new(&limits(), Duration::ZERO));
        let held = (
            admission.admit().await.unwrap(),
            admission.admit().await.unwrap(),
        );
        let waits = Arc::clone(&admission);
        let waits = tokio::spawn(async move { waits.admit().await });
        while admission.stats().queued == 0 {
            tokio::task::yield_now().await;
        }
        admission.close();
        assert!(matches!(waits.await.unwrap(), Err(HostError::Closing)));
        assert!(matches!(admission.admit().await, Err(HostError::Closing)));
        drop(held);
    }
}
