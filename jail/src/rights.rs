//! Who a process is, and what it may: an identity without any rights, for good.

use std::fmt;
use std::io;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use thiserror::Error;

use crate::namespaces::alone;

/// Why rights could not be given up.
#[derive(Debug, Error)]
#[error("cannot {what}")]
pub struct RightsError {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// A user and a group that are neither root nor "no change".
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    uid: u32,
    gid: u32,
}

impl Identity {
    /// Nothing for root, and for the number that system calls take for "as it is".
    #[must_use]
    pub fn new(uid: u32, gid: u32) -> Option<Self> {
        let usable = |id| id != 0 && id != u32::MAX;
        (usable(uid) && usable(gid)).then_some(Self { uid, gid })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// Becomes `identity`, with no other group, no capability and no way to one. Needs root's capabilities, and
/// a process of one thread.
pub fn give_up(identity: Identity) -> Result<(), RightsError> {
    let failed = |what| {
        move |errno: Errno| RightsError {
            what,
            source: errno.into(),
        }
    };
    alone().map_err(|source| RightsError {
        what: "give up the rights of all threads",
        source,
    })?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    set_thread_groups(&[]).map_err(failed("leave all groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(failed("change the group"))?;
    empty_bounding_set().map_err(failed("empty the bounding set"))?;
    clear_ambient_capability_set().map_err(failed("clear the ambient capabilities"))?;
    set_thread_res_uid(uid, uid, uid).map_err(failed("change the user"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(failed("drop the capabilities"))?;
    no_more()?;
    // Neither a core file nor a debugger of the same user; the files in /proc are root's.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("forbid dumps"))
}

/// Whatever this process and its children execute gives them no rights that they have not now.
pub fn no_more() -> Result<(), RightsError> {
    set_no_new_privs(true).map_err(|errno| RightsError {
        what: "set no_new_privs",
        source: errno.into(),
    })
}

/// As many as this kernel has.
fn empty_bounding_set() -> rustix::io::Result<()> {
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_no_identity() {
        assert!(Identity::new(0, 1).is_none() && Identity::new(1, 0).is_none());
        assert!(Identity::new(u32::MAX, 1).is_none() && Identity::new(1, u32::MAX).is_none());
        let identity = Identity::new(1, u32::MAX - 1).unwrap();
        assert_eq!(format!("{identity:?}"), "1:4294967294");
    }
}
