//! What a daemon was told: its configuration file, checked. JSON; every field has a default, unknown ones are refused,
//! and an error names the file and the field.

#[cfg(test)]
mod tests;
mod wire;

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::model::Limits;

/// Longer files are no configuration.
const MOST_BYTES: u64 = 1 << 20;

/// A daemon's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory of everything that ends with the host: sockets, records of sandboxes.
    pub run: PathBuf,
    /// Directory of images and templates.
    pub store: PathBuf,
    pub socket: SocketConfig,
    pub cgroup: CgroupConfig,
    pub limits: LimitsConfig,
    /// Sandboxes run as the daemon's user where absent.
    pub jail: Option<JailConfig>,
    pub metrics: MetricsConfig,
    /// What is logged, as `RUST_LOG`.
    pub log: String,
}

/// The API's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketConfig {
    pub path: PathBuf,
    pub mode: u32,
    /// Who besides root may use it: a group's name, or its number.
    pub group: Option<String>,
}

/// The cgroup pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupConfig {
    /// A directory of the cgroup2 hierarchy that is the pool's alone.
    pub root: PathBuf,
    pub slots: u32,
    /// How long a start waits when the node is full, milliseconds: for a sandbox to end, and then for its slot to be empty.
    pub wait_ms: u64,
}

/// How much at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Living sandboxes.
    pub sandboxes: u32,
    /// Guest memory of all living sandboxes, MiB.
    pub memory_mib: Option<u64>,
    /// Starts that are worked on at the same time.
    pub starts_at_once: u32,
    /// Starts that may wait.
    pub start_queue: u32,
    /// How long a start may wait, seconds.
    pub start_deadline_s: u64,
    /// How long a sandbox that goes with its command may wait for it, seconds.
    pub first_command_s: u64,
    /// Records of sandboxes that have ended.
    pub ended_records: u32,
    /// Limits of a sandbox that says nothing else.
    pub defaults: Limits,
}

/// User ids of sandboxes, each its own; group ids are the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JailConfig {
    pub first_uid: u32,
    pub uids: u32,
}

/// Where figures are served besides on the API's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetricsConfig {
    pub listen: Option<SocketAddr>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the configuration {} has more than 1 MiB", .0.display())]
    Long(PathBuf),
    /// The message says at which line.
    #[error("{}: {field}: {message}", path.display())]
    Syntax {
        path: PathBuf,
        field: String,
        message: String,
    },
    #[error("{}: {field}: {message}", path.display())]
    Invalid {
        path: PathBuf,
        field: String,
        message: String,
    },
}

/// A field that holds what it must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    field: String,
    message: String,
}

impl Config {
    /// Reads a file; without one everything has its default.
    ///
    /// # Errors
    /// It cannot be read, is no JSON, or a field is unknown or cannot be so.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        match path {
            Some(path) => Self::parse(&read(path)?, path),
            None => Self::parse(b"{}", Path::new("defaults")),
        }
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self, ConfigError> {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let syntax = |field: String, message: String| ConfigError::Syntax {
            path: path.to_path_buf(),
            field,
            message,
        };
        let wire: wire::Config = serde_path_to_error::deserialize(&mut json)
            .map_err(|error| syntax(error.path().to_string(), error.inner().to_string()))?;
        json.end()
            .map_err(|error| syntax("after the end".into(), error.to_string()))?;
        Self::try_from(wire).map_err(|wrong| ConfigError::Invalid {
            path: path.to_path_buf(),
            field: wrong.field,
            message: wrong.message,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|it| it.take(MOST_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|source| ConfigError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= MOST_BYTES) {
        Ok(bytes)
    } else {
        Err(ConfigError::Long(path.to_path_buf()))
    }
}
