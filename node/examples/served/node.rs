//! The double of a node. Labels of a wish say what shall happen: `double/delay-ms` makes the start slow,
//! `double/fail` makes it fail.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rundlet_node::agent::{CommandEvent, Connection, Streams};
use rundlet_node::api::node::{Filter, Finished, HostError, Later, Line, Node, Turn, Watcher};
use rundlet_node::host::model::{Detail, Event, Phase, Summary};
use rundlet_node::image::Store;
use rundlet_node::metrics::{Class, Figures, Metrics, Slots};
use rundlet_protocol::ExecSpec;
use tokio::sync::{Semaphore, broadcast};

use crate::outputs::{Output, Outputs};
use crate::sandbox::dial;
use crate::state::{Inner, detail, failed};

/// Starts at once, and those that may wait.
const AT_ONCE: usize = 4;
const QUEUE: usize = 64;

pub(crate) struct Double(Arc<Inner>);

impl Double {
    pub(crate) fn open(
        directory: &Path,
        metrics: Metrics,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        fs::create_dir_all(directory)?;
        Ok(Self(Arc::new(Inner {
            store: Store::open(&directory.join("store"))?,
            directory: directory.into(),
            metrics,
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Semaphore::new(AT_ONCE + QUEUE),
            state: Mutex::default(),
            events: broadcast::channel(4096).0,
        })))
    }
}

/// A command that is under way.
struct Hold(Arc<Inner>, String);

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let Some(sandbox) = state.sandboxes.get_mut(&self.1) else {
            return;
        };
        sandbox.commands -= 1;
        let remove = sandbox.wish.auto_remove;
        drop(state);
        if remove {
            // Somebody else has done it, perhaps.
            let _ = self.0.remove(&self.1, true);
        }
    }
}

struct Reader {
    past: Vec<Event>,
    live: broadcast::Receiver<Event>,
}

impl Watcher for Reader {
    fn recv(&mut self) -> Later<'_, Option<Event>> {
        Box::pin(async {
            if self.past.is_empty() {
                self.live.recv().await.ok()
            } else {
                Some(self.past.remove(0))
            }
        })
    }
}

impl Node for Double {
    fn admit(&self) -> Later<'_, Result<Turn, HostError>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let full = |_| HostError::Full {
                what: "starts",
                limit: QUEUE as u64,
                message: format!("{QUEUE} starts wait already"),
            };
            let place = self.0.waiting.try_acquire().map_err(full)?;
            let turn = Arc::clone(&self.0.turns).acquire_owned().await;
            drop(place);
            let turn = turn.map_err(|_| HostError::Closing)?;
            Ok(Box::new(move |wish, key| {
                let _turn = turn;
                inner.create(&wish, key)
            }) as Turn)
        })
    }

    fn list(&self, filter: &Filter) -> Vec<Summary> {
        let state = self.0.lock();
        let mut all: Vec<_> = state
            .sandboxes
            .iter()
            .map(|(id, it)| it.summary(id))
            .collect();
        all.retain(|it| {
            let labels = &filter.labels;
            labels.iter().all(|(k, v)| it.labels.get(k) == Some(v))
                && (filter.phases.is_empty() || filter.phases.contains(&it.phase))
        });
        all
    }

    fn inspect(&self, id: &str) -> Result<Detail, HostError> {
        detail(&self.0.lock(), id)
    }

    fn open_command(&self, id: &str) -> Result<Line, HostError> {
        let mut state = self.0.lock();
        let phase = detail(&state, id)?.summary.phase;
        if !matches!(phase, Phase::Ready | Phase::Running) {
            return Err(HostError::WrongPhase {
                id: id.into(),
                phase,
                message: "it runs no commands".into(),
            });
        }
        self.0.turn_to(&mut state, id, Phase::Running, None);
        let Some(sandbox) = state.sandboxes.get_mut(id) else {
            return Err(HostError::Closing);
        };
        sandbox.commands += 1;
        let (directory, env) = (sandbox.directory.clone(), sandbox.wish.env.clone());
        drop(state);
        let held = Box::new(Hold(Arc::clone(&self.0), id.into()));
        let stream = dial(&directory).map_err(|error| failed(id, &error))?;
        Ok(Line { stream, env, held })
    }

    fn run_command(
        &self,
        id: &str,
        spec: ExecSpec,
        stdin: Vec<u8>,
        limit: Duration,
    ) -> Result<Finished, HostError> {
        let line = self.open_command(id)?;
        let mut spec = spec;
        for (name, value) in line.env {
            spec.env.entry(name).or_insert(value);
        }
        let (outputs, sender) = (Outputs::default(), mpsc::channel());
        let (sender, events) = sender;
        let streams = Streams {
            stdin: spec.stdin.then(|| Box::new(io::Cursor::new(stdin)) as _),
            stdout: Box::new(Output(Arc::clone(&outputs.stdout))),
            stderr: Box::new(Output(Arc::clone(&outputs.stderr))),
        };
        let connection = Connection::greet(line.stream)?;
        let _command = connection.exec(spec, streams, move |event| drop(sender.send(event)))?;
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match events.recv_timeout(left) {
                Ok(CommandEvent::Exited(status)) => return Ok(outputs.finished(status)),
                Ok(CommandEvent::Failed(failure)) => {
                    return Err(rundlet_node::agent::AgentError::Failed(failure).into());
                }
                Ok(CommandEvent::Lost(error)) => return Err(error.into()),
                Ok(_) => {}
                Err(_) => {
                    return Err(HostError::Late {
                        message: "the command was not done in time".into(),
                    });
                }
            }
        }
    }

    fn stop(&self, id: &str, _: Duration) -> Result<(), HostError> {
        self.0.end(id)
    }

    fn kill(&self, id: &str) -> Result<(), HostError> {
        self.0.end(id)
    }

    fn remove(&self, id: &str, force: bool) -> Result<(), HostError> {
        self.0.remove(id, force)
    }

    fn console(&self, id: &str) -> Result<PathBuf, HostError> {
        let state = self.0.lock();
        detail(&state, id)?;
        Ok(self.0.directory.join("s").join(id).join("console.log"))
    }

    fn watch(&self, since: Option<u64>) -> Box<dyn Watcher> {
        let state = self.0.lock();
        let past = since.map(|since| {
            let news = state.past.iter().filter(|it| it.sequence > since);
            news.cloned().collect()
        });
        Box::new(Reader {
            past: past.unwrap_or_default(),
            live: self.0.events.subscribe(),
        })
    }

    fn figures(&self) -> Figures {
        let state = self.0.lock();
        let count = |phase| {
            let all = state.sandboxes.values();
            all.filter(|it| it.phase == phase).count() as u64
        };
        let phases = [
            Phase::Creating,
            Phase::Ready,
            Phase::Running,
            Phase::Stopped,
        ];
        Figures {
            sandboxes: phases.map(|it| (it, count(it))).into(),
            slots: Slots {
                free: 8,
                ..Slots::default()
            },
            starts: vec![("admitted".into(), state.made)],
            classes: vec![Class {
                kind: "image",
                name: "img:latest".into(),
                ..Class::default()
            }],
            ..Figures::default()
        }
    }

    fn store(&self) -> &Store {
        &self.0.store
    }

    fn let_go(&self) {}
}
