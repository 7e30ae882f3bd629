//! A directory that looks like a cgroup2 hierarchy. What the kernel does to its files, a test does by hand.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::tree::{Tree, name};
use super::{CgroupPool, PoolError};
use crate::host::config::CgroupConfig;
use crate::host::model::Limits;

pub(super) struct Fake {
    mount: TempDir,
}

impl Fake {
    /// A hierarchy with this many slots, all empty.
    pub(super) fn with_slots(slots: u32) -> Self {
        let fake = Self {
            mount: tempfile::tempdir().unwrap(),
        };
        for inner in fake.inner() {
            fs::create_dir_all(&inner).unwrap();
            fs::write(
                inner.join("cgroup.controllers"),
                "cpuset cpu io memory pids\n",
            )
            .unwrap();
            fs::write(inner.join("cgroup.subtree_control"), "").unwrap();
        }
        furnish(&fake.root());
        for leaf in ["helpers", "keeper"] {
            furnish(&fake.root().join(leaf));
        }
        for index in 0..slots {
            furnish(&fake.slot(index));
        }
        fake
    }

    /// From the mount to the root.
    pub(super) fn inner(&self) -> [PathBuf; 3] {
        let mount = self.mount.path();
        [mount.to_path_buf(), mount.join("some.slice"), self.root()]
    }

    pub(super) fn root(&self) -> PathBuf {
        self.mount.path().join("some.slice/pool")
    }

    pub(super) fn slot(&self, index: u32) -> PathBuf {
        self.root().join(name(index))
    }

    pub(super) fn tree(&self) -> Tree {
        Tree {
            mount: self.mount.path().to_path_buf(),
            root: self.root(),
        }
    }

    pub(super) fn open(&self, config: &CgroupConfig) -> Result<CgroupPool, PoolError> {
        self.open_resting(config, &Limits::default())
    }

    pub(super) fn open_resting(
        &self,
        config: &CgroupConfig,
        resting: &Limits,
    ) -> Result<CgroupPool, PoolError> {
        let patience = Duration::from_millis(300);
        CgroupPool::open_in(self.tree(), config, resting, patience)
    }

    pub(super) fn config(&self, slots: u32) -> CgroupConfig {
        CgroupConfig {
            root: self.root(),
            slots,
            wait_ms: 0,
        }
    }

    pub(super) fn read(&self, index: u32, file: &str) -> String {
        fs::read_to_string(self.slot(index).join(file)).unwrap()
    }

    pub(super) fn write(&self, index: u32, file: &str, text: &str) {
        fs::write(self.slot(index).join(file), text).unwrap();
    }

    /// In place: the pool has the file open.
    pub(super) fn populate(&self, index: u32, populated: bool) {
        let path = self.slot(index).join("cgroup.events");
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let text = format!("populated {}\n", u8::from(populated));
        file.write_all_at(text.as_bytes(), 0).unwrap();
    }

    /// Waits for the pool to kill what is in a slot, and forgets that it did.
    pub(super) fn expect_kill(&self, index: u32) {
        let killed = || self.read(index, "cgroup.kill") == "1";
        wait_for("a kill", killed);
        self.write(index, "cgroup.kill", "");
    }
}

/// The files of an empty cgroup.
fn furnish(group: &Path) {
    fs::create_dir_all(group).unwrap();
    for (file, text) in [
        ("cgroup.events", "populated 0\nfrozen 0\n"),
        ("cgroup.kill", ""),
        ("cgroup.procs", ""),
        ("cpu.max", "max 100000\n"),
        ("cpu.stat", "usage_usec 0\nuser_usec 0\n"),
        ("io.max", ""),
        ("memory.current", "0\n"),
        ("memory.max", "max\n"),
        ("memory.reclaim", ""),
        ("pids.max", "max\n"),
    ] {
        fs::write(group.join(file), text).unwrap();
    }
}

pub(super) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{what} did not come");
}
