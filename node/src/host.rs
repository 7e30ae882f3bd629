//! The node as a daemon has it: sandboxes that outlive the daemon, in cgroups made ahead.
//!
//! ```text
//! model       what is said of sandboxes; phase: the ways between their phases
//! wish        a wish, checked; plan: what it will be made of, found in the store
//! config      what the daemon was told
//! renewal     templates that no longer fit, built again
//! admission   who may start, and when
//! create      from a wish to a place in the registry
//! start       from there the wish to a guest that answers; nursery: zygotes; line, lines: block backends
//! resident    one sandbox; registry: all of them; record: what is on disk of them
//! commands    commands in them; stop: ends that were asked for
//! ends        who hears of ends, asked for or not; bury: what is done then
//! recover     what an earlier daemon has left
//! events      what happens, for whoever watches; stats: figures
//! ```
//!
//! What must hold: nothing of a sandbox is tied to the life of the daemon, which may be killed at any point; of
//! what lives, the next one finds everything, and of what was half made, nothing stays.

mod admission;
mod budget;
mod bury;
mod commands;
pub mod config;
mod create;
mod ends;
mod error;
mod events;
mod inner;
mod line;
mod lines;
pub mod model;
mod nursery;
mod phase;
mod plan;
mod record;
mod recover;
mod registry;
mod renewal;
mod resident;
pub mod slots;
mod start;
mod stats;
mod stop;
mod wish;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rundlet_protocol::ExecSpec;

use crate::image::Store;
use crate::pool::{CgroupPool, PoolError, PoolStats, Slot, check};
use crate::sandbox::process;
pub use admission::{Admitted, Starts};
pub use commands::{CommandHold, Finished, OpenCommand};
use config::{Config, JailConfig, LimitsConfig};
pub use create::Created;
use ends::{News, Watcher};
pub use error::{HostError, OpenError};
pub use events::Watch;
use inner::{Inner, make_directory};
use model::{CreateSandbox, Detail, Phase, Summary};
use resident::Resident;
use slots::Slots;
pub use stats::{BackendFigures, BackendStats, Stats};

/// Is told when a step of a start is done: `slot`, `fork`, `running` or `ready`; of an `image` or a `template`; how long
/// after its turn had come.
pub type Observer = Arc<dyn Fn(&'static str, &'static str, Duration) + Send + Sync>;

/// How long starts that are on their way may take once the daemon ends.
const LEAVE: Duration = Duration::from_secs(5);

/// The host. Its clones are the same one. Dropped, the daemon's part of it ends and sandboxes stay.
#[derive(Clone, Debug)]
pub struct Host(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    inner: Arc<Inner>,
    ends: Mutex<Option<JoinHandle<()>>>,
}

/// Which sandboxes a list shows: those that have all of these labels, and are in one of these phases, if any is named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub labels: BTreeMap<String, String>,
    pub phases: Vec<Phase>,
}

impl Filter {
    fn lets_through(&self, summary: &Summary) -> bool {
        let labels = &summary.labels;
        self.labels
            .iter()
            .all(|(name, value)| labels.get(name) == Some(value))
            && (self.phases.is_empty() || self.phases.contains(&summary.phase))
    }
}

impl Host {
    /// Takes over what an earlier daemon has left.
    ///
    /// # Errors
    /// There is no pool of cgroups, another daemon is at work, a directory cannot be made or read.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let pool = CgroupPool::open_resting(&config.cgroup, &config.limits.defaults)?;
        Self::open_on(config, Arc::new(pool))
    }

    /// The same with slots of another kind.
    ///
    /// # Errors
    /// As [`Host::open`].
    pub fn open_on(config: &Config, slots: Arc<dyn Slots>) -> Result<Self, OpenError> {
        process::raise_descriptor_limit();
        let inner = Arc::new(Inner::new(config, slots)?);
        recover::recover(&inner)?;
        let watcher = Watcher::new(Arc::clone(&inner));
        let ends = thread::Builder::new()
            .name("ends".into())
            .spawn(move || watcher.run())
            .map_err(OpenError::Watch)?;
        let ends = Mutex::new(Some(ends));
        Ok(Self(Arc::new(Handle { inner, ends })))
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.0.inner
    }

    fn find(&self, id: &str) -> Result<Arc<Resident>, HostError> {
        let found = self.inner().registry.get(id);
        found.ok_or_else(|| HostError::no_sandbox(id))
    }

    /// Waits for the right to start one sandbox.
    ///
    /// # Errors
    /// Too many wait already, it took too long, or the daemon ends.
    pub async fn admit(&self) -> Result<Admitted, HostError> {
        self.inner().admission.admit().await
    }

    /// Makes a sandbox and waits until it is ready. With a key that was used before, it is the sandbox of that time.
    ///
    /// # Errors
    /// The wish cannot be carried out, or the sandbox did not become ready; nothing is left of it then but its
    /// record.
    pub fn create(
        &self,
        permit: Admitted,
        wish: CreateSandbox,
        key: Option<String>,
    ) -> Result<Created, HostError> {
        let created = create::create(self.inner(), wish, key);
        if let Err(error) = &created {
            self.inner().admission.refuse(error.kind());
        }
        drop(permit);
        created
    }

    /// Those that a filter lets through, the oldest first.
    #[must_use]
    pub fn list(&self, filter: &Filter) -> Vec<Summary> {
        let all = self.inner().registry.all();
        all.iter()
            .map(|resident| resident.summary(&resident.lock()))
            .filter(|summary| filter.lets_through(summary))
            .collect()
    }

    /// Everything about one.
    ///
    /// # Errors
    /// There is none.
    pub fn inspect(&self, id: &str) -> Result<Detail, HostError> {
        Ok(self.find(id)?.detail())
    }

    /// Connects to a sandbox's agent, for somebody who speaks with it.
    ///
    /// # Errors
    /// There is none, it is not ready or has ended, or the agent does not answer.
    pub fn open_command(&self, id: &str) -> Result<OpenCommand, HostError> {
        commands::open(self.inner(), &self.find(id)?, true)
    }

    /// Runs a command to its end, or until `limit` has passed.
    ///
    /// # Errors
    /// As [`Host::open_command`]; the command could not be run, or was not done in time and is killed.
    pub fn run_command(
        &self,
        id: &str,
        spec: ExecSpec,
        stdin: Vec<u8>,
        limit: Duration,
    ) -> Result<Finished, HostError> {
        commands::run(self.inner(), &self.find(id)?, spec, stdin, limit)
    }

    /// Asks a sandbox to end, and kills it when it has not done so after `grace`. Returns when it has ended.
    ///
    /// # Errors
    /// There is none, or it survives.
    pub fn stop(&self, id: &str, grace: Duration) -> Result<(), HostError> {
        stop::stop(self.inner(), &self.find(id)?, grace)
    }

    /// Kills a sandbox. Returns when it has ended.
    ///
    /// # Errors
    /// As [`Host::stop`].
    pub fn kill(&self, id: &str) -> Result<(), HostError> {
        stop::kill(self.inner(), &self.find(id)?)
    }

    /// Removes the record of a sandbox that has ended; of a living one, which is killed, only with `force`.
    ///
    /// # Errors
    /// There is none, it lives, or it survives.
    pub fn remove(&self, id: &str, force: bool) -> Result<(), HostError> {
        stop::remove(self.inner(), &self.find(id)?, force)
    }

    /// Waits until a sandbox has ended, or for `limit`; what is so then.
    ///
    /// # Errors
    /// There is none.
    pub fn wait(&self, id: &str, limit: Duration) -> Result<Detail, HostError> {
        let resident = self.find(id)?;
        let deadline = Instant::now().checked_add(limit);
        drop(resident.wait_while(deadline, |state| !state.phase.is_final()));
        Ok(resident.detail())
    }

    /// The file with what a sandbox's guest has printed on its console, which may not be there yet.
    ///
    /// # Errors
    /// There is no such sandbox, or it has ended and its console has gone with it.
    pub fn console(&self, id: &str) -> Result<PathBuf, HostError> {
        let resident = self.find(id)?;
        let state = resident.lock();
        if state.phase.is_final() {
            return Err(commands::over(&resident, &state));
        }
        Ok(resident.console())
    }

    /// Events after `since`, or from now on.
    #[must_use]
    pub fn watch(&self, since: Option<u64>) -> Watch {
        self.inner().events.watch(since)
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        stats::of(self.inner())
    }

    /// Who is told of the steps of starts; a later one takes the place of an earlier one.
    pub fn observe(&self, observer: Observer) {
        self.inner().set_observer(observer);
    }

    /// Lets go of images and templates that no sandbox uses, so that they can be removed.
    pub fn let_go(&self) {
        self.inner().lines.close_unused(self.inner());
    }

    #[must_use]
    pub fn store(&self) -> &Store {
        &self.inner().store
    }

    /// Ends the daemon's part: no more starts, those on their way are waited for. Sandboxes stay.
    pub fn close(self) {
        let inner = Arc::clone(self.inner());
        inner.close();
        let deadline = Instant::now() + LEAVE;
        for resident in inner.registry.all() {
            drop(resident.wait_while(Some(deadline), |state| state.starting));
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.close();
        self.inner.ends.inbox().tell(News::Stop);
        let ends = self
            .ends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if ends.is_some_and(|ends| ends.join().is_err()) {
            log::error!("the thread that hears of ends has failed");
        }
        for resident in self.inner.registry.all() {
            if let Some(slot) = resident.lock().slot.take() {
                slot.leave();
            }
        }
        self.inner.lines.leave();
        self.inner.events.close();
    }
}
