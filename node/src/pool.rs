//! What is made ahead, so that no start has to wait for it: cgroups.
//!
//! ```text
//! tree      the pool's part of the cgroup2 hierarchy: the root, its controllers, the slots, the leaf for helpers
//! group     one cgroup, as the files of its directory
//! limits    limits as values of these files, and which of them have to be written
//! cgroup    the pool: who has which slot; claims are answered from memory
//! slot      a slot in somebody's hands; dropped, it goes back
//! release   the thread that empties slots and brings them back
//! keeper    `rundlet pool`: makes the slots and holds them for systemd
//! dismantle the end of a part of the hierarchy
//! ```
//!
//! What must hold: a slot in the pool's hands is empty; every wait has an end; nothing on the way of a start makes
//! or removes a cgroup. The kernel's words are those of cgroup-v2.rst.

mod cgroup;
mod dismantle;
#[cfg(test)]
mod fake;
mod group;
mod keeper;
mod limits;
mod release;
mod slot;
#[cfg(test)]
mod tests;
mod tree;

use std::io;
use std::path::PathBuf;

use crate::error::PathError;

pub use cgroup::CgroupPool;
pub(crate) use dismantle::{clear, dismantle};
pub(crate) use group::Group;
pub use keeper::keep;
pub(crate) use limits::write as write_limits;
pub use limits::{LimitError, check};
pub use slot::Slot;
pub use tree::{Support, support};

/// Why there is no pool, or no slot.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error(
        "{} is not on a cgroup2 file system, and Rundlet knows no other: boot with systemd.unified_cgroup_hierarchy=1, or name a directory of the unified hierarchy as cgroup.root", .0.display()
    )]
    NotVersion2(PathBuf),
    #[error("the kernel has no cgroup.kill in {}: Linux 5.14 or later is needed", .0.display())]
    NoKill(PathBuf),
    #[error(
        "the controller {controller} is not available in {}: enable it in cgroup.subtree_control above, or (systemd) give the unit Delegate={controller}", path.display()
    )]
    NoController {
        controller: &'static str,
        path: PathBuf,
    },
    #[error("cannot enable {wanted} for what is below {}{}", path.display(), busy(source))]
    Controllers {
        wanted: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("another process has the pool at {}; stop it, or name another cgroup.root", .0.display())]
    InUse(PathBuf),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("cannot start the thread that empties slots")]
    Thread(#[source] io::Error),
    #[error("all {slots} slots of the cgroup pool are taken; end sandboxes, or raise cgroup.slots")]
    Exhausted { slots: usize },
    #[error("{slot}: cannot write {value:?} to {file}")]
    Limit {
        slot: String,
        file: &'static str,
        value: String,
        source: io::Error,
    },
    #[error("cannot listen to signals")]
    Signals(#[source] io::Error),
    #[error("cannot tell systemd")]
    Notify(#[source] io::Error),
    #[error("{0} is no slot that waits for its owner: somebody has it, or it is not there")]
    NotToAdopt(String),
}

/// EBUSY has a reason that its text does not tell.
fn busy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ResourceBusy => {
            ": it has processes of its own, and cgroup2 allows them in leaves only; move them into a child"
        }
        _ => "",
    }
}

/// Where the slots are. `free + claimed + releasing + set_aside` is all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    pub slots: usize,
    /// Can be claimed.
    pub free: usize,
    /// Have an owner, or are kept for one that a restart has not found yet.
    pub claimed: usize,
    /// Are being emptied.
    pub releasing: usize,
    /// Did not become empty in time. They come back should they become empty after all.
    pub set_aside: usize,
}
