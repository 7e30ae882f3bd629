//! Directories that belong to a living process: run directories and half-made images.
//!
//! The owner holds an exclusive flock(2) on the directory, which the kernel drops with the process
//! however it ends. So a directory without a lock is a dead process's, and anybody may sweep it. The
//! base directory's own lock closes the gap between making a directory and locking it: makers hold it
//! shared, the sweeper exclusively.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::PathError;

/// Prefix of directories that are about to be removed.
const DEAD: &str = ".dead-";

/// A directory of ours, removed with everything in it when dropped.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    lock: File,
}

impl Claim {
    /// Makes `base/name`, mode 0700, and locks it. `base` must exist.
    ///
    /// # Errors
    /// The directory exists already or cannot be made.
    pub fn create(base: &Path, name: &str) -> Result<Self, PathError> {
        let path = base.join(name);
        let gate = File::open(base).map_err(PathError::at("open", base))?;
        flock(&gate, FlockOperation::LockShared).map_err(PathError::at("lock", base))?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(PathError::at("create directory", &path))?;
        let lock = File::open(&path).map_err(PathError::at("open", &path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(PathError::at("lock", &path))?;
        Ok(Self { path, lock })
    }

    /// Makes `base/prefix-…` with a random rest.
    ///
    /// # Errors
    /// As [`Claim::create`].
    pub fn create_random(base: &Path, prefix: &str) -> Result<Self, PathError> {
        let random = random_hex().map_err(PathError::at("get random bytes for a name in", base))?;
        Self::create(base, &format!("{prefix}-{random}"))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Removed under the lock, so that no sweeper is in the way.
        if let Err(error) = remove(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

/// Twelve hexadecimal digits from the kernel.
///
/// # Errors
/// The kernel has none yet.
pub fn random_hex() -> io::Result<String> {
    let mut bytes = [0_u8; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Removes the directories under `base` whose owner is gone; how many. Does nothing when another
/// sweeper or a maker is at work.
///
/// # Errors
/// `base` cannot be read.
pub fn sweep(base: &Path) -> Result<usize, PathError> {
    let gate = File::open(base).map_err(PathError::at("open", base))?;
    if flock(&gate, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(0);
    }
    let mut dead = Vec::new();
    for entry in fs::read_dir(base).map_err(PathError::at("list", base))? {
        let entry = entry.map_err(PathError::at("list", base))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            dead.extend(bury(&entry.path()));
        }
    }
    drop(gate);
    for path in &dead {
        if let Err(error) = remove(path) {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }
    Ok(dead.len())
}

/// Renames a directory that nobody holds, so that it can be removed without the gate.
fn bury(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    if name.starts_with(DEAD) {
        return Some(path.to_path_buf());
    }
    let lock = File::open(path).ok()?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
    let grave = path.with_file_name(format!("{DEAD}{name}"));
    fs::rename(path, &grave).ok()?;
    Some(grave)
}

/// Removes a tree; one that is gone already is fine.
///
/// # Errors
/// Something in it cannot be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    let result = match fs::remove_dir_all(path) {
        // An unpacked image may hold directories that not even their owner may write to.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        other => other,
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Gives the owner every right on the directories of a tree. Follows no symbolic link.
fn open_up(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_are_left_alone_and_the_dead_are_swept() {
        let base = tempfile::tempdir().unwrap();
        let alive = Claim::create(base.path(), "alive").unwrap();
        fs::create_dir_all(base.path().join("dead/deep")).unwrap();
        fs::write(base.path().join("dead/deep/file"), "x").unwrap();
        fs::create_dir(base.path().join(".dead-older")).unwrap();
        assert_eq!(sweep(base.path()).unwrap(), 2);
        let left: Vec<_> = fs::read_dir(base.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(alive.path().exists());
        drop(alive);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_in_use_is_refused_and_its_owner_keeps_it() {
        let base = tempfile::tempdir().unwrap();
        let first = Claim::create(base.path(), "one").unwrap();
        let error = Claim::create(base.path(), "one").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(first.path().exists());
    }

    #[test]
    fn random_names_differ() {
        let base = tempfile::tempdir().unwrap();
        let first = Claim::create_random(base.path(), "import").unwrap();
        let second = Claim::create_random(base.path(), "import").unwrap();
        assert_ne!(first.path(), second.path());
    }
}
