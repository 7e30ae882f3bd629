//! What the double knows, and what happens to its sandboxes.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rundlet_node::api::node::{Created, HostError};
use rundlet_node::host::model::{CreateSandbox, Detail, Event, Phase, Source, What};
use rundlet_node::image::Store;
use rundlet_node::metrics::Metrics;
use tokio::sync::{Semaphore, broadcast};

use crate::sandbox::{Sandbox, start_agent};

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) directory: PathBuf,
    pub(crate) metrics: Metrics,
    pub(crate) turns: Arc<Semaphore>,
    pub(crate) waiting: Semaphore,
    pub(crate) state: Mutex<State>,
    pub(crate) events: broadcast::Sender<Event>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) sandboxes: BTreeMap<String, Sandbox>,
    pub(crate) made: u64,
    pub(crate) past: Vec<Event>,
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

impl Inner {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tell(&self, state: &mut State, what: What) {
        let event = Event {
            sequence: state.past.len() as u64 + 1,
            at_ms: now_ms(),
            what,
        };
        state.past.push(event.clone());
        // Nobody listens, perhaps.
        let _ = self.events.send(event);
    }

    pub(crate) fn turn_to(&self, state: &mut State, id: &str, to: Phase, reason: Option<&str>) {
        let Some(sandbox) = state.sandboxes.get_mut(id) else {
            return;
        };
        let from = sandbox.phase;
        if from == to || matches!(from, Phase::Stopped | Phase::Failed) {
            return;
        }
        sandbox.phase = to;
        if matches!(to, Phase::Stopped | Phase::Failed) {
            sandbox.ended_ms = Some(now_ms());
            sandbox.end();
        }
        let labels = sandbox.wish.labels.clone();
        let what = What::Sandbox {
            id: id.into(),
            from: Some(from),
            to,
            reason: reason.map(str::to_owned),
            labels,
        };
        self.tell(state, what);
    }

    pub(crate) fn create(
        &self,
        wish: &CreateSandbox,
        key: Option<String>,
    ) -> Result<Created, HostError> {
        let begin = Instant::now();
        if let Source::Image(name) | Source::Template(name) = &wish.source
            && name.contains("missing")
        {
            return Err(HostError::NotFound {
                what: "image",
                name: name.clone(),
            });
        }
        let (id, directory) = match self.enter(wish, key)? {
            Ok(entered) => entered,
            Err(created) => return Ok(*created),
        };
        if let Some(ms) = wish.labels.get("double/delay-ms") {
            thread::sleep(Duration::from_millis(ms.parse().unwrap_or_default()));
        }
        let agent = match wish.labels.get("double/fail") {
            None => start_agent(&directory).map_err(|error| error.to_string()),
            Some(why) => Err(why.clone()),
        };
        let mut state = self.lock();
        match agent {
            Ok(agent) => {
                if let Some(sandbox) = state.sandboxes.get_mut(&id) {
                    sandbox.take(agent);
                }
                self.turn_to(&mut state, &id, Phase::Ready, None);
                self.metrics.start("ready", "image", begin.elapsed());
            }
            Err(message) => {
                self.turn_to(&mut state, &id, Phase::Failed, Some(&message));
                return Err(HostError::Start { id, message });
            }
        }
        let detail = detail(&state, &id)?;
        Ok(Created {
            detail,
            fresh: true,
        })
    }

    /// A new record, or, by its key, a sandbox that is there.
    pub(crate) fn enter(
        &self,
        wish: &CreateSandbox,
        key: Option<String>,
    ) -> Result<Result<(String, PathBuf), Box<Created>>, HostError> {
        let mut state = self.lock();
        let known = key.as_ref().and_then(|key| {
            let mut all = state.sandboxes.iter();
            all.find(|(_, it)| it.key.as_ref() == Some(key))
        });
        if let Some((id, sandbox)) = known {
            if sandbox.wish != *wish {
                let key = key.unwrap_or_default();
                return Err(HostError::KeyReused { key });
            }
            let detail = sandbox.detail(id);
            return Ok(Err(Box::new(Created {
                detail,
                fresh: false,
            })));
        }
        state.made += 1;
        let id = format!("{:012x}", state.made);
        let directory = self.directory.join("s").join(&id);
        let sandbox = Sandbox::new(wish.clone(), key, directory.clone(), now_ms())
            .map_err(|error| failed(&id, &error))?;
        state.sandboxes.insert(id.clone(), sandbox);
        let what = What::Sandbox {
            id: id.clone(),
            from: None,
            to: Phase::Creating,
            reason: None,
            labels: wish.labels.clone(),
        };
        self.tell(&mut state, what);
        Ok(Ok((id, directory)))
    }

    pub(crate) fn end(&self, id: &str) -> Result<(), HostError> {
        let mut state = self.lock();
        detail(&state, id)?;
        self.turn_to(&mut state, id, Phase::Stopping, None);
        self.turn_to(&mut state, id, Phase::Stopped, None);
        Ok(())
    }

    pub(crate) fn remove(&self, id: &str, force: bool) -> Result<(), HostError> {
        let phase = detail(&self.lock(), id)?.summary.phase;
        let ended = matches!(phase, Phase::Stopped | Phase::Failed);
        if !ended && !force {
            return Err(HostError::WrongPhase {
                id: id.into(),
                phase,
                message: "it lives; stop it first, or force it".into(),
            });
        }
        self.end(id)?;
        let mut state = self.lock();
        state.sandboxes.remove(id);
        self.tell(&mut state, What::Removed { id: id.into() });
        Ok(())
    }
}

pub(crate) fn failed(id: &str, error: &io::Error) -> HostError {
    HostError::Start {
        id: id.into(),
        message: error.to_string(),
    }
}

pub(crate) fn detail(state: &State, id: &str) -> Result<Detail, HostError> {
    let sandbox = state.sandboxes.get(id);
    sandbox
        .map(|it| it.detail(id))
        .ok_or_else(|| HostError::NotFound {
            what: "sandbox",
            name: id.into(),
        })
}
