//! Slots that are directories. What is born in one is in its `cgroup.procs`, because the double writes it there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rundlet_node::host::model::Limits;
use rundlet_node::host::slots::{OnSetAside, Place, Slots};
use rundlet_node::pool::{PoolError, PoolStats};
use rustix::process::{Pid, Signal, kill_process};

#[derive(Debug)]
pub(crate) struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    free: BTreeSet<String>,
    /// Had something in them when the pool was opened.
    found: BTreeSet<String>,
    all: usize,
}

impl Pool {
    pub(crate) fn open(root: &Path, slots: u32) -> io::Result<Self> {
        let mut state = State::default();
        for number in 0..slots {
            let name = format!("slot-{number:04}");
            fs::create_dir_all(root.join(&name))?;
            state.all += 1;
            if processes(&root.join(&name)).is_empty() {
                state.free.insert(name);
            } else {
                state.found.insert(name);
            }
        }
        let root = root.to_path_buf();
        let state = Mutex::new(state);
        Ok(Self(Arc::new(Inner { root, state })))
    }

    fn place(&self, name: String) -> Box<dyn Place> {
        let pool = Arc::clone(&self.0);
        Box::new(Slot { name, pool })
    }
}

impl Slots for Pool {
    fn claim(&self, _: &Limits) -> Result<Box<dyn Place>, PoolError> {
        let mut state = self.0.state.lock().unwrap();
        let slots = state.all;
        let name = state.free.pop_first();
        Ok(self.place(name.ok_or(PoolError::Exhausted { slots })?))
    }

    fn adopt(&self, name: &str) -> Result<Box<dyn Place>, PoolError> {
        let mut state = self.0.state.lock().unwrap();
        if state.found.remove(name) || state.free.remove(name) {
            return Ok(self.place(name.to_owned()));
        }
        Err(PoolError::NotToAdopt(name.to_owned()))
    }

    fn finish_recovery(&self) {
        let found = std::mem::take(&mut self.0.state.lock().unwrap().found);
        for name in found {
            self.0.release(&name);
        }
    }

    fn join_helpers(&self, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn stats(&self) -> PoolStats {
        let state = self.0.state.lock().unwrap();
        PoolStats {
            slots: state.all,
            free: state.free.len(),
            claimed: state.all - state.free.len(),
            releasing: 0,
            set_aside: 0,
        }
    }

    fn on_set_aside(&self, _: OnSetAside) {}
}

impl Inner {
    fn release(&self, name: &str) {
        let directory = self.root.join(name);
        for pid in processes(&directory) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = fs::remove_file(directory.join("cgroup.procs"));
        self.state.lock().unwrap().free.insert(name.to_owned());
    }
}

/// Those of a slot that have not ended.
fn processes(directory: &Path) -> Vec<Pid> {
    let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    procs
        .lines()
        .filter(|pid| Path::new("/proc").join(pid).exists())
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
}

#[derive(Debug)]
struct Slot {
    name: String,
    pool: Arc<Inner>,
}

impl Place for Slot {
    fn fd(&self) -> io::Result<OwnedFd> {
        Ok(fs::File::open(self.pool.root.join(&self.name))?.into())
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> PathBuf {
        Path::new("pool").join(&self.name)
    }

    fn memory_current(&self) -> io::Result<u64> {
        Ok(4096)
    }

    fn cpu_usage_us(&self) -> io::Result<u64> {
        Ok(1)
    }

    fn leave(self: Box<Self>) {
        // It stays taken, and its processes alone.
        std::mem::forget(self);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.release(&self.name);
    }
}

/// What is not free, by name.
pub(crate) fn taken(root: &Path) -> BTreeMap<String, usize> {
    let slots = fs::read_dir(root).into_iter().flatten().flatten();
    slots
        .map(|slot| {
            let name = slot.file_name().to_string_lossy().into_owned();
            (name, processes(&slot.path()).len())
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}
