//! A cgroup v2 leaf per command: killing it reaches every process that the command made, also those
//! that left its process group (cgroup-v2.rst, `cgroup.kill`).
//!
//! A kernel or mount without cgroup v2 leaves the process group as the only thing to kill.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::process::getpid;

mod freezer;

/// The tree's root, and the leaves that still had processes when their command ended.
#[derive(Debug)]
pub(crate) struct Cgroups {
    root: Option<OwnedFd>,
    next: u64,
    left_behind: Vec<String>,
    /// Set between [`Cgroups::freeze`] and [`Cgroups::thaw`]: the names of what was frozen.
    frozen: Option<Vec<String>>,
}

/// One command's cgroup.
#[derive(Debug)]
pub(crate) struct Leaf {
    name: String,
    directory: OwnedFd,
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

impl Cgroups {
    /// Leaves are made in `path`, if that is the root of a cgroup v2 tree.
    pub(crate) fn open(path: Option<&str>) -> Self {
        let root = path.and_then(|path| {
            let root = openat(CWD, path, DIRECTORY, Mode::empty()).ok()?;
            // Every cgroup v2 directory has this file, and no other filesystem's has.
            openat(
                &root,
                "cgroup.procs",
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .ok()?;
            Some(root)
        });
        Cgroups {
            root,
            next: 0,
            left_behind: Vec::new(),
            frozen: None,
        }
    }

    /// What the names of this agent's leaves begin with.
    fn prefix() -> String {
        format!("rundlet.{}.", getpid())
    }

    /// A fresh leaf, or `None` where that cannot be had.
    pub(crate) fn leaf(&mut self) -> Option<Leaf> {
        let root = self.root.as_ref()?;
        let name = format!("{}{}", Self::prefix(), self.next);
        self.next += 1;
        mkdirat(root, &name, Mode::from_raw_mode(0o755)).ok()?;
        let directory = openat(root, &name, DIRECTORY, Mode::empty()).ok()?;
        Some(Leaf { name, directory })
    }

    /// Removes the leaf of a command that has ended: now, or once what it left behind has ended too.
    pub(crate) fn release(&mut self, leaf: Leaf) {
        drop(leaf.directory);
        self.left_behind.push(leaf.name);
        self.sweep();
    }

    /// Tries again to remove what was not empty. Called when a process has ended, never on a timer.
    pub(crate) fn sweep(&mut self) {
        let Some(root) = &self.root else { return };
        self.left_behind.retain(|name| {
            matches!(
                unlinkat(root, name, AtFlags::REMOVEDIR),
                Err(rustix::io::Errno::BUSY)
            )
        });
    }
}

impl Leaf {
    pub(crate) fn kill(&self) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&self.directory, "cgroup.kill", flags, Mode::empty())?;
        rustix::io::write(file, b"1")?;
        Ok(())
    }
}

impl AsFd for Leaf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}
