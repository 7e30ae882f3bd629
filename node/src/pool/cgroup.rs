//! The pool of cgroup slots: who has which. A claim is answered from memory; the kernel is asked only for limits that
//! the slot does not have yet.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::group::Group;
use super::release::{self, Queue};
use super::slot::Slot;
use super::tree::{Found, HELPERS, Tree};
use super::{PoolError, PoolStats, limits};
use crate::error::PathError;
use crate::host::config::CgroupConfig;
use crate::host::model::Limits;

/// A slot in nobody's hands.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) group: Group,
    /// Its limits as they were last written; unknown after an error or from another time.
    pub(super) limits: Option<Limits>,
    /// Usage of its owners so far.
    pub(super) cpu_base_us: u64,
    /// Not to be claimed again.
    pub(super) surplus: bool,
}

/// Told of a slot that was set aside, and why.
pub(super) type OnSetAside = dyn Fn(&str, &str) + Send + Sync;

/// The pool. Its clones are the same pool.
#[derive(Clone, Debug)]
pub struct CgroupPool(Arc<Inner>);

pub(super) struct Inner {
    tree: Tree,
    wait: Duration,
    /// Limits of a slot that waits for its next owner.
    pub(super) resting: Limits,
    state: Mutex<State>,
    changed: Condvar,
    queue: Queue,
    on_set_aside: Mutex<Option<Arc<OnSetAside>>>,
    /// Locked: one pool, one process.
    _lock: File,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Place>,
    /// In use when the pool was opened, by names; nobody has said yet whose they are.
    found: BTreeMap<String, Place>,
    slots: usize,
    claimed: usize,
    releasing: usize,
    set_aside: usize,
}

impl CgroupPool {
    /// Makes what is missing. Slots that are in use already wait for [`CgroupPool::adopt`] and
    /// [`CgroupPool::finish_recovery`].
    ///
    /// # Errors
    /// No cgroup2, no controllers, no rights, or another pool is at work there.
    pub fn open(config: &CgroupConfig) -> Result<Self, PoolError> {
        Self::open_resting(config, &Limits::default())
    }

    /// The same, with the limits that most claims will have: free slots have them already, and such a claim writes
    /// nothing.
    ///
    /// # Errors
    /// As [`CgroupPool::open`].
    pub fn open_resting(config: &CgroupConfig, resting: &Limits) -> Result<Self, PoolError> {
        Self::open_in(
            Tree::find(&config.root)?,
            config,
            resting,
            release::PATIENCE,
        )
    }

    pub(super) fn open_in(
        tree: Tree,
        config: &CgroupConfig,
        resting: &Limits,
        patience: Duration,
    ) -> Result<Self, PoolError> {
        tree.make_root()?;
        let lock = lock(&tree.root)?;
        tree.enable_controllers()?;
        tree.make_leaf(HELPERS)?;
        let mut state = State::default();
        for found in tree.slots(config.slots)? {
            state.take_in(&tree, found, resting)?;
        }
        // The first claims get the first slots.
        state.free.reverse();
        let (queue, orders) = release::queue().map_err(PoolError::Thread)?;
        let inner = Arc::new(Inner {
            tree,
            wait: Duration::from_millis(config.wait_ms),
            resting: resting.clone(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            queue,
            on_set_aside: Mutex::new(None),
            _lock: lock,
        });
        release::start(&inner, orders, patience).map_err(PoolError::Thread)?;
        Ok(Self(inner))
    }

    /// Takes a free slot and gives it these limits; absent ones are no limits. Waits for one no longer than the
    /// configuration says.
    ///
    /// # Errors
    /// None is free, or the kernel refuses a limit.
    pub fn claim(&self, limits: &Limits) -> Result<Slot, PoolError> {
        let mut place = self.0.take()?;
        if place.limits.as_ref() != Some(limits) {
            if let Err(error) = limits::write(&place.group, place.limits.as_ref(), limits) {
                place.limits = None;
                self.0.give_back(place, Stage::Claimed);
                return Err(error);
            }
            place.limits = Some(limits.clone());
        }
        Ok(Slot::new(place, Arc::clone(&self.0)))
    }

    /// Takes the slot that a sandbox found after a restart lives in, or lived in.
    ///
    /// # Errors
    /// It is not there, or in other hands.
    pub fn adopt(&self, name: &str) -> Result<Slot, PoolError> {
        let mut state = self.0.lock();
        let found = state.found.remove(name);
        let place = found.or_else(|| {
            let index = state.free.iter().position(|place| place.name == name)?;
            state.claimed += 1;
            Some(state.free.swap_remove(index))
        });
        drop(state);
        match place {
            Some(place) => Ok(Slot::new(place, Arc::clone(&self.0))),
            None => Err(PoolError::NotToAdopt(name.to_owned())),
        }
    }

    /// Kills what is in slots that nobody has adopted, and takes these back.
    pub fn finish_recovery(&self) {
        let orphans = std::mem::take(&mut self.0.lock().found);
        for place in orphans.into_values() {
            let path = place.group.path().display();
            log::warn!("nobody knows what runs in {path}: it is killed");
            self.0.release(place);
        }
    }

    /// Moves a process that serves all sandboxes out of the daemon's own cgroup, so that a restart of the service
    /// leaves it alone.
    ///
    /// # Errors
    /// It has ended, or may not be moved.
    pub fn join_helpers(&self, pid: u32) -> io::Result<()> {
        self.0.tree.group(HELPERS).join(pid)
    }

    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.0.lock().stats()
    }

    /// Whom to tell of slots that are set aside: their names, and why. There is one listener; a later one takes the
    /// place of an earlier one.
    pub fn on_set_aside(&self, callback: impl Fn(&str, &str) + Send + Sync + 'static) {
        let listener = self.0.on_set_aside.lock();
        *listener.unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(callback));
    }

    /// Waits until no slot is being emptied, at most for `limit`; whether that came true.
    #[must_use]
    pub fn settle(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.0.lock();
        while state.releasing > 0 {
            match self.0.wait_until(state, deadline) {
                Ok(woken) => state = woken,
                Err(_) => return false,
            }
        }
        true
    }
}

/// Who gives a slot back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A claim that failed.
    Claimed,
    /// The thread that empties slots.
    Releasing,
    /// The same, of one that it had given up.
    SetAside,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn mount(&self) -> &Path {
        &self.tree.mount
    }

    fn take(&self) -> Result<Place, PoolError> {
        let deadline = Instant::now() + self.wait;
        let mut state = self.lock();
        loop {
            if let Some(place) = state.free.pop() {
                state.claimed += 1;
                return Ok(place);
            }
            state = match self.wait_until(state, deadline) {
                Ok(state) => state,
                Err(state) => return Err(PoolError::Exhausted { slots: state.slots }),
            };
        }
    }

    /// `Err` when the time is over.
    fn wait_until<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Instant,
    ) -> Result<MutexGuard<'a, State>, MutexGuard<'a, State>> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(state);
        }
        let woken = self.changed.wait_timeout(state, left);
        Ok(woken.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Hands an owner's slot to the thread that empties it.
    pub(super) fn release(&self, place: Place) {
        let mut state = self.lock();
        state.claimed -= 1;
        state.releasing += 1;
        drop(state);
        self.queue.push(place);
    }

    /// An empty slot: free from now on.
    pub(super) fn give_back(&self, place: Place, from: Stage) {
        let mut state = self.lock();
        *state.count(from) -= 1;
        if place.surplus {
            state.slots -= 1;
        } else {
            state.free.push(place);
        }
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn set_aside(&self, name: &str, why: &str) {
        let mut state = self.lock();
        state.releasing -= 1;
        state.set_aside += 1;
        drop(state);
        self.changed.notify_all();
        log::error!("{name} is set aside: {why}");
        let listener = self.on_set_aside.lock();
        let listener = listener.unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(listener) = listener {
            listener(name, why);
        }
    }
}

impl State {
    fn take_in(&mut self, tree: &Tree, found: Found, resting: &Limits) -> Result<(), PoolError> {
        let group = tree.group(&found.name);
        let mut place = Place {
            name: found.name,
            group,
            limits: found.fresh.then(Limits::default),
            cpu_base_us: 0,
            surplus: found.surplus,
        };
        if !found.fresh {
            let populated = place.group.is_populated();
            if populated.map_err(PathError::at("read cgroup.events of", place.group.path()))? {
                place.cpu_base_us = place.group.cpu_base_us().unwrap_or(0);
                self.slots += 1;
                self.claimed += 1;
                self.found.insert(place.name.clone(), place);
                return Ok(());
            }
        }
        if release::recycle(&mut place, resting) {
            self.slots += 1;
            self.free.push(place);
        }
        Ok(())
    }

    fn count(&mut self, stage: Stage) -> &mut usize {
        match stage {
            Stage::Claimed => &mut self.claimed,
            Stage::Releasing => &mut self.releasing,
            Stage::SetAside => &mut self.set_aside,
        }
    }

    fn stats(&self) -> PoolStats {
        PoolStats {
            slots: self.slots,
            free: self.free.len(),
            claimed: self.claimed,
            releasing: self.releasing,
            set_aside: self.set_aside,
        }
    }
}

fn lock(root: &PathBuf) -> Result<File, PoolError> {
    let file = File::open(root).map_err(PathError::at("open", root))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(PoolError::InUse(root.clone())),
        Err(error) => Err(PathError::at("lock", root)(error).into()),
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("root", &self.tree.root)
            .field("stats", &self.lock().stats())
            .finish_non_exhaustive()
    }
}
