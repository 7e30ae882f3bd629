//! Templates that no longer fit this host, its kernel or its VMM are built again: once, by one thread, however many
//! creates ask for it meanwhile. They wait for it, some of them and not for long; the others are told to ask again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::model::What;
use super::{HostError, Inner, LimitsConfig};
use crate::error::chain;
use crate::template::{self, Record, TemplateName};

/// How often those who wait look whether the daemon ends.
const LOOK: Duration = Duration::from_millis(500);

/// Why a template does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It was made of other files than there are now.
    Files,
    /// Its VMM says so: it is of another processor or build, or damaged.
    Refused(String),
}

impl Unfit {
    fn words(&self) -> &str {
        match self {
            Self::Files => "it was made of another kernel or initrd than there is now",
            Self::Refused(why) => why,
        }
    }
}

/// What is known of all of them.
#[derive(Debug)]
pub(super) struct Renewals {
    patience: Duration,
    most_waiting: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    /// By the ids of those that did not fit.
    builds: HashMap<String, Build>,
    /// The ids of those that were built here. One that is refused all the same would be so again.
    made: HashSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Build {
    Running,
    /// There is another one under the name.
    Done,
    Failed(String),
}

impl Renewals {
    /// Half of those that start at the same time may wait: starts of something else have the other half.
    pub(super) fn new(limits: &LimitsConfig) -> Self {
        let at_once = usize::try_from(limits.starts_at_once).unwrap_or(usize::MAX);
        Self {
            patience: Duration::from_secs(limits.start_deadline_s),
            most_waiting: (at_once / 2).max(1),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another template has the name of this one, which must not be locked by the caller.
    pub(super) fn renew(
        &self,
        inner: &Arc<Inner>,
        record: &Record,
        unfit: &Unfit,
    ) -> Result<(), HostError> {
        let mut state = self.lock();
        if matches!(unfit, Unfit::Refused(_)) && state.made.contains(&record.id) {
            return Err(refused(record, unfit, "it was just built"));
        }
        if !state.builds.contains_key(&record.id) {
            state.builds.insert(record.id.clone(), Build::Running);
            // Its end takes the lock, and may come at once.
            drop(state);
            begin(inner, record, unfit);
            state = self.lock();
        }
        self.wait(inner, state, record, unfit)
    }

    fn wait(
        &self,
        inner: &Inner,
        mut state: MutexGuard<'_, State>,
        record: &Record,
        unfit: &Unfit,
    ) -> Result<(), HostError> {
        let deadline = Instant::now() + self.patience;
        let late = |why: &str| Err(late(&record.name, unfit, why));
        let mut counted = false;
        let result = loop {
            match state.builds.get(&record.id) {
                Some(Build::Running) => {}
                Some(Build::Failed(why)) => break Err(refused(record, unfit, why)),
                Some(Build::Done) | None => break Ok(()),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if inner.is_closing() {
                break Err(HostError::Closing);
            }
            if left.is_zero() {
                let seconds = self.patience.as_secs();
                break late(&format!("it was not ready within {seconds} seconds"));
            }
            if !counted && state.waiting >= self.most_waiting {
                break late("others wait for it already");
            }
            state.waiting += usize::from(!counted);
            counted = true;
            let waited = self.changed.wait_timeout(state, left.min(LOOK));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        state.waiting -= usize::from(counted);
        result
    }

    fn done(&self, unfit: &Record, build: Build, made: Option<String>) {
        let mut state = self.lock();
        state.builds.insert(unfit.id.clone(), build);
        state.made.extend(made);
        drop(state);
        self.changed.notify_all();
    }
}

/// On a thread of its own: whoever asked may give up.
fn begin(inner: &Arc<Inner>, record: &Record, unfit: &Unfit) {
    let (template, why) = (record.name.to_string(), unfit.words().to_owned());
    log::warn!("template {template} is built again: {why}");
    inner.events.publish(What::TemplateUnfit { template, why });
    let mut building = Building {
        inner: Arc::clone(inner),
        record: record.clone(),
        over: false,
    };
    let build = move || {
        let built = template::build::renew_in(&building.inner.store, &building.record);
        building.end(built.map_err(|error| chain(&error)));
    };
    // Without a thread the build is dropped, and has failed.
    if let Err(error) = thread::Builder::new().name("template".into()).spawn(build) {
        log::error!("cannot start a thread to build a template: {error}");
    }
}

/// A build under way. Dropped before its end, it has failed.
struct Building {
    inner: Arc<Inner>,
    record: Record,
    over: bool,
}

impl Building {
    fn end(&mut self, built: Result<Record, String>) {
        self.over = true;
        let template = self.record.name.to_string();
        let (build, made, error) = match built {
            Ok(new) => {
                log::info!("template {template} was built again: {}", new.id);
                (Build::Done, Some(new.id), None)
            }
            Err(why) => {
                log::error!("template {template} cannot be built again: {why}");
                (Build::Failed(why.clone()), None, Some(why))
            }
        };
        self.inner.renewals.done(&self.record, build, made);
        let what = What::TemplateRebuilt { template, error };
        self.inner.events.publish(what);
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if !self.over {
            self.end(Err(
                "there was no thread to build it, or it has failed".into()
            ));
        }
    }
}

fn refused(record: &Record, unfit: &Unfit, why: &str) -> HostError {
    let (name, words) = (&record.name, unfit.words());
    let message = format!(
        "template {name} does not fit, and is not built again: {words}; {why}; `rundlet template build {} {name}` makes a new one",
        record.recipe.image
    );
    HostError::invalid("source.template", message)
}

fn late(name: &TemplateName, unfit: &Unfit, why: &str) -> HostError {
    let words = unfit.words();
    HostError::Late {
        message: format!("template {name} does not fit and is being built again: {words}; {why}"),
    }
}
