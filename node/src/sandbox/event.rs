//! What happens to a sandbox, as told to whoever started it.

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::sync::Arc;

use rundlet_protocol::Ready;
use serde::Deserialize;

/// Takes the events, from several threads.
pub type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// One thing that happened.
#[derive(Debug)]
pub enum Event {
    /// The agent has come up.
    Ready(Ready),
    /// What came to the ready port was no agent's word; why.
    NotReady(String),
    /// The VMM's named instants, microseconds since its start.
    Timeline(BTreeMap<String, u64>),
    /// The VMM has ended.
    VmmEnded(VmmEnd),
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
    /// `power_off`, `restart`, `panic`, `crash`, `stopped`, `backend_lost` or `error`.
    pub reason: String,
    #[serde(default)]
    pub message: Option<String>,
}
