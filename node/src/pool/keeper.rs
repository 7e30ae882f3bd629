//! `rundlet pool`: makes the slots and stays. Under systemd its unit has the root delegated (`Delegate=`), and the
//! unit's cgroup lasts as long as it runs; the daemon comes and goes.

use std::io;

use signal_hook::consts::TERM_SIGNALS;
use signal_hook::iterator::Signals;

use super::PoolError;
use super::tree::{HELPERS, KEEPER, Tree};
use crate::error::PathError;
use crate::host::config::CgroupConfig;
use crate::notify;

/// Makes what is missing, says so, and waits for a signal to end. Removes nothing: sandboxes may be in the slots.
///
/// # Errors
/// No cgroup2, no controllers, no rights.
pub fn keep(config: &CgroupConfig) -> Result<(), PoolError> {
    let tree = Tree::find(&config.root)?;
    let mut signals = Signals::new(TERM_SIGNALS).map_err(PoolError::Signals)?;
    let slots = prepare(&tree, config.slots)?;
    let made = format!("{slots} slots in {}", tree.root.display());
    log::info!("{made}");
    tell(&format!("{}\nSTATUS={made}", notify::READY))?;
    let _ = signals.forever().next();
    tell(notify::STOPPING)
}

/// How many slots there are now.
pub(super) fn prepare(tree: &Tree, slots: u32) -> Result<usize, PoolError> {
    tree.make_root()?;
    // First of all: a cgroup with processes of its own cannot have controllers for its children.
    let keeper = tree.make_leaf(KEEPER)?;
    keeper
        .join(std::process::id())
        .map_err(PathError::at("join the cgroup", keeper.path()))?;
    tree.enable_controllers()?;
    tree.make_leaf(HELPERS)?;
    Ok(tree.slots(slots)?.len())
}

fn tell(words: &str) -> Result<(), PoolError> {
    let told: io::Result<bool> = notify::notify(words);
    told.map(drop).map_err(PoolError::Notify)
}
