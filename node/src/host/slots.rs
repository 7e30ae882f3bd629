//! What a host needs of the pool of cgroups: the real one, or directories where there is no cgroup2.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::model::Limits;
use super::{CgroupPool, PoolError, PoolStats, Slot};

/// Told of a slot that was set aside, and why.
pub type OnSetAside = Box<dyn Fn(&str, &str) + Send + Sync>;

/// Where sandboxes are born. What each method must do, [`CgroupPool`] says.
pub trait Slots: fmt::Debug + Send + Sync {
    /// # Errors
    /// None is free, or it cannot be given its limits.
    fn claim(&self, limits: &Limits) -> Result<Box<dyn Place>, PoolError>;
    /// # Errors
    /// It is not there, or in other hands.
    fn adopt(&self, name: &str) -> Result<Box<dyn Place>, PoolError>;
    fn finish_recovery(&self);
    /// # Errors
    /// The process has ended, or may not be moved.
    fn join_helpers(&self, pid: u32) -> io::Result<()>;
    fn stats(&self) -> PoolStats;
    fn on_set_aside(&self, callback: OnSetAside);
}

/// A slot in a sandbox's hands. Dropped, whatever is in it is killed, and it goes back.
pub trait Place: fmt::Debug + Send + Sync {
    /// # Errors
    /// Out of descriptors, or it is gone.
    fn fd(&self) -> io::Result<OwnedFd>;
    fn name(&self) -> &str;
    /// Below the cgroup2 mount.
    fn path(&self) -> PathBuf;
    /// # Errors
    /// It cannot be read.
    fn memory_current(&self) -> io::Result<u64>;
    /// # Errors
    /// It cannot be read.
    fn cpu_usage_us(&self) -> io::Result<u64>;
    /// Lets go of it and leaves what is in it alone.
    fn leave(self: Box<Self>);
}

impl Slots for CgroupPool {
    fn claim(&self, limits: &Limits) -> Result<Box<dyn Place>, PoolError> {
        Ok(Box::new(Self::claim(self, limits)?))
    }

    fn adopt(&self, name: &str) -> Result<Box<dyn Place>, PoolError> {
        Ok(Box::new(Self::adopt(self, name)?))
    }

    fn finish_recovery(&self) {
        Self::finish_recovery(self);
    }

    fn join_helpers(&self, pid: u32) -> io::Result<()> {
        Self::join_helpers(self, pid)
    }

    fn stats(&self) -> PoolStats {
        Self::stats(self)
    }

    fn on_set_aside(&self, callback: OnSetAside) {
        Self::on_set_aside(self, callback);
    }
}

impl Place for Slot {
    fn fd(&self) -> io::Result<OwnedFd> {
        Self::fd(self)
    }

    fn name(&self) -> &str {
        Self::name(self)
    }

    fn path(&self) -> PathBuf {
        Self::path(self).to_path_buf()
    }

    fn memory_current(&self) -> io::Result<u64> {
        Self::memory_current(self)
    }

    fn cpu_usage_us(&self) -> io::Result<u64> {
        Self::cpu_usage_us(self)
    }

    fn leave(self: Box<Self>) {
        Self::leave(*self);
    }
}
