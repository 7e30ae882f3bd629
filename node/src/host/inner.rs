//! What the parts of a host share.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::pipe::{PipeFlags, pipe_with};

use super::admission::Admission;
use super::ends::Ends;
use super::events::Events;
use super::line::LineError;
use super::lines::Lines;
use super::model::{Limits, Source, What};
use super::registry::Registry;
use super::renewal::Renewals;
use super::slots::Slots;
use super::{Config, JailConfig, Observer, OpenError};
use crate::claim;
use crate::error::PathError;
use crate::image::Store;
use crate::sandbox::backend::Owner;
use crate::sandbox::{self, MAX_SOCKET};
use crate::scratch;

/// The longest socket below the host's directory.
const LONGEST: &str = "s/0123456789ab/jail-1/vsock.sock_4294967295";

/// Everything of a host but the thread that hears of ends.
pub(super) struct Inner {
    pub(super) directory: PathBuf,
    pub(super) store: Store,
    pub(super) defaults: Limits,
    pub(super) first_command_s: u64,
    jail: Option<JailConfig>,
    slot_count: u32,
    pub(super) slots: Arc<dyn Slots>,
    pub(super) admission: Admission,
    pub(super) registry: Registry,
    pub(super) lines: Lines,
    pub(super) renewals: Renewals,
    pub(super) events: Arc<Events>,
    pub(super) ends: Ends,
    /// Where VMMs log.
    pub(super) log: OwnedFd,
    observer: RwLock<Option<Observer>>,
    closing: AtomicBool,
    /// Locked: one daemon, one directory.
    _lock: File,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl Inner {
    pub(super) fn new(config: &Config, slots: Arc<dyn Slots>) -> Result<Self, OpenError> {
        let directory = config.run.join("serve");
        if directory.join(LONGEST).as_os_str().len() > MAX_SOCKET {
            return Err(OpenError::Long {
                path: directory,
                most: MAX_SOCKET - LONGEST.len() - 1,
            });
        }
        if let Some(jail) = config.jail
            && jail.uids <= config.cgroup.slots
        {
            return Err(OpenError::Uids {
                uids: jail.uids,
                least: config.cgroup.slots.saturating_add(1),
            });
        }
        for name in ["s", "lines", "ended"] {
            let path = directory.join(name);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(PathError::at("create directory", &path))?;
        }
        let lock = File::open(&directory).map_err(PathError::at("open", &directory))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(OpenError::InUse(directory));
        }
        let events = Events::new();
        let listener = Arc::clone(&events);
        slots.on_set_aside(Box::new(move |slot, why| {
            let (slot, why) = (slot.to_owned(), why.to_owned());
            listener.publish(What::SlotSetAside { slot, why });
        }));
        Ok(Self {
            lines: Lines::new(&directory),
            renewals: Renewals::new(&config.limits),
            directory,
            store: Store::open(&config.store)?,
            defaults: config.limits.defaults.clone(),
            first_command_s: config.limits.first_command_s,
            jail: config.jail,
            slot_count: config.cgroup.slots,
            slots,
            admission: Admission::new(&config.limits, Duration::from_millis(config.cgroup.wait_ms)),
            registry: Registry::new(config.limits.ended_records),
            events,
            ends: Ends::new().map_err(OpenError::Watch)?,
            log: log_pipe().map_err(OpenError::Watch)?,
            observer: RwLock::default(),
            closing: AtomicBool::new(false),
            _lock: lock,
        })
    }

    /// Where the record of one that has ended is.
    pub(super) fn ended(&self, id: &str) -> PathBuf {
        self.directory.join("ended").join(format!("{id}.json"))
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.admission.close();
    }

    pub(super) fn set_observer(&self, observer: Observer) {
        *self
            .observer
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(observer);
    }

    /// A step of a start was done so long after its turn had come.
    pub(super) fn observe(&self, step: &'static str, source: &Source, took: Duration) {
        let observer = self
            .observer
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(observer) = observer {
            let source = match source {
                Source::Image(_) => "image",
                Source::Template(_) => "template",
            };
            observer(step, source, took);
        }
    }

    /// Who the VMM in a slot is: the slot's number after the first user id. Slots are in one sandbox's hands at a
    /// time, and empty before they come back, so no two living VMMs are the same user.
    pub(super) fn owner(&self, slot: &str) -> Option<Owner> {
        let jail = self.jail?;
        let digits = slot.rsplit(|c: char| !c.is_ascii_digit()).next()?;
        let number: u32 = digits.parse().ok()?;
        // A slot that was made when there were more of them.
        let uid = jail.first_uid.checked_add(number % jail.uids.max(1))?;
        Some(Owner { uid, gid: uid })
    }

    /// Who a new block backend is: the first user after those of the slots that no other one is.
    pub(super) fn backend_owner(&self) -> Option<Owner> {
        let jail = self.jail?;
        let taken: BTreeSet<u32> = self
            .lines
            .all()
            .iter()
            .filter_map(|line| line.owner.map(|owner| owner.uid))
            .collect();
        let first = jail.first_uid.checked_add(self.slot_count)?;
        let last = jail.first_uid.checked_add(jail.uids.saturating_sub(1))?;
        let uid = (first..=last)
            .find(|uid| !taken.contains(uid))
            .unwrap_or(last);
        Some(Owner { uid, gid: uid })
    }

    /// A scratch template with a place for layers that the backend may write to, jailed or not.
    pub(super) fn layers(
        &self,
        line: &str,
        owner: Option<Owner>,
        scratch: &scratch::Template,
    ) -> Result<scratch::Template, LineError> {
        let mut scratch = scratch.clone();
        if let Some(owner) = owner {
            scratch.layers.push(line);
            make_directory(&scratch.layers)?;
            std::os::unix::fs::chown(&scratch.layers, Some(owner.uid), Some(owner.gid))
                .map_err(PathError::at("change the owner of", &scratch.layers))?;
        }
        Ok(scratch)
    }

    /// Removes that place, if there is one.
    pub(super) fn remove_layers(&self, line: &str) {
        let path = scratch::layers(&self.store).join(line);
        if let Err(error) = claim::remove(&path) {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

/// Makes a directory that is ours alone.
pub(super) fn make_directory(path: &Path) -> Result<(), PathError> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(PathError::at("create directory", path))
}

/// A pipe for the logs of all VMMs, read until its last writer is gone.
fn log_pipe() -> std::io::Result<OwnedFd> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    thread::Builder::new()
        .name("vmm-log".into())
        .spawn(move || {
            sandbox::lines(File::from(read), |line| {
                log::debug!("vmm: {}", sandbox::printable(line));
            });
        })?;
    Ok(write)
}
