//! What is on disk about a sandbox: all that a later daemon needs to find it again, or to bury it.
//!
//! `s/<id>/record.json` while it lives, `ended/<id>.json` afterwards. Replaced by rename, so that there is always
//! a whole one; not synced, as it dies with the host like everything that it speaks of.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::OpenError;
use super::model::{CreateSandbox, Limits, Phase};
use crate::error::PathError;

/// Another number whenever a field changes its meaning.
pub(super) const VERSION: u32 = 1;

/// A process, by a name that no other one ever has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProcessRecord {
    pub(super) pid: u32,
    /// Clock ticks since the host's boot, proc_pid_stat(5).
    pub(super) started: u64,
}

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) id: String,
    pub(super) wish: CreateSandbox,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    pub(super) memory_mib: u32,
    pub(super) vcpus: u8,
    pub(super) scratch_mib: u64,
    pub(super) limits: Limits,
    pub(super) phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    pub(super) created_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ready_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended_ms: Option<u64>,
    pub(super) timeline_us: BTreeMap<String, u64>,
    /// Its cgroup in the pool. Absent once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) slot: Option<String>,
    /// The directory of its disks' backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) line: Option<String>,
    /// How often a zygote was asked for it: each attempt has a directory of its own.
    pub(super) attempt: u32,
    /// Absent until it is forked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) process: Option<ProcessRecord>,
}

/// What backs the disks of sandboxes, `lines/<name>/line.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LineRecord {
    pub(super) version: u32,
    pub(super) key: String,
    pub(super) source: super::model::Source,
    /// Digest of an image, id of a template.
    pub(super) made_of: String,
    pub(super) scratch_mib: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<u32>,
    pub(super) backend: ProcessRecord,
}

/// What stands on disk.
pub(super) enum Stored<T> {
    Whole(T),
    /// Not written by any version of ours.
    Garbage(String),
    Absent,
}

/// Writes it under its name, in one piece.
pub(super) fn write(path: &Path, value: &impl Serialize) -> Result<(), PathError> {
    let new = path.with_extension("new");
    let json = serde_json::to_vec(value)
        .map_err(io::Error::from)
        .map_err(PathError::at("describe", path))?;
    fs::write(&new, json).map_err(PathError::at("write", &new))?;
    fs::rename(&new, path).map_err(PathError::at("write", path))
}

/// Reads it. What another version of ours has written is an error: it stands for something that lives.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Stored<T>, OpenError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let json = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Stored::Absent),
        other => other.map_err(PathError::at("read", path))?,
    };
    match serde_json::from_slice::<Versioned>(&json) {
        Ok(Versioned { version }) if version != VERSION => Err(OpenError::Version {
            path: path.to_path_buf(),
            found: version,
            known: VERSION,
        }),
        Ok(_) => Ok(match serde_json::from_slice(&json) {
            Ok(value) => Stored::Whole(value),
            Err(error) => Stored::Garbage(error.to_string()),
        }),
        Err(error) => Ok(Stored::Garbage(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::model::Source;

    fn record() -> Record {
        Record {
            version: VERSION,
            id: "0123456789ab".into(),
            wish: serde_json::from_str(r#"{"source":{"template":"t"},"labels":{"a":"b"}}"#)
                .unwrap(),
            key: Some("k".into()),
            memory_mib: 128,
            vcpus: 1,
            scratch_mib: 512,
            limits: Limits::default(),
            phase: Phase::Running,
            reason: None,
            created_ms: 5,
            ready_ms: Some(6),
            ended_ms: None,
            timeline_us: BTreeMap::from([("ready".into(), 1000)]),
            slot: Some("slot-0003".into()),
            line: Some("t-1-2".into()),
            attempt: 1,
            process: Some(ProcessRecord { pid: 7, started: 8 }),
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_and_replaces_the_older_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        assert!(matches!(read::<Record>(&path), Ok(Stored::Absent)));
        write(&path, &record()).unwrap();
        let newer = Record {
            phase: Phase::Stopping,
            ..record()
        };
        write(&path, &newer).unwrap();
        assert!(matches!(read::<Record>(&path).unwrap(), Stored::Whole(it) if it == newer));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_format_is_as_it_was() {
        let json = serde_json::to_string(&record()).unwrap();
        let golden = r#"{"version":1,"id":"0123456789ab","wish":{"source":{"template":"t"},"labels":{"a":"b"},"limits":{},"auto_remove":false},"key":"k","memory_mib":128,"vcpus":1,"scratch_mib":512,"limits":{},"phase":"running","created_ms":5,"ready_ms":6,"timeline_us":{"ready":1000},"slot":"slot-0003","line":"t-1-2","attempt":1,"process":{"pid":7,"started":8}}"#;
        assert_eq!(json, golden);
        let line = LineRecord {
            version: VERSION,
            key: "k".into(),
            source: Source::Image("debian".into()),
            made_of: "sha256-00".into(),
            scratch_mib: 1024,
            uid: None,
            backend: ProcessRecord { pid: 1, started: 2 },
        };
        let json = serde_json::to_string(&line).unwrap();
        let golden = r#"{"version":1,"key":"k","source":{"image":"debian"},"made_of":"sha256-00","scratch_mib":1024,"backend":{"pid":1,"started":2}}"#;
        assert_eq!(json, golden);
    }

    #[test]
    fn another_version_is_refused_and_garbage_is_called_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        let mut other = serde_json::to_value(record()).unwrap();
        other["version"] = 2.into();
        fs::write(&path, other.to_string()).unwrap();
        let error = read::<Record>(&path).map(drop).unwrap_err();
        assert!(
            matches!(
                error,
                OpenError::Version {
                    found: 2,
                    known: 1,
                    ..
                }
            ),
            "{error}"
        );
        for garbage in ["", "{", "{}", r#"{"version":1}"#, "[1]"] {
            fs::write(&path, garbage).unwrap();
            assert!(
                matches!(read::<Record>(&path), Ok(Stored::Garbage(_))),
                "{garbage}"
            );
        }
    }
}
