//! The end of a part of the hierarchy that was a pool's, or a bench's.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::Group;
use crate::error::PathError;

/// How often removing what the kernel still holds is tried again, ten milliseconds apart.
const TRIES: u32 = 500;

/// Kills all that is in a cgroup and below it, and removes it; one that is not there is fine.
pub(crate) fn clear(group: &Path) -> Result<(), PathError> {
    match Group::at(group).kill() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other.map_err(PathError::at("kill what is in", group))?,
    }
    dismantle(group)
}

/// Removes a cgroup with all that are below; what was in them has been killed.
pub(crate) fn dismantle(group: &Path) -> Result<(), PathError> {
    let list = || PathError::at::<io::Error>("list", group);
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(list())?,
    };
    for entry in entries {
        let entry = entry.map_err(list())?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            dismantle(&entry.path())?;
        }
    }
    let mut tries = 0;
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < TRIES => {
                tries += 1;
                thread::sleep(Duration::from_millis(10));
            }
            other => return other.map_err(PathError::at("remove the cgroup", group)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_removed_from_its_leaves_on() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("a");
        fs::create_dir_all(root.join("b/c")).unwrap();
        dismantle(&root).unwrap();
        assert!(!root.exists());
        dismantle(&root).unwrap();
    }

    #[test]
    fn what_is_not_there_is_clear() {
        let directory = tempfile::tempdir().unwrap();
        clear(&directory.path().join("gone")).unwrap();
    }
}
