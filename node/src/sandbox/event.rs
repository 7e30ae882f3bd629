//! What happens to a sandbox, as told to whoever started it.

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rundlet_protocol::Ready;
use serde::Deserialize;

/// Takes the events, from several threads.
pub type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// One thing that happened.
#[derive(Debug)]
pub enum Event {
    /// The agent has come up.
    Ready(Ready),
    /// A clone is unlike its siblings now, and ready; how long that took in the guest, by its own word.
    Renewed(Duration),
    /// What came to the ready port was no agent's word, or a clone was not renewed; why.
    NotReady(String),
    /// The VMM's named instants, microseconds since its start.
    Timeline(BTreeMap<String, u64>),
    /// The VMM has ended.
    VmmEnded(VmmEnd),
    /// The scratch disk stays, complete, where it was to stay.
    Kept,
    /// It does not; why.
    NotKept(String),
    /// The block backend has ended.
    BackendEnded(ExitStatus),
}

/// How a VMM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmmEnd {
    pub status: ExitStatus,
    /// Its last words; absent when it was killed.
    pub exit: Option<VmmExit>,
}

/// The VMM's last event.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VmmExit {
    /// `power_off`, `restart`, `panic`, `crash`, `stopped`, `backend_lost`, `template_stale`,
    /// `template_damaged` or `error`.
    pub reason: String,
    #[serde(default)]
    pub message: Option<String>,
}

impl VmmExit {
    /// Whether the template that was to be cloned cannot be used.
    #[must_use]
    pub fn is_template_unfit(&self) -> bool {
        matches!(self.reason.as_str(), "template_stale" | "template_damaged")
    }
}

impl VmmEnd {
    /// Why the template that was to be cloned cannot be used, if that is what it ended for.
    #[must_use]
    pub fn template_unfit(&self) -> Option<&str> {
        let exit = self.exit.as_ref()?;
        exit.is_template_unfit()
            .then(|| exit.message.as_deref().unwrap_or("it does not fit"))
    }
}
