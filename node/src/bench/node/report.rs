//! The figures: both ways' starts, what is between them, and the starts in a row.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::super::host::{self, HostDescription};
use super::super::lineup::Lineup;
use super::super::numbers::Summary;
use super::super::report::{Guest, Input, StartRow, SystemReport, rounded};
use super::super::table::{columns, number, remarks};
use super::NodePlan;
use super::sustained::SustainedRow;

/// Of the JSON.
const VERSION: u32 = 1;

/// What a daemon's start takes more than a fleet's: differences of medians, means, and means of processor time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Overhead {
    start_ms_p50: f64,
    start_ms_mean: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_cpu_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process_cpu_ms: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct NodeReport {
    version: u32,
    /// Seconds since 1970.
    created: u64,
    command: Vec<String>,
    host: HostDescription,
    inputs: Vec<Input>,
    guest: Guest,
    /// Whether the daemon was there before.
    daemon_found: bool,
    /// `rundlet`, which is the fleet, and `daemon`.
    systems: Vec<SystemReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overhead: Option<Overhead>,
    sustained: Vec<SustainedRow>,
}

impl NodeReport {
    pub(super) fn of(
        plan: &NodePlan,
        lineup: &Lineup<'_>,
        systems: Vec<SystemReport>,
        sustained: Vec<SustainedRow>,
    ) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            version: VERSION,
            created: created.unwrap_or_default().as_secs(),
            command: plan.command.clone(),
            host: host::describe(),
            inputs: lineup.inputs(&systems),
            guest: lineup.guest(),
            daemon_found: plan.socket.is_some(),
            overhead: overhead(&systems),
            systems,
            sustained,
        }
    }

    pub(super) fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("it is plain data");
        text.push('\n');
        text
    }

    pub(super) fn table(&self) -> String {
        let host = &self.host;
        let mut text = format!(
            "{}, {} CPUs, Linux {}\nguest: {} MiB, {} vCPU\n",
            host.cpu, host.logical_cpus, host.kernel, self.guest.memory_mib, self.guest.vcpus,
        );
        for part in [self.starts(), self.steps(), self.in_a_row()] {
            text.push_str(&part);
        }
        let mut said: Vec<String> = self.systems.iter().flat_map(remarks).collect();
        for row in &self.sustained {
            let why = row.failure.iter().chain(&row.stopped);
            said.extend(why.map(|why| format!("{}, in a row: {why}", row.system)));
        }
        if !said.is_empty() {
            text.push('\n');
        }
        for line in said {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    fn starts(&self) -> String {
        let head = [
            "one at a time, in turns",
            "starts",
            "p50 ms",
            "p90",
            "p99",
            "mean",
            "CPU ms",
            "own",
            "failed",
        ];
        let row = |system: &SystemReport| {
            let row = system.start.first()?;
            let part = |of: fn(&Summary) -> f64| number(row.start_ms.as_ref().map(of));
            Some(vec![
                called(&system.name).to_owned(),
                row.ready.to_string(),
                part(|it| it.p50),
                part(|it| it.p90),
                part(|it| it.p99),
                part(|it| it.mean),
                number(row.host_cpu_ms),
                number(row.process_cpu_ms),
                row.failed.to_string(),
            ])
        };
        let mut rows: Vec<_> = self.systems.iter().filter_map(row).collect();
        if let Some(overhead) = self.overhead {
            let none = || "-".to_owned();
            rows.push(vec![
                "the daemon's part".into(),
                none(),
                number(Some(overhead.start_ms_p50)),
                none(),
                none(),
                number(Some(overhead.start_ms_mean)),
                number(overhead.host_cpu_ms),
                number(overhead.process_cpu_ms),
                none(),
            ]);
        }
        section(&head, &rows)
    }

    fn steps(&self) -> String {
        let daemon = self.systems.iter().find(|it| it.name == DAEMON);
        let steps = daemon.and_then(|it| it.start.first()).map(|it| &it.steps);
        let row = |step: &super::super::report::StepMean| {
            vec![step.name.clone(), number(Some(step.mean_ms))]
        };
        let rows: Vec<_> = steps.into_iter().flatten().map(row).collect();
        section(&["a start by the daemon", "mean ms"], &rows)
    }

    fn in_a_row(&self) -> String {
        let head = [
            "in a row", "starts", "alive", "at once", "seconds", "starts/s", "p50 ms", "p99",
            "CPU ms", "own", "failed",
        ];
        let row = |row: &SustainedRow| {
            let part = |of: fn(&Summary) -> f64| number(row.start_ms.as_ref().map(of));
            vec![
                called(&row.system).to_owned(),
                row.ready.to_string(),
                row.alive.to_string(),
                row.at_once.to_string(),
                number(Some(row.took_s)),
                number(Some(row.starts_per_s)),
                part(|it| it.p50),
                part(|it| it.p99),
                number(row.host_cpu_ms),
                number(row.process_cpu_ms),
                row.failed.to_string(),
            ]
        };
        let rows: Vec<_> = self.sustained.iter().map(row).collect();
        section(&head, &rows)
    }
}

const DAEMON: &str = "daemon";

/// The first system has its usual name in the JSON.
fn called(system: &str) -> &str {
    match system {
        DAEMON => DAEMON,
        _ => "fleet in this process",
    }
}

/// A table with an empty line before it, or nothing.
fn section(head: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    format!("\n{}", columns(head, rows))
}

fn overhead(systems: &[SystemReport]) -> Option<Overhead> {
    let (daemon, fleet): (Vec<_>, Vec<_>) = systems.iter().partition(|it| it.name == DAEMON);
    let row = |of: Vec<&SystemReport>| -> Option<StartRow> { of.first()?.start.first().cloned() };
    let (daemon, fleet) = (row(daemon)?, row(fleet)?);
    let (ours, theirs) = (daemon.start_ms?, fleet.start_ms?);
    let less = |a: Option<f64>, b: Option<f64>| Some(rounded(a? - b?));
    Some(Overhead {
        start_ms_p50: rounded(ours.p50 - theirs.p50),
        start_ms_mean: rounded(ours.mean - theirs.mean),
        host_cpu_ms: less(daemon.host_cpu_ms, fleet.host_cpu_ms),
        process_cpu_ms: less(daemon.process_cpu_ms, fleet.process_cpu_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::StepMean;
    use crate::bench::system::Kind;

    fn system(name: &str, starts_ms: &[f64], cpu: f64) -> SystemReport {
        SystemReport {
            name: name.into(),
            kind: Kind::Restore,
            notes: Vec::new(),
            unusable: None,
            start: vec![StartRow {
                deployed: 0,
                at_once: 1,
                rounds: starts_ms.len(),
                ready: starts_ms.len(),
                failed: 0,
                failure: None,
                stopped: None,
                batch_ms: None,
                start_ms: Summary::of(starts_ms),
                starts_ms: starts_ms.to_vec(),
                host_cpu_ms: Some(cpu),
                process_cpu_ms: None,
                steps: vec![StepMean {
                    name: "client, API and queue".into(),
                    mean_ms: 0.5,
                }],
            }],
            density: None,
        }
    }

    #[test]
    fn the_daemon_s_part_is_what_it_takes_more() {
        let systems = [
            system("rundlet", &[1.0, 2.0, 3.0], 4.0),
            system("daemon", &[2.5, 3.5, 9.0], 5.0),
        ];
        let overhead = overhead(&systems).unwrap();
        assert_eq!(
            overhead,
            Overhead {
                start_ms_p50: 1.5,
                start_ms_mean: 3.0,
                host_cpu_ms: Some(1.0),
                process_cpu_ms: None,
            }
        );
    }

    #[test]
    fn nothing_is_compared_with_nothing() {
        assert_eq!(overhead(&[system("daemon", &[1.0], 1.0)]), None);
        let none = [system("rundlet", &[], 1.0), system("daemon", &[1.0], 1.0)];
        assert_eq!(overhead(&none), None);
    }

    #[test]
    fn the_table_tells_all_three() {
        let systems = vec![
            system("rundlet", &[1.0], 4.0),
            system("daemon", &[2.5], 5.0),
        ];
        let report = NodeReport {
            version: VERSION,
            created: 0,
            command: Vec::new(),
            host: host::describe(),
            inputs: Vec::new(),
            guest: Guest {
                memory_mib: 128,
                vcpus: 1,
                scratch_mib: 1024,
            },
            daemon_found: false,
            overhead: overhead(&systems),
            systems,
            sustained: vec![SustainedRow {
                system: "daemon".into(),
                alive: 50,
                at_once: 4,
                ready: 500,
                failed: 1,
                failure: Some("one did not".into()),
                stopped: None,
                took_s: 25.0,
                starts_per_s: 20.0,
                start_ms: None,
                host_cpu_ms: None,
                process_cpu_ms: None,
            }],
        };
        let table = report.table();
        let has = |words: &[&str]| {
            let mut lines = table
                .lines()
                .map(|it| it.split_whitespace().collect::<Vec<_>>().join(" "));
            let words = words.join(" ");
            assert!(
                lines.any(|it| it == words),
                "{words}\nis no line of\n{table}"
            );
        };
        has(&["the daemon's part - 1.50 - - 1.50 1.00 - -"]);
        has(&["client, API and queue 0.50"]);
        has(&["daemon 500 50 4 25.0 20.0 - - - - 1"]);
        has(&["daemon, in a row: one did not"]);
        assert!(report.json().contains("\"starts_per_s\": 20.0"));
    }
}
