//! A daemon as a system: sandboxes come from its API. One that serves already, or one of our own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::WayError;
use super::super::process;
use super::super::system::{Process, Role, Sandbox, StartFailure, Started, System, steps};
use crate::claim::Claim;
use crate::client::Client;
use crate::error::{PathError, chain};
use crate::host::model::{CreateSandbox, Detail, Limits, Source};
use crate::pool;
use crate::run::Place;
use crate::sandbox::peer::{Nest, Peer, Place as Corner};
use crate::template::TemplateName;

/// For a daemon to answer: it makes its pool before.
const OPENING: Duration = Duration::from_secs(60);

/// What a sandbox lives at most, seconds, should nobody be there to remove it.
const LIFE_S: u64 = 3600;

/// How long a start may wait for a slot that is being emptied, milliseconds.
const SLOT_WAIT_MS: u64 = 10_000;

/// What a daemon of our own is needed for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Its cgroup, which is not there yet.
    pub(super) root: PathBuf,
    /// Living sandboxes at most.
    pub(super) alive: usize,
    pub(super) at_once: usize,
}

impl Wanted {
    /// A slot for each that lives, and some for those that are being emptied.
    fn slots(&self) -> usize {
        self.alive + 16.max(4 * self.at_once)
    }
}

/// A daemon.
pub(super) struct Daemon {
    clients: Clients,
    template: TemplateName,
    pid: u32,
    /// Absent for one that somebody else has started.
    _own: Option<Own>,
}

impl Daemon {
    /// One that serves.
    pub(super) fn found(socket: &Path, template: TemplateName) -> Result<Self, StartFailure> {
        let clients = Clients::at(socket);
        let pid = clients.with(Client::health)?.pid;
        Ok(Self {
            clients,
            template,
            pid,
            _own: None,
        })
    }

    /// One of our own, in a directory and a cgroup that go with it. It does not jail its sandboxes, as a fleet does not.
    pub(super) fn start(
        place: &Place,
        template: TemplateName,
        wanted: &Wanted,
    ) -> Result<Self, StartFailure> {
        if wanted.root.exists() {
            return Err(WayError::There(wanted.root.clone()).into());
        }
        let run = Claim::create_random(&place.runtime, "node")?;
        let nest = Nest::over(run, &wanted.root)?;
        let corner = nest.place("d")?;
        let socket = corner.socket("api.sock")?;
        let config = corner.path().join("config.json");
        let text = config_of(place, corner.path(), &socket, wanted);
        fs::write(&config, text).map_err(PathError::at("write", &config))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg("--config").arg(&config);
        let process = nest.spawn_ours(&corner, command)?;
        let own = Own {
            process: Some(process),
            root: wanted.root.clone(),
            _corner: corner,
            _nest: nest,
        };
        let clients = Clients::at(&socket);
        let pid = own.until(|| clients.with(Client::health).ok())?.pid;
        Ok(Self {
            clients,
            template,
            pid,
            _own: Some(own),
        })
    }

    fn wish(&self, id: &str) -> CreateSandbox {
        CreateSandbox {
            source: Source::Template(self.template.to_string()),
            memory_mib: None,
            vcpus: None,
            scratch_mib: None,
            env: Default::default(),
            labels: [("bench".to_owned(), id.to_owned())].into(),
            timeout_s: Some(LIFE_S),
            limits: Limits::default(),
            auto_remove: false,
        }
    }
}

fn config_of(place: &Place, run: &Path, socket: &Path, wanted: &Wanted) -> String {
    json!({
        "run": run,
        "store": place.store.root(),
        "socket": {"path": socket, "mode": "0600"},
        "cgroup": {"root": wanted.root, "slots": wanted.slots(), "wait_ms": SLOT_WAIT_MS},
        "limits": {"starts_at_once": wanted.at_once.clamp(1, 1024)},
        "log": "warn",
    })
    .to_string()
}

/// A process of ours, and all that it has made.
struct Own {
    process: Option<Peer>,
    root: PathBuf,
    _corner: Corner,
    _nest: Nest,
}

impl Own {
    fn until<T>(&self, attempt: impl FnMut() -> Option<T>) -> Result<T, StartFailure> {
        let Some(process) = &self.process else {
            return Err(StartFailure("the daemon has ended".into()));
        };
        Ok(process.until(OPENING, attempt)?)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // What it has started outlives it, as it should: it is in the cgroup.
        self.process = None;
        if let Err(error) = pool::clear(&self.root) {
            log::warn!("{}", chain(&error));
        }
    }
}

impl System for Daemon {
    fn start(&self, id: &str) -> Result<Box<dyn Sandbox>, StartFailure> {
        let client = self.clients.take()?;
        let wish = self.wish(id);
        let requested = Instant::now();
        let created = client.create(&wish, None);
        let ready = Instant::now();
        self.clients.put(client);
        let detail = created?;
        Ok(Box::new(Served {
            started: started(requested, ready, &detail),
            id: detail.summary.id,
            pid: detail.pid,
            clients: self.clients.clone(),
        }))
    }

    fn shared(&self) -> Vec<Process> {
        let helper = |pid| Process {
            pid,
            role: Role::Helper,
        };
        // Its zygotes and block backends; not one that an earlier daemon has started.
        let children = process::children(self.pid);
        [self.pid].into_iter().chain(children).map(helper).collect()
    }
}

/// One of its sandboxes.
struct Served {
    started: Started,
    id: String,
    pid: Option<u32>,
    clients: Clients,
}

impl Sandbox for Served {
    fn started(&self) -> &Started {
        &self.started
    }

    fn processes(&self) -> Vec<Process> {
        let vmm = |pid| Process {
            pid,
            role: Role::Vmm,
        };
        self.pid.map(vmm).into_iter().collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Err(error) = self.clients.with(|it| it.remove(&self.id, true)) {
            log::warn!("sandbox {}: {}", self.id, error);
        }
    }
}

/// The daemon's instants count from the moment at which the start's turn had come.
fn started(requested: Instant, ready: Instant, detail: &Detail) -> Started {
    let whole = ready.saturating_duration_since(requested);
    let at = |name: &str| {
        let at = detail.timeline_us.get(name).copied();
        Duration::from_micros(at.unwrap_or_default()).min(whole)
    };
    // What is before its zero and after its end is one step, at the beginning.
    let zero = requested + whole.saturating_sub(at("ready"));
    let marks = [
        ("client, API and queue", zero),
        ("daemon: slot", zero + at("slot")),
        ("daemon: record, zygote, fork", zero + at("forked")),
        ("VMM: until it runs", zero + at("running")),
        ("agent: renewal, and record", ready),
    ];
    Started {
        requested,
        ready,
        steps: steps(requested, &marks),
    }
}

/// Clients that are kept from one request to the next: making one is none of the daemon's work.
#[derive(Clone)]
struct Clients {
    socket: PathBuf,
    idle: std::sync::Arc<Mutex<Vec<Client>>>,
}

impl Clients {
    fn at(socket: &Path) -> Self {
        Self {
            socket: socket.into(),
            idle: Default::default(),
        }
    }

    fn take(&self) -> Result<Client, crate::client::ClientError> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        idle.map_or_else(|| Client::new(&self.socket), Ok)
    }

    fn put(&self, client: Client) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(client);
    }

    fn with<T>(
        &self,
        ask: impl FnOnce(&Client) -> Result<T, crate::client::ClientError>,
    ) -> Result<T, crate::client::ClientError> {
        let client = self.take()?;
        let result = ask(&client);
        self.put(client);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::config::Config;
    use crate::host::model::{Phase, Summary};
    use crate::image::Store;

    #[test]
    fn a_start_s_steps_are_all_of_it_whatever_the_daemon_says() {
        let requested = Instant::now();
        let ready = requested + Duration::from_millis(10);
        for (instants, first_ms) in [
            (
                vec![
                    ("slot", 1000),
                    ("forked", 2000),
                    ("running", 5000),
                    ("ready", 8000),
                ],
                2,
            ),
            (vec![("ready", 90_000)], 0),
            (vec![], 10),
        ] {
            let detail = Detail {
                summary: Summary {
                    id: "0".into(),
                    phase: Phase::Ready,
                    reason: None,
                    source: Source::Template("t".into()),
                    labels: Default::default(),
                    created_ms: 0,
                    ended_ms: None,
                },
                memory_mib: 128,
                vcpus: 1,
                limits: Limits::default(),
                timeout_s: None,
                timeline_us: instants
                    .into_iter()
                    .map(|(name, us)| (name.to_owned(), us))
                    .collect(),
                cgroup: None,
                pid: None,
                memory_bytes: None,
                cpu_us: None,
                commands: 0,
                recovered: false,
            };
            let started = started(requested, ready, &detail);
            let sum: Duration = started.steps.iter().map(|it| it.took).sum();
            assert_eq!(sum, started.took());
            assert_eq!(started.steps[0].took, Duration::from_millis(first_ms));
        }
    }

    #[test]
    fn a_daemon_of_our_own_takes_its_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place {
            store: Store::open(&directory.path().join("store")).unwrap(),
            runtime: directory.path().into(),
        };
        let wanted = Wanted {
            root: "/sys/fs/cgroup/x".into(),
            alive: 50,
            at_once: 8,
        };
        let run = directory.path().join("d");
        let text = config_of(&place, &run, &run.join("api.sock"), &wanted);
        let path = directory.path().join("config.json");
        fs::write(&path, text).unwrap();
        let config = Config::load(Some(&path)).unwrap();
        assert_eq!(config.cgroup.slots, 50 + 32);
        assert_eq!(config.limits.sandboxes, 82);
        assert_eq!(config.limits.starts_at_once, 8);
        assert_eq!(config.store, place.store.root());
        assert!(config.jail.is_none());
    }
}
