//! What the API asks of a node. Everything but the wait for a turn blocks, and is called where that does no harm.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use rundlet_protocol::ExecSpec;

use crate::host::model::{CreateSandbox, Detail, Event, Summary};
use crate::image::Store;
use crate::metrics::Figures;
use crate::run::RunError;
use crate::template::{Record, build};

pub use crate::host::{Created, Filter, Finished, HostError};

/// A result that comes later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The right to start one sandbox, given by the queue of starts; dropped, the next one has it. Blocks until the
/// sandbox is ready.
pub type Turn = Box<dyn FnOnce(CreateSandbox, Option<String>) -> Result<Created, HostError> + Send>;

/// A connection to a sandbox's agent for one command.
pub struct Line {
    /// Leads to the agent; nothing was said on it yet.
    pub stream: UnixStream,
    /// The sandbox's environment, under the command's own.
    pub env: BTreeMap<String, String>,
    /// Dropped when the command is over.
    pub held: Box<dyn Any + Send>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

/// A reader of events.
pub trait Watcher: Send {
    /// The next one; `None` once the node ends.
    fn recv(&mut self) -> Later<'_, Option<Event>>;
}

/// A node: the host of a daemon, or its double in tests.
pub trait Node: Send + Sync + 'static {
    /// Waits in the queue of starts.
    fn admit(&self) -> Later<'_, Result<Turn, HostError>>;

    /// Answered from memory, whatever else goes on.
    fn list(&self, filter: &Filter) -> Vec<Summary>;

    /// # Errors
    /// There is no such sandbox.
    fn inspect(&self, id: &str) -> Result<Detail, HostError>;

    /// # Errors
    /// There is no such sandbox, or it is not one that runs commands.
    fn open_command(&self, id: &str) -> Result<Line, HostError>;

    /// # Errors
    /// As [`Node::open_command`]; the command cannot be run, or is not done in time.
    fn run_command(
        &self,
        id: &str,
        spec: ExecSpec,
        stdin: Vec<u8>,
        limit: Duration,
    ) -> Result<Finished, HostError>;

    /// # Errors
    /// There is no such sandbox.
    fn stop(&self, id: &str, grace: Duration) -> Result<(), HostError>;

    /// # Errors
    /// There is no such sandbox.
    fn kill(&self, id: &str) -> Result<(), HostError>;

    /// # Errors
    /// There is no such sandbox, or it lives and `force` was not said.
    fn remove(&self, id: &str, force: bool) -> Result<(), HostError>;

    /// Where the guest's console is written to.
    ///
    /// # Errors
    /// There is no such sandbox, or nothing left of its console.
    fn console(&self, id: &str) -> Result<PathBuf, HostError>;

    /// Events after `since`, or from now on.
    fn watch(&self, since: Option<u64>) -> Box<dyn Watcher>;

    fn figures(&self) -> Figures;

    fn store(&self) -> &Store;

    /// Lets go of images and templates that no sandbox uses, though it still has them at hand: they can be removed then.
    fn let_go(&self);

    /// # Errors
    /// It cannot be built; what had its name still has it.
    fn build_template(&self, request: &build::Request) -> Result<Record, RunError> {
        build::build_in(self.store(), request)
    }
}
