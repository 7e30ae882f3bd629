//! What is measured: anything that starts sandboxes, ours or a peer's.
//!
//! Fair means: the same guest kernel, init and root image for all; a start counts from the request to the
//! moment at which the guest's agent has spoken; each system does it as well as it can.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How a system makes a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It boots a kernel.
    Cold,
    /// It continues from memory that was saved.
    Restore,
}

/// What a process is to a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Runs the guest.
    Vmm,
    /// Serves its disks.
    Backend,
    /// Starts or ends others.
    Helper,
}

/// A process that a system needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) role: Role,
}

/// One start of several parts, in their order. The last one ends when the sandbox is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Started {
    pub(super) requested: Instant,
    pub(super) ready: Instant,
    pub(super) steps: Vec<Step>,
}

impl Started {
    pub(super) fn took(&self) -> Duration {
        self.ready.saturating_duration_since(self.requested)
    }
}

/// A part of a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) took: Duration,
}

/// The steps between instants that follow each other; one that goes back took no time.
pub(super) fn steps(from: Instant, marks: &[(&str, Instant)]) -> Vec<Step> {
    let mut last = from;
    let step = |&(name, at): &(&str, Instant)| {
        let took = at.saturating_duration_since(last);
        last = last.max(at);
        let name = name.to_owned();
        Step { name, took }
    };
    marks.iter().map(step).collect()
}

/// A sandbox that is ready. Dropped, it is ended, and nothing of it is left.
pub(super) trait Sandbox: Send {
    fn started(&self) -> &Started;

    /// Its own processes.
    fn processes(&self) -> Vec<Process>;
}

/// Something that starts sandboxes.
pub(super) trait System: Sync {
    /// Starts one and waits until its agent has spoken. Called from many threads at once. `id` is used once.
    fn start(&self, id: &str) -> Result<Box<dyn Sandbox>, StartFailure>;

    /// Processes that all its sandboxes share.
    fn shared(&self) -> Vec<Process>;
}

/// Why a sandbox did not start, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StartFailure(pub(super) String);

impl fmt::Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error + 'static> From<E> for StartFailure {
    fn from(error: E) -> Self {
        Self(crate::error::chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_the_time_between_marks() {
        let from = Instant::now();
        let at = |ms| from + Duration::from_millis(ms);
        let steps = steps(from, &[("a", at(3)), ("back", at(2)), ("b", at(10))]);
        let took: Vec<_> = steps.iter().map(|it| it.took.as_millis()).collect();
        assert_eq!(took, [3, 0, 7]);
        assert_eq!(steps[2].name, "b");
        let started = Started {
            requested: from,
            ready: at(10),
            steps,
        };
        assert_eq!(started.took(), Duration::from_millis(10));
    }
}
