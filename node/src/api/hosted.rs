//! The host of a daemon, as the API's node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rundlet_protocol::ExecSpec;

use super::node::{Later, Line, Node, Turn, Watcher};
use crate::host::model::{Detail, Event, Source, Summary};
use crate::host::{BackendStats, Filter, Finished, Host, HostError, OpenCommand, Watch};
use crate::image::Store;
use crate::metrics::{Backend, Class, Figures, Slots};

impl Watcher for Watch {
    fn recv(&mut self) -> Later<'_, Option<Event>> {
        Box::pin(Watch::recv(self))
    }
}

impl Node for Host {
    fn admit(&self) -> Later<'_, Result<Turn, HostError>> {
        Box::pin(async move {
            let permit = Host::admit(self).await?;
            let host = self.clone();
            let turn: Turn = Box::new(move |wish, key| host.create(permit, wish, key));
            Ok(turn)
        })
    }

    fn list(&self, filter: &Filter) -> Vec<Summary> {
        Host::list(self, filter)
    }

    fn inspect(&self, id: &str) -> Result<Detail, HostError> {
        Host::inspect(self, id)
    }

    fn open_command(&self, id: &str) -> Result<Line, HostError> {
        let OpenCommand { stream, env, held } = Host::open_command(self, id)?;
        Ok(Line {
            stream,
            env,
            held: Box::new(held),
        })
    }

    fn run_command(
        &self,
        id: &str,
        spec: ExecSpec,
        stdin: Vec<u8>,
        limit: Duration,
    ) -> Result<Finished, HostError> {
        Host::run_command(self, id, spec, stdin, limit)
    }

    fn stop(&self, id: &str, grace: Duration) -> Result<(), HostError> {
        Host::stop(self, id, grace)
    }

    fn kill(&self, id: &str) -> Result<(), HostError> {
        Host::kill(self, id)
    }

    fn remove(&self, id: &str, force: bool) -> Result<(), HostError> {
        Host::remove(self, id, force)
    }

    fn console(&self, id: &str) -> Result<PathBuf, HostError> {
        Host::console(self, id)
    }

    fn watch(&self, since: Option<u64>) -> Box<dyn Watcher> {
        Box::new(Host::watch(self, since))
    }

    fn figures(&self) -> Figures {
        let stats = self.stats();
        let number = |it: usize| u64::try_from(it).unwrap_or(u64::MAX);
        let mut starts = vec![("admitted".to_owned(), stats.starts.admitted_total)];
        let refused = stats.starts.refused_total;
        starts.extend(
            refused
                .into_iter()
                .map(|(why, count)| (why.to_owned(), count)),
        );
        Figures {
            sandboxes: stats
                .phases
                .into_iter()
                .map(|(phase, count)| (phase, number(count)))
                .collect(),
            slots: Slots {
                free: number(stats.pool.free),
                claimed: number(stats.pool.claimed),
                releasing: number(stats.pool.releasing),
                set_aside: number(stats.pool.set_aside),
            },
            starts_running: number(stats.starts.running),
            starts_queued: number(stats.starts.queued),
            starts,
            memory_committed_bytes: stats.committed_memory_mib.saturating_mul(1024 * 1024),
            classes: classes(self),
            backends: stats.backends.into_iter().filter_map(backend).collect(),
        }
    }

    fn store(&self) -> &Store {
        Host::store(self)
    }

    fn let_go(&self) {
        Host::let_go(self);
    }
}

/// One that says what it has done.
fn backend(stats: BackendStats) -> Option<Backend> {
    let (kind, name) = of(stats.source);
    Some(Backend {
        kind,
        name,
        figures: stats.figures?,
    })
}

fn of(source: Source) -> (&'static str, String) {
    match source {
        Source::Image(name) => ("image", name),
        Source::Template(name) => ("template", name),
    }
}

/// What the living use, by what they are made of.
fn classes(host: &Host) -> Vec<Class> {
    let mut classes: BTreeMap<(&'static str, String), Class> = BTreeMap::new();
    for summary in Host::list(host, &Filter::default()) {
        if summary.phase.is_final() {
            continue;
        }
        let Ok(detail) = Host::inspect(host, &summary.id) else {
            continue;
        };
        let (kind, name) = of(summary.source);
        let class = classes
            .entry((kind, name.clone()))
            .or_insert_with(|| Class {
                kind,
                name,
                ..Class::default()
            });
        class.memory_bytes += detail.memory_bytes.unwrap_or_default();
        class.cpu_us += detail.cpu_us.unwrap_or_default();
    }
    classes.into_values().collect()
}
