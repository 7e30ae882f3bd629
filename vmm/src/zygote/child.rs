//! A sandbox's process, between the fork and its recipe.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::stdio::{dup2_stderr, dup2_stdout};
use rustix::thread::set_name;

use super::order::{Gifts, Order, Wanted};
use crate::jail::Filters;
use crate::sandbox::Ties;
use crate::timeline::Timeline;

/// A sandbox to be.
#[derive(Debug)]
pub struct Child {
    order: Order,
    timeline: Timeline,
    filters: Filters,
}

/// What a child has in its hands when it is a process of its own.
#[derive(Debug)]
pub struct Settled {
    /// What it shall be.
    pub wanted: Wanted,
    /// Its lifeline; a child of a zygote has no control socket.
    pub ties: Ties,
    /// The spec's console writes here; to be kept open until the devices are built.
    pub console: Option<OwnedFd>,
}

impl Child {
    /// The process has just been made; it was asked for at `since`.
    pub(super) fn new(order: Order, since: Instant, filters: Filters) -> Self {
        let timeline = Timeline::since(since);
        timeline.mark("forked");
        Self {
            order,
            timeline,
            filters,
        }
    }

    /// What happened since the request.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.timeline.clone()
    }

    /// Takes a name and standard output and error of its own.
    pub fn settle(self) -> io::Result<Settled> {
        let Order { id, wanted, gifts } = self.order;
        let Gifts {
            cgroup,
            lifeline,
            stdout,
            stderr,
            console,
        } = gifts;
        // It was of use for the fork only.
        drop(cgroup);
        if let Some(stdout) = stdout {
            dup2_stdout(stdout)?;
        }
        if let Some(stderr) = stderr {
            dup2_stderr(stderr)?;
        }
        // The kernel keeps 15 bytes of it.
        set_name(&CString::new(format!("vmm-{id}"))?)?;
        let ties = Ties {
            lifeline,
            control: None,
            filters: self.filters,
        };
        self.timeline.mark("settled");
        Ok(Settled {
            wanted,
            ties,
            console,
        })
    }
}
