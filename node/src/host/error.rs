//! Why a host does not do what it was asked for.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use super::PoolError;
use super::model::Phase;
use crate::agent::AgentError;
use crate::error::PathError;
use crate::image::StoreError;

/// Why there is no host.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("another daemon is at work in {}", .0.display())]
    InUse(PathBuf),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(
        "{} is of version {found}, this program knows {known}: end what it stands for with the program that wrote it, or remove it", path.display()
    )]
    Version {
        path: PathBuf,
        found: u32,
        known: u32,
    },
    #[error("{} is too long for the sockets below it: at most {most} bytes are possible", path.display())]
    Long { path: PathBuf, most: usize },
    #[error(
        "jail.uids: is {uids}, at least {least} are needed: one for each slot, and one for block backends"
    )]
    Uids { uids: u32, least: u32 },
    #[error("cannot watch over processes")]
    Watch(#[source] io::Error),
}

/// Why a host refuses, or fails.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    #[error("there is no {what} {name}")]
    NotFound { what: &'static str, name: String },
    #[error("sandbox {id} is {}: {message}", phase.name())]
    WrongPhase {
        id: String,
        phase: Phase,
        message: String,
    },
    #[error("the idempotency key {key:?} was used for another wish")]
    KeyReused { key: String },
    /// Something there is so much of, and no more; a limit of 0 is the host's own, which is not known here.
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

impl HostError {
    pub(super) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            message: message.into(),
        }
    }

    pub(super) fn no_sandbox(id: &str) -> Self {
        Self::NotFound {
            what: "sandbox",
            name: id.into(),
        }
    }

    /// What refusals are counted by.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid",
            Self::NotFound { .. } => "not_found",
            Self::WrongPhase { .. } => "wrong_phase",
            Self::KeyReused { .. } => "key_reused",
            Self::Full { what, .. } => what,
            Self::Late { .. } => "late",
            Self::Start { .. } => "start",
            Self::Ended { .. } => "ended",
            Self::Agent(_) => "agent",
            Self::Io(_) => "io",
            Self::Closing => "closing",
        }
    }
}

/// What the host has run out of, if that is why something failed.
pub(super) fn exhausted(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        let code = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
            .map(rustix::io::Errno::from_raw_os_error);
        match code {
            Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                return Some("descriptors");
            }
            Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => return Some("disk"),
            // What clone(2) says when there are too many processes or threads.
            Some(rustix::io::Errno::AGAIN) => return Some("processes"),
            Some(rustix::io::Errno::NOMEM) => return Some("memory"),
            _ => {}
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_run_out_is_found_below_other_errors() {
        let path = |code: rustix::io::Errno| {
            let error = io::Error::from(code);
            OpenError::Path(PathError::at("create", "/x")(error))
        };
        assert_eq!(exhausted(&path(rustix::io::Errno::NOSPC)), Some("disk"));
        assert_eq!(
            exhausted(&path(rustix::io::Errno::MFILE)),
            Some("descriptors")
        );
        assert_eq!(exhausted(&path(rustix::io::Errno::ACCESS)), None);
        assert_eq!(exhausted(&OpenError::InUse("/x".into())), None);
    }
}
