//! Figures of the moment as a registry of their own, and all of it as text.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{Backend, Class, Figures, Labels, Slots};
use crate::host::BackendFigures;
use crate::host::model::Phase;

/// All phases, so that a series is there before its first sandbox is.
const PHASES: [(Phase, &str); 6] = [
    (Phase::Creating, "creating"),
    (Phase::Ready, "ready"),
    (Phase::Running, "running"),
    (Phase::Stopping, "stopping"),
    (Phase::Stopped, "stopped"),
    (Phase::Failed, "failed"),
];

pub(super) fn write(counted: &Registry, figures: &Figures) -> Result<String, fmt::Error> {
    let mut moment = Registry::default();
    sandboxes(&mut moment, figures);
    slots(&mut moment, figures.slots);
    starts(&mut moment, figures);
    classes(&mut moment, &figures.classes);
    backends(&mut moment, &figures.backends);
    let mut text = String::new();
    encode_registry(&mut text, counted)?;
    encode_registry(&mut text, &moment)?;
    encode_eof(&mut text)?;
    Ok(text)
}

/// Series of whole numbers that go up and down.
fn gauge(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    series: impl IntoIterator<Item = (Labels, u64)>,
) {
    let family = Family::<Labels, Gauge<u64, AtomicU64>>::default();
    for (labels, value) in series {
        family.get_or_create(&labels).set(value);
    }
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, family),
        None => registry.register(name, help, family),
    }
}

/// One whole number that goes up and down.
fn lone(registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>, value: u64) {
    let gauge = Gauge::<u64, AtomicU64>::default();
    gauge.set(value);
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, gauge),
        None => registry.register(name, help, gauge),
    }
}

/// Series of whole numbers that only go up.
fn counter(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    series: impl IntoIterator<Item = (Labels, u64)>,
) {
    let family = Family::<Labels, Counter>::default();
    for (labels, value) in series {
        family.get_or_create(&labels).inc_by(value);
    }
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, family),
        None => registry.register(name, help, family),
    }
}

fn one(name: &'static str, value: impl Into<String>) -> Labels {
    vec![(name, value.into())]
}

fn sandboxes(registry: &mut Registry, figures: &Figures) {
    let count = |phase| {
        let found = figures.sandboxes.iter().find(|(it, _)| *it == phase);
        found.map_or(0, |(_, count)| *count)
    };
    gauge(
        registry,
        "rundlet_sandboxes",
        "Sandboxes by phase, records of ended ones included",
        None,
        PHASES.map(|(phase, name)| (one("phase", name), count(phase))),
    );
    lone(
        registry,
        "rundlet_memory_committed",
        "Guest memory of all living sandboxes, used or not",
        Some(Unit::Bytes),
        figures.memory_committed_bytes,
    );
}

fn slots(registry: &mut Registry, slots: Slots) {
    let states = [
        ("free", slots.free),
        ("claimed", slots.claimed),
        ("releasing", slots.releasing),
        ("set_aside", slots.set_aside),
    ];
    gauge(
        registry,
        "rundlet_pool_slots",
        "Slots of the cgroup pool by state",
        None,
        states.map(|(state, count)| (one("state", state), count)),
    );
}

fn starts(registry: &mut Registry, figures: &Figures) {
    lone(
        registry,
        "rundlet_starts_running",
        "Starts that are worked on",
        None,
        figures.starts_running,
    );
    lone(
        registry,
        "rundlet_start_queue_length",
        "Starts that wait for their turn",
        None,
        figures.starts_queued,
    );
    let starts = figures.starts.iter();
    counter(
        registry,
        "rundlet_starts",
        "Starts that were asked for, by what the queue said",
        None,
        starts.map(|(result, count)| (one("result", result), *count)),
    );
}

fn classes(registry: &mut Registry, classes: &[Class]) {
    let labels = |it: &Class| vec![("kind", it.kind.into()), ("source", it.name.clone())];
    gauge(
        registry,
        "rundlet_class_memory",
        "memory.current of living sandboxes, by what they are made of",
        Some(Unit::Bytes),
        classes.iter().map(|it| (labels(it), it.memory_bytes)),
    );
    let cpu = Family::<Labels, Gauge<f64, AtomicU64>>::default();
    for class in classes {
        let seconds = std::time::Duration::from_micros(class.cpu_us).as_secs_f64();
        cpu.get_or_create(&labels(class)).set(seconds);
    }
    // A gauge: it falls when a sandbox ends.
    registry.register_with_unit(
        "rundlet_class_cpu",
        "CPU time that living sandboxes have used, by what they are made of",
        Unit::Seconds,
        cpu,
    );
}

/// Several of one source, an old one and its successor, are one series.
fn backends(registry: &mut Registry, backends: &[Backend]) {
    if backends.is_empty() {
        return;
    }
    let labels = |it: &Backend| vec![("kind", it.kind.into()), ("source", it.name.clone())];
    let mut add = |name, help, unit, value: fn(&BackendFigures) -> u64| {
        let series = backends.iter().map(|it| (labels(it), value(&it.figures)));
        counter(registry, name, help, unit, series);
    };
    let bytes = || Some(Unit::Bytes);
    add(
        "rundlet_backend_reads",
        "Read requests of disks",
        None,
        |it| it.reads,
    );
    add("rundlet_backend_read", "Bytes read", bytes(), |it| {
        it.read_bytes
    });
    add(
        "rundlet_backend_writes",
        "Write requests of disks",
        None,
        |it| it.writes,
    );
    add("rundlet_backend_written", "Bytes written", bytes(), |it| {
        it.written_bytes
    });
    add(
        "rundlet_backend_cache_hits",
        "Reads that the host's page cache answered, where the file system tells",
        None,
        |it| it.cache_hits,
    );
    add(
        "rundlet_backend_cache_misses",
        "Reads that waited for the medium, where the file system tells",
        None,
        |it| it.cache_misses,
    );
    add(
        "rundlet_backend_errors",
        "Requests of disks that were answered with an error",
        None,
        |it| it.errors,
    );
}
