//! The ways to a process in a cgroup of its own that are compared.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde::Serialize;

use super::midwife::{Born, Midwife};
use crate::error::PathError;
use crate::host::config::CgroupConfig;
use crate::host::model::Limits;
use crate::pool::{CgroupPool, Group, PoolError, Slot, write_limits};

/// How long a pool may take to have all its slots back.
const PATIENCE: Duration = Duration::from_secs(60);

/// A way's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum WayName {
    /// No cgroup: what the others do as well.
    Fork,
    /// A slot that rests at the limits that are wanted, and a birth in it.
    Pool,
    /// A slot without limits, which get written, and a birth in it.
    PoolWritten,
    /// A new cgroup, its limits, and a process moved into it.
    Mkdir,
}

impl WayName {
    pub(super) const ALL: [Self; 4] = [Self::Fork, Self::Pool, Self::PoolWritten, Self::Mkdir];

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Fork => "fork alone",
            Self::Pool => "pool",
            Self::PoolWritten => "pool, limits written",
            Self::Mkdir => "mkdir",
        }
    }
}

/// All of them, ready.
pub(super) struct Ways {
    pub(super) midwife: Midwife,
    limits: Limits,
    resting: CgroupPool,
    unlimited: CgroupPool,
    /// A pool as well, for the controllers of its root; its slot is not used.
    _beside: CgroupPool,
    made: Group,
    next: AtomicUsize,
}

/// A process, and what it is in.
pub(super) struct Started {
    child: Born,
    slot: Option<Slot>,
    group: Option<Group>,
}

#[derive(Debug, thiserror::Error)]
pub enum WayError {
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("{} is there already; remove it, or name another --root", .0.display())]
    There(PathBuf),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error("cannot start a process")]
    Birth(#[source] io::Error),
    #[error("cannot end a process")]
    End(#[source] io::Error),
    #[error("slots of the pool did not become empty")]
    Late,
}

impl Ways {
    pub(super) fn open(root: &Path, slots: u32, limits: &Limits) -> Result<Self, WayError> {
        let config = |name: &str, slots| CgroupConfig {
            root: root.join(name),
            slots,
            wait_ms: 0,
        };
        Ok(Self {
            midwife: Midwife::start().map_err(WayError::Birth)?,
            limits: limits.clone(),
            resting: CgroupPool::open_resting(&config("resting", slots), limits)?,
            unlimited: CgroupPool::open(&config("unlimited", slots))?,
            _beside: CgroupPool::open(&config("made", 1))?,
            made: Group::at(root.join("made")),
            next: AtomicUsize::new(0),
        })
    }

    /// What is measured.
    pub(super) fn start(&self, way: WayName) -> Result<Started, WayError> {
        match way {
            WayName::Fork => Ok(Started {
                child: self.midwife.bear(None).map_err(WayError::Birth)?,
                slot: None,
                group: None,
            }),
            WayName::Pool => self.in_slot(&self.resting),
            WayName::PoolWritten => self.in_slot(&self.unlimited),
            WayName::Mkdir => self.in_new(),
        }
    }

    fn in_slot(&self, pool: &CgroupPool) -> Result<Started, WayError> {
        let slot = pool.claim(&self.limits)?;
        let directory = slot.fd().map_err(WayError::Birth)?;
        let child = self.midwife.bear(Some(directory.as_fd()));
        Ok(Started {
            child: child.map_err(WayError::Birth)?,
            slot: Some(slot),
            group: None,
        })
    }

    fn in_new(&self) -> Result<Started, WayError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let group = Group::at(self.made.path().join(format!("made-{number}")));
        fs::create_dir(group.path()).map_err(PathError::at("make the cgroup", group.path()))?;
        write_limits(&group, Some(&Limits::default()), &self.limits)?;
        let child = self.midwife.bear(None).map_err(WayError::Birth)?;
        let moved = group.join(child.pid().as_raw_nonzero().get().unsigned_abs());
        moved.map_err(PathError::at("move a process into", group.path()))?;
        Ok(Started {
            child,
            slot: None,
            group: Some(group),
        })
    }

    /// Ends all of it and waits until the cgroups are ready again, or gone.
    pub(super) fn end(&self, all: Vec<Started>) -> Result<(), WayError> {
        let mut children = Vec::with_capacity(all.len());
        let mut groups = Vec::new();
        for Started { child, slot, group } in all {
            match (slot, &group) {
                (Some(slot), _) => drop(slot),
                (None, Some(group)) => group.kill().map_err(WayError::End)?,
                (None, None) => kill_process(child.pid(), Signal::KILL)
                    .map_err(|it| WayError::End(it.into()))?,
            }
            groups.extend(group);
            children.push(child);
        }
        for child in children {
            child.wait().map_err(WayError::End)?;
        }
        for group in groups {
            fs::remove_dir(group.path())
                .map_err(PathError::at("remove the cgroup", group.path()))?;
        }
        if self.resting.settle(PATIENCE) && self.unlimited.settle(PATIENCE) {
            Ok(())
        } else {
            Err(WayError::Late)
        }
    }
}
