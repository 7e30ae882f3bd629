//! A slot in somebody's hands.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use super::cgroup::{Inner, Place};

/// A cgroup of one's own. Dropped, whatever is in it is killed, and it goes back to the pool; neither keeps the caller
/// waiting.
pub struct Slot {
    /// There until it is dropped.
    place: Option<Place>,
    pool: Arc<Inner>,
}

impl Slot {
    pub(super) fn new(place: Place, pool: Arc<Inner>) -> Self {
        Self {
            place: Some(place),
            pool,
        }
    }

    fn place(&self) -> &Place {
        self.place.as_ref().expect("only drop and leave take it")
    }

    /// Its directory, for CLONE_INTO_CGROUP.
    ///
    /// # Errors
    /// Out of descriptors, or somebody has removed it.
    pub fn fd(&self) -> io::Result<OwnedFd> {
        self.place().group.open()
    }

    /// E.g. `slot-0007`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.place().name
    }

    /// Below the cgroup2 mount, without a slash before it.
    #[must_use]
    pub fn path(&self) -> &Path {
        let path = self.place().group.path();
        path.strip_prefix(self.pool.mount()).unwrap_or(path)
    }

    /// Bytes that are charged to it now.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn memory_current(&self) -> io::Result<u64> {
        self.place().group.memory_current()
    }

    /// Processor time of its owner, microseconds.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn cpu_usage_us(&self) -> io::Result<u64> {
        let place = self.place();
        let total = place.group.cpu_total_us()?;
        Ok(total.saturating_sub(place.cpu_base_us))
    }

    /// Lets go of it and leaves what is in it alone: the daemon ends, the sandbox does not.
    pub fn leave(mut self) {
        self.place = None;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.pool.release(place);
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.place).finish()
    }
}
