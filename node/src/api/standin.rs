//! Stands in for the host's words until they are here; the same names, the same meaning.

use std::collections::BTreeMap;

use crate::agent::AgentError;
use crate::error::PathError;
use crate::host::model::{Detail, Phase};

/// Which sandboxes a list shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// All of them have to be there, with these values.
    pub labels: BTreeMap<String, String>,
    /// One of them, if there are any.
    pub phases: Vec<Phase>,
}

/// A sandbox that is ready.
#[derive(Clone, Debug)]
pub struct Created {
    pub detail: Detail,
    /// Whether this wish made it, or an earlier one with the same key.
    pub fresh: bool,
}

/// How a command ended, and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    pub status: rundlet_protocol::ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Whether there was more output than is kept.
    pub truncated: bool,
}

/// Why a host refuses, or fails.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    #[error("there is no {what} {name}")]
    NotFound { what: &'static str, name: String },
    #[error("sandbox {id}: {message}")]
    WrongPhase {
        id: String,
        phase: Phase,
        message: String,
    },
    #[error("the idempotency key {key:?} was used for another wish")]
    KeyReused { key: String },
    #[error("{message}")]
    Full {
        what: &'static str,
        limit: u64,
        message: String,
    },
    #[error("{message}")]
    Late { message: String },
    #[error("sandbox {id} did not start: {message}")]
    Start { id: String, message: String },
    #[error("sandbox {id} has ended: {message}")]
    Ended { id: String, message: String },
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Io(#[from] PathError),
    #[error("the daemon is ending")]
    Closing,
}
