//! Figures of a daemon, for Prometheus.
//!
//! What happens is counted here as it happens ([`Metrics`]); what is so at the moment is asked of the node when the
//! figures are read ([`Figures`]). Names and units follow Prometheus' conventions; `docs/grafana-dashboard.json` shows
//! them, and uses no other.

mod text;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::host::BackendFigures;
use crate::host::model::Phase;

/// Names and values.
type Labels = Vec<(&'static str, String)>;

/// Upper ends of the buckets of a start, seconds: clones take milliseconds natively, cold boots under emulation many
/// seconds.
const START_BUCKETS: [f64; 15] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// The same of a request, most of which are answered from memory.
const REQUEST_BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0,
];

/// What is so at the moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Sandboxes by phase; a phase that is not there has none.
    pub sandboxes: Vec<(Phase, u64)>,
    pub slots: Slots,
    /// Starts that are worked on.
    pub starts_running: u64,
    /// Starts that wait for their turn.
    pub starts_queued: u64,
    /// Starts since the daemon began, by what came of them: `admitted`, or why they were refused.
    pub starts: Vec<(String, u64)>,
    /// Guest memory of all living sandboxes.
    pub memory_committed_bytes: u64,
    /// What living sandboxes use, by what they are made of.
    pub classes: Vec<Class>,
    /// Block backends that say how they are doing.
    pub backends: Vec<Backend>,
}

/// Slots of the cgroup pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    pub free: u64,
    pub claimed: u64,
    pub releasing: u64,
    pub set_aside: u64,
}

/// Living sandboxes of one image or template, together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Class {
    /// `image` or `template`.
    pub kind: &'static str,
    pub name: String,
    pub memory_bytes: u64,
    pub cpu_us: u64,
}

/// One block backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// What it serves: `image` or `template`, and its name.
    pub kind: &'static str,
    pub name: String,
    pub figures: BackendFigures,
}

/// What happens. Clones count together.
#[derive(Clone)]
pub struct Metrics(Arc<Counted>);

struct Counted {
    registry: Registry,
    starts: Family<Labels, Histogram, fn() -> Histogram>,
    requests: Family<Labels, Histogram, fn() -> Histogram>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let starts =
            Family::new_with_constructor((|| Histogram::new(START_BUCKETS)) as fn() -> Histogram);
        let requests =
            Family::new_with_constructor((|| Histogram::new(REQUEST_BUCKETS)) as fn() -> Histogram);
        registry.register_with_unit(
            "rundlet_sandbox_start",
            "Time from the start's turn to the end of each phase of it",
            Unit::Seconds,
            starts.clone(),
        );
        registry.register_with_unit(
            "rundlet_http_request",
            "Time from a request's head to its answer's head",
            Unit::Seconds,
            requests.clone(),
        );
        Self(Arc::new(Counted {
            registry,
            starts,
            requests,
        }))
    }

    /// A phase of a start has ended; `source` is `image` or `template`.
    pub fn start(&self, phase: &'static str, source: &'static str, took: Duration) {
        let labels = vec![("phase", phase.into()), ("source", source.into())];
        self.0
            .starts
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// `route` is a path with its parameters' names, so that there are not more of them than routes.
    pub(crate) fn request(&self, method: &Method, route: String, code: u16, took: Duration) {
        // A method of the client's invention would be a series of the client's invention.
        let method = match *method {
            Method::GET | Method::POST | Method::DELETE => method.to_string(),
            _ => "other".into(),
        };
        let labels = vec![
            ("method", method),
            ("route", route),
            ("code", code.to_string()),
        ];
        self.0
            .requests
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// All of it as OpenMetrics text.
    ///
    /// # Errors
    /// A figure cannot be written.
    pub fn text(&self, figures: &Figures) -> Result<String, fmt::Error> {
        text::write(&self.0.registry, figures)
    }
}

#[cfg(test)]
mod tests;
