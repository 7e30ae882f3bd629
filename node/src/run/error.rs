//! Why a run failed, in the words of a user.

use std::fmt;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use rundlet_protocol::{Failure, FailureKind, Stream};

use super::OUR_ERROR;
use crate::agent::AgentError;
use crate::error::PathError;
use crate::image::StoreError;
use crate::places::PlaceError;
use crate::sandbox::{
    ControlError, Evidence, FleetError, SpecError, StartError, VmmEnd, VmmExit, printable,
};
use crate::scratch::ScratchError;
use crate::template::{TemplateError, TemplateName};

/// A failed run and what there is to read about it.
#[derive(Debug)]
pub struct RunError {
    pub cause: Cause,
    pub evidence: Box<Evidence>,
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl std::error::Error for RunError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.source()
    }
}

/// Before there is a sandbox, there is nothing to read about it.
impl From<Cause> for RunError {
    fn from(cause: Cause) -> Self {
        Self {
            cause,
            evidence: Box::default(),
        }
    }
}

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("cannot start the sandbox")]
    Start(#[source] StartError),
    #[error("cannot listen to signals")]
    Signals(#[source] io::Error),
    #[error("cannot get random bytes for the sandbox's name")]
    Random(#[source] io::Error),
    #[error("cannot use stdin, stdout or stderr")]
    Stdio(#[source] io::Error),
    #[error("the guest was not ready after {} seconds (--boot-timeout); `rundlet doctor` says whether KVM is usable here", .0.as_secs())]
    BootTimeout(Duration),
    #[error("the guest did not come up: {0}")]
    NotReady(String),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("sandboxes need KVM, and it cannot be used here: {found}; {advice}")]
    Kvm { found: String, advice: &'static str },
    #[error("{}", vmm_words(.0))]
    VmmEnded(VmmEnd),
    #[error("the block backend ended ({0}), and the sandbox with it")]
    BackendEnded(ExitStatus),
    #[error("cannot run the command: {}", .0.message)]
    Command(Failure),
    #[error("cannot write the command's {stream:?}")]
    Output { stream: Stream, source: io::Error },
    #[error("the agent reported the impossible end {0:?}")]
    Status(rundlet_protocol::ExitStatus),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("{}", printable(.0.as_bytes()))]
    TemplateUnfit(String),
    #[error("template {name} does not fit although it was just built")]
    Unfit {
        name: TemplateName,
        source: Box<Cause>,
    },
    #[error("the warm-up ended with {}{}", end_words(*.status), if *.awaited { " before it had printed its ready line" } else { "" })]
    WarmUp {
        status: rundlet_protocol::ExitStatus,
        /// Whether there was a line to wait for.
        awaited: bool,
    },
    #[error("the warm-up was not done after {} seconds (--timeout)", .0.as_secs())]
    WarmUpTimeout(Duration),
    #[error("the guest cannot become a template")]
    Prepare(#[source] AgentError),
    #[error(transparent)]
    Capture(#[from] ControlError),
    #[error("the block backend could not keep the scratch disk: {}", printable(.0.as_bytes()))]
    NotKept(String),
    #[error("the block backend did not say within {} seconds that it has kept the scratch disk", .0.as_secs())]
    KeptTimeout(Duration),
    #[error(transparent)]
    Fleet(#[from] FleetError),
    #[error("interrupted by signal {0}")]
    Interrupted(i32),
}

fn end_words(status: rundlet_protocol::ExitStatus) -> String {
    match status {
        rundlet_protocol::ExitStatus::Code(code) => format!("exit code {code}"),
        rundlet_protocol::ExitStatus::Signal(signal) => format!("signal {signal}"),
    }
}

impl RunError {
    /// Keeps what may explain the cause and does not repeat it.
    pub(crate) fn new(cause: Cause, mut evidence: Evidence) -> Self {
        match &cause {
            Cause::Command(_)
            | Cause::Output { .. }
            | Cause::Kvm { .. }
            | Cause::TemplateUnfit(_)
            | Cause::Interrupted(_) => {
                evidence = Evidence::default();
            }
            // What it printed itself says more.
            Cause::WarmUp { .. } => {
                evidence.console = Vec::new();
            }
            Cause::VmmEnded(VmmEnd {
                exit:
                    Some(VmmExit {
                        message: Some(message),
                        ..
                    }),
                ..
            }) => {
                let message = printable(message.as_bytes());
                evidence.vmm.retain(|line| !line.contains(&message));
            }
            _ => {}
        }
        Self {
            cause,
            evidence: Box::new(evidence),
        }
    }

    /// The exit code for the shell: 127 and 126 as shells, for a command that could not be executed.
    #[must_use]
    pub fn code(&self) -> u8 {
        match &self.cause {
            Cause::Command(failure) => match failure.kind {
                FailureKind::NotFound => 127,
                FailureKind::NotExecutable => 126,
                _ => OUR_ERROR,
            },
            Cause::Interrupted(signal) => super::signals::code(*signal),
            _ => OUR_ERROR,
        }
    }

    /// Whether the template could not be used, and a new one might.
    #[must_use]
    pub fn is_template_unfit(&self) -> bool {
        matches!(self.cause, Cause::TemplateUnfit(_))
    }
}

fn vmm_words(end: &VmmEnd) -> String {
    let Some(exit) = &end.exit else {
        return format!("the VMM ended without a word ({})", end.status);
    };
    let what = match exit.reason.as_str() {
        "power_off" => "the guest powered itself off before the command had ended",
        "restart" => "the guest restarted itself before the command had ended",
        "panic" => "the guest's kernel panicked",
        "crash" => "the guest crashed (triple fault)",
        "stopped" => "the VMM was stopped by somebody else",
        "backend_lost" => "the VMM lost the block backend",
        "error" => "the VMM failed",
        other => return format!("the VMM ended: {}", printable(other.as_bytes())),
    };
    match &exit.message {
        // The others only say the same in other words.
        Some(message) if matches!(exit.reason.as_str(), "error" | "crash" | "backend_lost") => {
            format!("{what}: {}", printable(message.as_bytes()))
        }
        _ => what.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(reason: &str, message: &str) -> Cause {
        Cause::VmmEnded(VmmEnd {
            status: ExitStatus::default(),
            exit: Some(VmmExit {
                reason: reason.into(),
                message: Some(message.into()),
            }),
        })
    }

    #[test]
    fn an_end_is_told_once_and_without_control_characters() {
        let panic = ended("panic", "the guest panicked").to_string();
        assert_eq!(panic, "the guest's kernel panicked");
        let failed = ended("error", "kernel.path:\x1b[2J no such file");
        assert_eq!(
            failed.to_string(),
            "the VMM failed: kernel.path:\\u{1b}[2J no such file"
        );
        let log = vec![
            "ERROR kernel.path:\\u{1b}[2J no such file".to_owned(),
            "something else".to_owned(),
        ];
        let error = RunError::new(
            failed,
            Evidence {
                vmm: log,
                ..Evidence::default()
            },
        );
        assert_eq!(error.evidence.vmm, ["something else"]);
    }

    #[test]
    fn a_missing_program_is_not_explained_by_the_machine() {
        let failure = Failure {
            kind: FailureKind::NotFound,
            message: "no such program".into(),
        };
        let evidence = Evidence {
            console: vec!["booted".into()],
            ..Evidence::default()
        };
        let error = RunError::new(Cause::Command(failure), evidence);
        assert_eq!(*error.evidence, Evidence::default());
        assert_eq!(error.code(), 127);
    }
}
