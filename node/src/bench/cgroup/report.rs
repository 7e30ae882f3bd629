//! The figures: rows of what was measured, and what the pool saves.

use std::time::Duration;

use serde::Serialize;

use super::super::host::HostDescription;
use super::super::numbers::{Summary, float};
use super::super::table::{columns, number};
use super::way::WayName;
use crate::host::model::Limits;

/// Of the JSON.
const VERSION: u32 = 1;

/// Batches of one way and size.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) way: WayName,
    pub(super) at_once: u32,
    starts_us: Vec<f64>,
    batches_ms: Vec<f64>,
    cpu: Duration,
    end_cpu: Duration,
}

impl Measured {
    pub(super) fn new(way: WayName, at_once: u32) -> Self {
        Self {
            way,
            at_once,
            starts_us: Vec::new(),
            batches_ms: Vec::new(),
            cpu: Duration::ZERO,
            end_cpu: Duration::ZERO,
        }
    }

    /// One batch.
    pub(super) fn add(&mut self, each: &[Duration], all: Duration, cpu: Duration, end: Duration) {
        self.starts_us.extend(each.iter().map(|it| micros(*it)));
        self.batches_ms.push(micros(all) / 1000.0);
        self.cpu += cpu;
        self.end_cpu += end;
    }

    fn row(&self) -> Option<Row> {
        let starts = self.starts_us.len();
        let of_each = |total: Duration| micros(total) / float(starts.max(1));
        Some(Row {
            way: self.way,
            at_once: self.at_once,
            starts,
            batch_ms: Summary::of(&self.batches_ms)?,
            start_us: Summary::of(&self.starts_us)?,
            cpu_us: of_each(self.cpu),
            end_cpu_us: of_each(self.end_cpu),
        })
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// What is told of them.
#[derive(Clone, Debug, Serialize)]
struct Row {
    way: WayName,
    at_once: u32,
    starts: usize,
    /// From the common beginning to the last one's end.
    batch_ms: Summary,
    /// Each from its own beginning.
    start_us: Summary,
    /// Processor time of who starts and of who forks, for each start.
    cpu_us: f64,
    /// The same for its end: off the way of starts.
    end_cpu_us: f64,
}

/// What a way needs of what `mkdir` needs, both without the fork. Absent where `mkdir` needed nothing.
#[derive(Clone, Debug, Serialize)]
struct Ratio {
    way: WayName,
    at_once: u32,
    batch: Option<f64>,
    cpu: Option<f64>,
    /// Start and end together.
    cpu_with_end: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct CgroupReport {
    version: u32,
    host: HostDescription,
    limits: Limits,
    rows: Vec<Row>,
    ratios: Vec<Ratio>,
}

impl CgroupReport {
    pub(super) fn of(host: HostDescription, limits: Limits, measured: &[Measured]) -> Self {
        let rows: Vec<Row> = measured.iter().filter_map(Measured::row).collect();
        Self {
            version: VERSION,
            host,
            limits,
            ratios: ratios(&rows),
            rows,
        }
    }

    pub(super) fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("it is plain data");
        text.push('\n');
        text
    }

    pub(super) fn table(&self) -> String {
        let host = &self.host;
        let cells = |row: &Row| {
            vec![
                row.way.text().to_owned(),
                row.at_once.to_string(),
                row.starts.to_string(),
                number(Some(row.batch_ms.p50)),
                number(Some(row.start_us.p50)),
                number(Some(row.start_us.p99)),
                number(Some(row.cpu_us)),
                number(Some(row.end_cpu_us)),
            ]
        };
        let rows: Vec<_> = self.rows.iter().map(cells).collect();
        let head = [
            "cgroup by",
            "at once",
            "starts",
            "batch ms",
            "start us p50",
            "p99",
            "CPU us",
            "CPU us of the end",
        ];
        let share = |ratio: Option<f64>| number(ratio.map(|it| it * 100.0));
        let cells = |ratio: &Ratio| {
            vec![
                ratio.way.text().to_owned(),
                ratio.at_once.to_string(),
                share(ratio.batch),
                share(ratio.cpu),
                share(ratio.cpu_with_end),
            ]
        };
        let ratios: Vec<_> = self.ratios.iter().map(cells).collect();
        let head_of_ratios = [
            "% of mkdir's, without the fork",
            "at once",
            "batch",
            "CPU",
            "CPU with the end",
        ];
        format!(
            "{}, {} CPUs, Linux {}\n\n{}\n{}",
            host.cpu,
            host.logical_cpus,
            host.kernel,
            columns(&head, &rows),
            columns(&head_of_ratios, &ratios),
        )
    }
}

fn ratios(rows: &[Row]) -> Vec<Ratio> {
    let pooled = |row: &&Row| matches!(row.way, WayName::Pool | WayName::PoolWritten);
    rows.iter()
        .filter(pooled)
        .filter_map(|row| {
            let beside = |way| {
                rows.iter()
                    .find(|it| it.at_once == row.at_once && it.way == way)
            };
            let (fork, mkdir) = (beside(WayName::Fork)?, beside(WayName::Mkdir)?);
            let ratio = |of: fn(&Row) -> f64| {
                let (ours, theirs) = (of(row) - of(fork), of(mkdir) - of(fork));
                (theirs > 0.0).then(|| ours / theirs)
            };
            Some(Ratio {
                way: row.way,
                at_once: row.at_once,
                batch: ratio(|it| it.batch_ms.p50),
                cpu: ratio(|it| it.cpu_us),
                cpu_with_end: ratio(|it| it.cpu_us + it.end_cpu_us),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(way: WayName, batch_ms: u64, cpu_us: u64) -> Measured {
        let mut measured = Measured::new(way, 2);
        let each = [Duration::from_micros(100), Duration::from_micros(300)];
        for _ in 0..2 {
            let cpu = Duration::from_micros(cpu_us * 2);
            measured.add(&each, Duration::from_millis(batch_ms), cpu, cpu * 3);
        }
        measured
    }

    #[test]
    fn the_fork_is_taken_off_before_ways_are_compared() {
        let rows: Vec<Row> = [
            measured(WayName::Fork, 10, 50),
            measured(WayName::Pool, 12, 60),
            measured(WayName::Mkdir, 50, 250),
        ]
        .iter()
        .filter_map(Measured::row)
        .collect();
        assert_eq!(rows[0].starts, 4);
        assert!((rows[1].cpu_us - 60.0).abs() < 1e-9);
        assert!((rows[1].start_us.p99 - 300.0).abs() < 1e-9);
        let ratios = ratios(&rows);
        assert_eq!(ratios.len(), 1);
        for share in [ratios[0].batch, ratios[0].cpu, ratios[0].cpu_with_end] {
            assert!((share.unwrap() - 0.05).abs() < 1e-9, "{ratios:?}");
        }
    }

    #[test]
    fn nothing_is_compared_with_nothing() {
        assert!(Measured::new(WayName::Pool, 1).row().is_none());
        let rows: Vec<Row> = [
            measured(WayName::Fork, 10, 50),
            measured(WayName::Pool, 12, 60),
            measured(WayName::Mkdir, 10, 40),
        ]
        .iter()
        .filter_map(Measured::row)
        .collect();
        let ratios = ratios(&rows);
        assert_eq!((ratios[0].batch, ratios[0].cpu), (None, None));
    }
}
