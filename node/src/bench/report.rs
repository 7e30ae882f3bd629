//! What a bench tells: the JSON of `docs/bench.md`, which table and pages are made of.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::host::HostDescription;
use super::numbers::Summary;
use super::system::Kind;
use crate::error::PathError;

/// Another number whenever a reader of the old one would misread the new one.
pub(super) const VERSION: u32 = 1;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// Seconds since 1970.
    pub created: u64,
    /// The arguments after `rundlet bench`.
    pub command: Vec<String>,
    pub host: HostDescription,
    /// Everything that the figures depend on, byte by byte.
    pub inputs: Vec<Input>,
    pub guest: Guest,
    pub systems: Vec<SystemReport>,
    /// What to know of the run as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A file that took part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    pub name: String,
    /// `sha256-` and 64 hexadecimal digits.
    pub digest: String,
    /// What it says of itself, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// The sandboxes' size, the same for all systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    pub memory_mib: u32,
    pub vcpus: u8,
    pub scratch_mib: u64,
}

/// Everything about one system.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SystemReport {
    /// `rundlet`, `rundlet-cold`, `qemu`, `firecracker`, `firecracker-cold`; unique in a report.
    pub name: String,
    pub kind: Kind,
    /// How it was run and what it cannot do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Why it has no figures at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusable: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start: Vec<StartRow>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub density: Option<Density>,
}

/// Starts of one concurrency with a number of sandboxes deployed before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartRow {
    pub deployed: usize,
    /// Starts of one batch, all requested at the same moment.
    pub at_once: usize,
    /// Batches. Between two of them everything of the first is ended.
    pub rounds: usize,
    /// Starts that became ready, in all batches.
    pub ready: usize,
    pub failed: usize,
    /// The first failure's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Why there are fewer batches than asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// From the first request to the last ready, of batches without a failure.
    pub batch_ms: Option<Summary>,
    /// From a start's request to its ready.
    pub start_ms: Option<Summary>,
    /// The values behind `start_ms`, ascending.
    pub starts_ms: Vec<f64>,
    /// All processor time of the host during the batches, for each ready start.
    pub host_cpu_ms: Option<f64>,
    /// Of it what the system's processes used, those that have ended included, and this process.
    pub process_cpu_ms: Option<f64>,
    /// Parts of a start, in order: mean of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepMean>,
}

/// A part of a start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMean {
    pub name: String,
    pub mean_ms: f64,
}

/// What deployed sandboxes cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Density {
    pub rows: Vec<DensityRow>,
    /// Why it ends before the count that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

/// The host with so many sandboxes deployed and idle. Each figure is for one sandbox unless it says so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DensityRow {
    pub deployed: usize,
    /// Of the sandboxes' own processes, the block backend's not among them.
    pub pss_kib: f64,
    pub uss_kib: f64,
    /// Of block backends, all of a sandbox's or its share of the common one.
    pub backend_pss_kib: f64,
    pub backend_uss_kib: f64,
    /// Of processes that start, hold or end others, likewise.
    pub helper_pss_kib: f64,
    pub helper_uss_kib: f64,
    /// How much less memory the host has available than before the system was there.
    pub available_drop_kib: f64,
    pub page_tables_kib: f64,
    pub secondary_page_tables_kib: f64,
    pub slab_kib: f64,
    /// Over [`DensityRow::quiet_s`], of the sandboxes' own processes.
    pub wakeups_per_s: f64,
    pub backend_wakeups_per_s: f64,
    /// All of the host's processor time over the same interval, for each sandbox.
    pub idle_cpu_ms_per_s: f64,
    pub quiet_s: f64,
    /// The starts of this step.
    pub start_ms: Option<Summary>,
    pub host_cpu_ms: Option<f64>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("{} is no report of `rundlet bench`", path.display())]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{} is a report of version {theirs}, this program reads {VERSION}", path.display())]
    Version { path: PathBuf, theirs: u32 },
}

impl Report {
    /// Reads what [`Report::json`] wrote.
    ///
    /// # Errors
    /// It is not there, or not that.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let json = fs::read(path).map_err(PathError::at("read", path))?;
        let error = |source| ReportError::Json {
            path: path.to_path_buf(),
            source,
        };
        let Head { version } = serde_json::from_slice(&json).map_err(error)?;
        if version != VERSION {
            return Err(ReportError::Version {
                path: path.to_path_buf(),
                theirs: version,
            });
        }
        serde_json::from_slice(&json).map_err(error)
    }

    /// With a final newline.
    #[must_use]
    pub fn json(&self) -> String {
        // Every field is a plain value: numbers, texts, lists.
        let mut json = serde_json::to_string_pretty(self).unwrap_or_default();
        json.push('\n');
        json
    }

    /// Several runs as one, for a page: the first's description, everybody's systems. A system that is in
    /// several has the rows of all.
    #[must_use]
    pub fn merged(reports: Vec<Self>) -> Option<Self> {
        let mut reports = reports.into_iter();
        let mut all = reports.next()?;
        for next in reports {
            if next.host != all.host || next.guest != all.guest {
                let note = "the figures are of more than one host, kernel or guest size";
                if !all.notes.iter().any(|it| it == note) {
                    all.notes.push(note.into());
                }
            }
            all.notes.extend(next.notes);
            for input in next.inputs {
                if !all.inputs.contains(&input) {
                    all.inputs.push(input);
                }
            }
            all.merge_systems(next.systems);
        }
        Some(all)
    }

    fn merge_systems(&mut self, systems: Vec<SystemReport>) {
        let places: BTreeMap<String, usize> = (self.systems.iter().enumerate())
            .map(|(place, it)| (it.name.clone(), place))
            .collect();
        for system in systems {
            let known = places.get(&system.name).copied();
            match known.and_then(|place| self.systems.get_mut(place)) {
                None => self.systems.push(system),
                Some(known) => {
                    for note in system.notes {
                        if !known.notes.contains(&note) {
                            known.notes.push(note);
                        }
                    }
                    known.start.extend(system.start);
                    known.density = known.density.take().or(system.density);
                    known.unusable = known.unusable.take().or(system.unusable);
                }
            }
        }
    }
}

/// Milliseconds, to the microsecond: more digits say nothing.
pub(super) fn milliseconds(time: std::time::Duration) -> f64 {
    rounded(time.as_secs_f64() * 1000.0)
}

/// To three digits after the point.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod example;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use example::example;
