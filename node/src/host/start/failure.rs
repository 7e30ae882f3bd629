//! Why a sandbox does not become ready.

use std::path::PathBuf;
use std::time::Duration;

use super::super::line::LineError;
use super::super::{HostError, PoolError};
use super::{Forked, HINDSIGHT};
use crate::error::PathError;
use crate::places::PlaceError;
use crate::sandbox::words::Silence;
use crate::sandbox::zygote::ZygoteError;
use crate::sandbox::{StartError, printable, process};

/// Why a sandbox does not become ready.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartFailure {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Line(#[from] LineError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Spec(#[from] StartError),
    #[error(transparent)]
    Zygote(#[from] ZygoteError),
    #[error(transparent)]
    Slot(#[from] PoolError),
    #[error("cannot prepare its process")]
    Io(#[from] std::io::Error),
    #[error("the path of the socket {} is too long", .0.display())]
    Socket(PathBuf),
    /// Its template does not fit, and there is no other one, or none yet.
    #[error(transparent)]
    Template(Box<HostError>),
    #[error("its end was asked for, or its disks were lost")]
    Doomed,
    #[error("its VMM ended: {0}")]
    Ended(String),
    #[error("it did not run within {} seconds", .0.as_secs())]
    Late(Duration),
    #[error("the guest is not ready: {0}")]
    NotReady(String),
    #[error("the thread that started it has failed")]
    Panicked,
}

/// The VMM's own word for why it ended, if it said one; else what we saw.
pub(super) fn explained(forked: &mut Forked, saw: String) -> StartFailure {
    let gone = process::ends_within(&forked.process.pidfd, HINDSIGHT).unwrap_or(false);
    if gone && let Err(silence @ Silence::Exit(_)) = forked.words.timeline(Duration::ZERO) {
        return ended(silence, HINDSIGHT);
    }
    if gone {
        StartFailure::Ended(saw)
    } else {
        StartFailure::NotReady(saw)
    }
}

pub(super) fn ended(silence: Silence, limit: Duration) -> StartFailure {
    match silence {
        Silence::Exit(exit) => {
            let message = exit.message.unwrap_or(exit.reason);
            StartFailure::Ended(printable(message.as_bytes()))
        }
        Silence::Nothing => StartFailure::Ended("it said nothing".into()),
        Silence::Late => StartFailure::Late(limit),
        Silence::Read(error) => StartFailure::Io(error),
    }
}
