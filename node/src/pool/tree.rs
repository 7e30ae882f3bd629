//! The pool's part of the cgroup2 hierarchy: the root, its controllers, the slots, the leaf for helpers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::PoolError;
use super::group::Group;
use crate::error::PathError;

/// CGROUP2_SUPER_MAGIC, statfs(2).
const CGROUP2: u64 = 0x6367_7270;

/// What limits need. `io` is used where it is there.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
const WELCOME: &str = "io";

/// The leaf of processes that serve all sandboxes.
pub(super) const HELPERS: &str = "helpers";
/// The leaf of the process that systemd started for the pool.
pub(super) const KEEPER: &str = "keeper";

const SLOT: &str = "slot-";

/// What a directory offers a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// It is not on cgroup2.
    NotVersion2,
    /// A controller that limits need is missing.
    Missing(&'static str),
    /// All of it is there.
    Full,
}

/// What `directory` offers; changes nothing.
#[must_use]
pub fn support(directory: &Path) -> Support {
    if !is_cgroup2(directory) {
        return Support::NotVersion2;
    }
    let offered = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    let missing = NEEDED
        .into_iter()
        .find(|it| !offered.split_whitespace().any(|word| word == *it));
    missing.map_or(Support::Full, Support::Missing)
}

fn is_cgroup2(path: &Path) -> bool {
    let kind = rustix::fs::statfs(path).map(|it| u64::try_from(it.f_type));
    kind == Ok(Ok(CGROUP2))
}

/// The pool's place.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// Where cgroup2 is mounted.
    pub(super) mount: PathBuf,
    pub(super) root: PathBuf,
}

/// A slot that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: String,
    /// Made just now: it has no limits and no past.
    pub(super) fresh: bool,
    /// More than were asked for: left by a larger pool.
    pub(super) surplus: bool,
}

impl Tree {
    /// Finds the mount that `root` is on, whether it is there itself or not.
    pub(super) fn find(root: &Path) -> Result<Self, PoolError> {
        let mut on: Vec<&Path> = root
            .ancestors()
            .skip_while(|path| !path.exists())
            .take_while(|path| is_cgroup2(path))
            .collect();
        match on.pop() {
            Some(mount) => Ok(Self {
                mount: mount.to_path_buf(),
                root: root.to_path_buf(),
            }),
            None => Err(PoolError::NotVersion2(root.to_path_buf())),
        }
    }

    pub(super) fn group(&self, name: &str) -> Group {
        Group::at(self.root.join(name))
    }

    /// Makes the root.
    pub(super) fn make_root(&self) -> Result<(), PoolError> {
        fs::create_dir_all(&self.root).map_err(PathError::at("make the cgroup", &self.root))?;
        if self.root != self.mount && !self.root.join("cgroup.kill").exists() {
            return Err(PoolError::NoKill(self.root.clone()));
        }
        Ok(())
    }

    /// Enables controllers from the mount down to the root, there included.
    pub(super) fn enable_controllers(&self) -> Result<(), PoolError> {
        let mut way: Vec<&Path> = self
            .root
            .ancestors()
            .take_while(|path| path.starts_with(&self.mount))
            .collect();
        way.reverse();
        way.into_iter().try_for_each(enable)
    }

    /// Makes a leaf.
    pub(super) fn make_leaf(&self, name: &str) -> Result<Group, PoolError> {
        let group = self.group(name);
        make(&group)?;
        Ok(group)
    }

    /// Makes the slots that are missing and lists all.
    pub(super) fn slots(&self, wanted: u32) -> Result<Vec<Found>, PoolError> {
        let there = self.list()?;
        let mut all = Vec::new();
        for index in 0..wanted {
            let name = name(index);
            let fresh = !there.contains(&index);
            if fresh {
                make(&self.group(&name))?;
            }
            all.push(Found {
                name,
                fresh,
                surplus: false,
            });
        }
        let surplus = there.into_iter().filter(|index| *index >= wanted);
        all.extend(surplus.map(|index| Found {
            name: name(index),
            fresh: false,
            surplus: true,
        }));
        Ok(all)
    }

    fn list(&self) -> Result<Vec<u32>, PathError> {
        let list = || PathError::at::<io::Error>("list", &self.root);
        let mut there = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(list())? {
            there.extend(index(&entry.map_err(list())?.file_name().to_string_lossy()));
        }
        there.sort_unstable();
        Ok(there)
    }
}

fn make(group: &Group) -> Result<(), PathError> {
    match fs::create_dir(group.path()) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(PathError::at("make the cgroup", group.path())),
    }
}

pub(super) fn name(index: u32) -> String {
    format!("{SLOT}{index:04}")
}

/// The number of a slot's name; of no other spelling of it.
fn index(text: &str) -> Option<u32> {
    let index = text.strip_prefix(SLOT)?.parse().ok()?;
    (name(index) == text).then_some(index)
}

fn enable(path: &Path) -> Result<(), PoolError> {
    let group = Group::at(path);
    let read = |file| {
        let text = group.read(file);
        text.map_err(PathError::at("read", path.join(file)))
    };
    let words =
        |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
    let offered = words(&read("cgroup.controllers")?);
    let enabled = words(&read("cgroup.subtree_control")?);
    let is_in = |list: &[String], name: &str| list.iter().any(|it| it == name);
    if let Some(controller) = NEEDED.into_iter().find(|name| !is_in(&offered, name)) {
        return Err(PoolError::NoController {
            controller,
            path: path.to_path_buf(),
        });
    }
    let missing: Vec<String> = NEEDED
        .into_iter()
        .chain(is_in(&offered, WELCOME).then_some(WELCOME))
        .filter(|name| !is_in(&enabled, name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let wanted = missing.join(" ");
    match group.write("cgroup.subtree_control", &wanted) {
        Ok(()) => Ok(()),
        Err(source) => Err(PoolError::Controllers {
            wanted,
            path: path.to_path_buf(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_one_name_each() {
        assert_eq!(name(7), "slot-0007");
        assert_eq!(name(12_345), "slot-12345");
        assert_eq!(index("slot-0007"), Some(7));
        for other in [
            "slot-7",
            "slot-",
            "slot-00007",
            "slot-+007",
            "helpers",
            "slot-000x",
        ] {
            assert_eq!(index(other), None, "{other}");
        }
    }

    #[test]
    fn elsewhere_than_on_cgroup2_is_refused_in_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("not/there/yet");
        let error = Tree::find(&root).unwrap_err().to_string();
        assert!(error.contains("unified_cgroup_hierarchy=1"), "{error}");
        assert!(!error.contains('\n'));
        assert_eq!(support(directory.path()), Support::NotVersion2);
    }
}
