//! The guest becomes a template, and a clone of it becomes itself: the recipes behind
//! [`Request::Prepare`](rundlet_protocol::Request::Prepare) and
//! [`Request::Renew`](rundlet_protocol::Request::Renew).
//!
//! What must hold: from [`prepare`] until all of [`renew`] has succeeded, no program of the sandbox runs.
//! Both block the agent, which has nothing else to do then: in a prepared guest no program can be started.
//!
//! The agent itself keeps nothing that has to differ between clones. It makes no random numbers; its own
//! stack canary is inherited from the template and is of use only to who already reads its memory.

use std::error::Error;
use std::fmt::{Debug, Write as _};
use std::io;
use std::time::{Duration, Instant};

use rundlet_protocol::{Failure, FailureKind, Renewal};

use crate::cgroup::Cgroups;

pub(crate) mod machine;
#[cfg(test)]
mod tests;

/// How long programs may take to be frozen: one may wait for its disk.
const FREEZE: Duration = Duration::from_secs(20);

/// What makes this guest different from another, each step named after the field of [`Renewal`].
pub(crate) trait Identity: Debug {
    /// Before the guest is captured: what clones would all have to do themselves.
    fn settle(&mut self) -> io::Result<()>;
    /// Mixes random bytes into the kernel's generator, and has all that it hands out depend on them.
    fn entropy(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Sets `CLOCK_REALTIME`.
    fn realtime(&mut self, since_epoch: Duration) -> io::Result<()>;
    fn hostname(&mut self, name: &str) -> io::Result<()>;
    fn machine_id(&mut self, id: &str) -> io::Result<()>;
    fn boot_id(&mut self, id: &str) -> io::Result<()>;
}

/// An agent that is an ordinary process has no machine of its own, and leaves the one it is on alone.
#[derive(Debug)]
pub(crate) struct NoMachine;

impl Identity for NoMachine {
    fn settle(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn entropy(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn realtime(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
    fn hostname(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn machine_id(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn boot_id(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
}

/// Freezes every program, then has the disk written. After a failure they run.
pub(crate) fn prepare(identity: &mut dyn Identity, cgroups: &mut Cgroups) -> Result<(), Failure> {
    cgroups
        .freeze(Instant::now() + FREEZE)
        .map_err(|error| failure(FailureKind::State, "cannot freeze the programs", &error))?;
    identity.settle().map_err(|error| {
        // The first error is the one to tell.
        let _ = cgroups.thaw();
        failure(FailureKind::Resources, "cannot settle the guest", &error)
    })
}

/// Changes all that must not be shared, then lets the programs run. After a failure they stay frozen.
pub(crate) fn renew(
    renewal: &Renewal,
    identity: &mut dyn Identity,
    cgroups: &mut Cgroups,
) -> Result<Duration, Failure> {
    let begun = Instant::now();
    renewal.check().map_err(|error| Failure {
        kind: FailureKind::Invalid,
        message: error.to_string(),
    })?;
    // First: boot id, port numbers and whatever else is made from here on is made of this.
    identity
        .entropy(&renewal.entropy.0)
        .map_err(step("entropy"))?;
    let sent = Duration::from_nanos(renewal.realtime_ns);
    identity
        .realtime(sent + begun.elapsed())
        .map_err(step("realtime_ns"))?;
    identity
        .hostname(&renewal.hostname)
        .map_err(step("hostname"))?;
    identity
        .machine_id(&renewal.machine_id)
        .map_err(step("machine_id"))?;
    identity
        .boot_id(&renewal.boot_id)
        .map_err(step("boot_id"))?;
    cgroups
        .thaw()
        .map_err(|error| failure(FailureKind::Resources, "cannot let programs run", &error))?;
    Ok(begun.elapsed())
}

fn step(field: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| failure(FailureKind::Resources, field, &error)
}

/// `what`, and the whole chain of causes.
fn failure(kind: FailureKind, what: &str, error: &dyn Error) -> Failure {
    let mut message = format!("{what}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string does not fail.
        let _ = write!(message, ": {error}");
        cause = error.source();
    }
    Failure { kind, message }
}
