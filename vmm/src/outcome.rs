//! How a sandbox ended: one value, from which exit code, event and log line are made.

use std::fmt;

/// Why the virtual machine is no longer running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a restart, which for a sandbox is an end.
    Restart,
    /// The guest kernel panicked and said so.
    Panic,
    /// The guest did what no processor survives (triple fault, undecodable exit).
    Crash(String),
    /// The host told us to stop: control socket, lifeline or signal.
    Stopped,
    /// A process that serves one of the disks went away.
    BackendLost(String),
    /// The host failed us.
    Error(String),
    /// The template does not fit what is here; a new one would.
    TemplateStale(String),
    /// The template is not whole.
    TemplateDamaged(String),
}

impl Outcome {
    /// The process exit code that stands for this outcome.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Stopped => 0,
            Self::Error(_) => 1,
            Self::TemplateStale(_) => 3,
            Self::TemplateDamaged(_) => 4,
            Self::Restart => 10,
            Self::Panic => 11,
            Self::Crash(_) => 12,
            Self::BackendLost(_) => 13,
        }
    }

    /// The word used for it in the `exit` event.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PowerOff => "power_off",
            Self::Restart => "restart",
            Self::Panic => "panic",
            Self::Crash(_) => "crash",
            Self::Stopped => "stopped",
            Self::BackendLost(_) => "backend_lost",
            Self::Error(_) => "error",
            Self::TemplateStale(_) => "template_stale",
            Self::TemplateDamaged(_) => "template_damaged",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Restart => f.write_str("the guest asked for a restart"),
            Self::Panic => f.write_str("the guest kernel panicked; its console says why"),
            Self::Stopped => f.write_str("stopped by the host"),
            Self::Crash(why)
            | Self::BackendLost(why)
            | Self::Error(why)
            | Self::TemplateStale(why)
            | Self::TemplateDamaged(why) => f.write_str(why),
        }
    }
}

/// An error with its causes, for an outcome or the log.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
