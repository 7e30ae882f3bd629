//! Figures of a host.

use std::collections::BTreeMap;

use super::admission::Starts;
use super::model::{Phase, Source};
use super::{Inner, PoolStats};
pub use crate::sandbox::backend::figures::BackendFigures;

/// All of them.
#[derive(Clone, Debug)]
pub struct Stats {
    /// How many sandboxes are in which phase; every phase is there.
    pub phases: BTreeMap<Phase, usize>,
    pub pool: PoolStats,
    pub starts: Starts,
    /// Guest memory of those that live.
    pub committed_memory_mib: u64,
    pub backends: Vec<BackendStats>,
}

/// A block backend and what is there because of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendStats {
    pub line: String,
    pub source: Source,
    pub pid: u32,
    /// Its template's zygote, while it lives.
    pub zygote: Option<u32>,
    pub sandboxes: usize,
    /// Absent where it does not say.
    pub figures: Option<BackendFigures>,
}

pub(super) fn of(inner: &Inner) -> Stats {
    let all = [
        Phase::Creating,
        Phase::Ready,
        Phase::Running,
        Phase::Stopping,
        Phase::Stopped,
        Phase::Failed,
    ];
    let mut phases: BTreeMap<Phase, usize> = all.into_iter().map(|phase| (phase, 0)).collect();
    for resident in inner.registry.all() {
        *phases.entry(resident.lock().phase).or_default() += 1;
    }
    let lines = inner.lines.all();
    Stats {
        phases,
        pool: inner.slots.stats(),
        starts: inner.admission.stats(),
        committed_memory_mib: inner.admission.budget().memory_mib(),
        backends: lines
            .iter()
            .map(|line| BackendStats {
                line: line.name.clone(),
                source: line.source.clone(),
                pid: line.backend.pid,
                zygote: line.nursery.pid(),
                sandboxes: line.members(),
                figures: line.figures(),
            })
            .collect(),
    }
}
