//! What can keep a sandbox from running, and who is to blame.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::boot::BootError;
use crate::devices::DeviceError;
use crate::devices::state::RestoreError;
use crate::devices::vhost_blk::backend::BackendError;
use crate::jail::JailError;
use crate::kvm::KvmError;
use crate::memory::MemoryError;
use crate::outcome::{Outcome, with_causes};
use crate::spec::SpecError;
use crate::template::TemplateError;
use crate::vcpu::state::StateError;
use crate::vcpu::thread::ThreadError;

/// Why a sandbox did not come to run.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The template does not fit, or is not whole.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The clone's spec is not one for this template.
    #[error(transparent)]
    Clone(#[from] SpecError),
    /// A disk's backend.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initrd or tables.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The devices of the template.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A vCPU's registers.
    #[error(transparent)]
    State(#[from] StateError),
    /// A vCPU's thread.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// A wall around it.
    #[error("cannot close the sandbox off")]
    Jail(#[from] JailError),
    /// The control socket.
    #[error("--control: cannot listen on {}", path.display())]
    Control {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The lifeline.
    #[error("--lifeline: cannot watch it")]
    Lifeline(#[source] io::Error),
    /// The event loop.
    #[error("cannot set up the event loop")]
    Events(#[source] io::Error),
}

impl SandboxError {
    /// What it means for the process; nothing if the spec or the command line is to blame.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Template(error) => Some(error.outcome()),
            Self::Restore(error) if error.blames_template() => {
                Some(Outcome::TemplateStale(with_causes(error)))
            }
            Self::State(error @ StateError::Frequency { .. }) => {
                Some(Outcome::TemplateStale(with_causes(error)))
            }
            error if error.blames_spec() => None,
            error => Some(Outcome::Error(with_causes(error))),
        }
    }

    /// True if another spec (or command line) would help: a file it names cannot be used.
    #[must_use]
    pub fn blames_spec(&self) -> bool {
        match self {
            Self::Boot(error) => !matches!(error, BootError::Write { .. }),
            Self::Device(error) => {
                matches!(
                    error,
                    DeviceError::ConsolePath { .. } | DeviceError::ConsoleFd { .. }
                )
            }
            Self::Clone(_) | Self::Control { .. } | Self::Lifeline(_) => true,
            _ => false,
        }
    }
}
