//! Templates of scratch disks: an empty ext4 per size, made once. The block backend copies it for each
//! sandbox, block by block as it is written: mkfs is never on the start path.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::PathError;
use crate::image::store::{self, Store, StoreError};
use crate::tools;

/// Smallest and largest scratch disk, MiB. Below 16 MiB ext4's own tables are most of it.
pub const SIZES_MIB: std::ops::RangeInclusive<u64> = 16..=1024 * 1024;

/// Part of the file name: another number whenever the options below change.
const FORMAT: &str = "ext4-1";

/// Features. No journal, backups or room to grow: the disk dies with its sandbox. Checksums of block
/// groups are what lets ext4 leave inode tables unwritten.
const FEATURES: &str = "^has_journal,^resize_inode,^huge_file,sparse_super2,metadata_csum";

/// Tables side by side at the start, where the copy is cheapest; no copies of the superblock. The
/// inode tables of a sparse file are known to be zero, so mkfs marks them as such and the guest's
/// kernel has no thread that zeroes them later.
const EXTENDED: &str = "packed_meta_blocks=1,num_backup_sb=0,root_owner=0:0";

/// The same for all, as nothing mounts two of them: equal templates have equal bytes.
const UUID: &str = "5dfb1e1b-7a3c-4b87-9a54-4b5a2a3f0e02";

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("mkfs.ext4 is not installed (Debian: apt install e2fsprogs)")]
    Missing,
    #[error("cannot run {}", program.display())]
    Run { program: PathBuf, source: io::Error },
    #[error("mkfs.ext4 failed ({status}): {said}")]
    Failed { status: String, said: String },
}

/// A template, and where the files belong that hold what sandboxes wrote over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pub path: PathBuf,
    pub layers: PathBuf,
}

/// The template of this size, made when it is not there. Two makers at once are no harm: each renames
/// a whole one into place.
///
/// # Errors
/// The tool is missing or fails, the store cannot be written.
pub fn template(store: &Store, mib: u64) -> Result<Template, ScratchError> {
    let directory = store.scratch();
    let path = directory.join(format!("{FORMAT}-{mib}.img"));
    if !path.exists() {
        let work = store.work("scratch")?;
        let new = work.path().join("image");
        format(&new, mib)?;
        fs::rename(&new, &path).map_err(PathError::at("move the scratch template to", &path))?;
        store::sync(&directory)?;
    }
    Ok(Template {
        path,
        layers: layers(store),
    })
}

/// Where those files belong; they have no names.
pub(crate) fn layers(store: &Store) -> PathBuf {
    store.scratch().join("layers")
}

fn format(path: &Path, mib: u64) -> Result<(), ScratchError> {
    let file = File::create_new(path).map_err(PathError::at("create", path))?;
    file.set_len(mib.saturating_mul(1024 * 1024))
        .map_err(PathError::at("set the size of", path))?;
    let program = tools::find("mkfs.ext4").ok_or(ScratchError::Missing)?;
    let output = Command::new(&program)
        .args([
            "-q", "-F", "-m", "0", "-U", UUID, "-E", EXTENDED, "-O", FEATURES,
        ])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ScratchError::Run { program, source })?;
    if !output.status.success() {
        return Err(ScratchError::Failed {
            status: output.status.to_string(),
            said: tools::last_lines(&output.stderr),
        });
    }
    Ok(file.sync_all().map_err(PathError::at("sync", path))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_template_is_small_made_once_and_needs_no_zeroing_in_the_guest() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let first = template(&store, 1024).unwrap();
        let metadata = fs::metadata(&first.path).unwrap();
        assert_eq!(metadata.len(), 1024 * 1024 * 1024);
        let allocated = metadata.blocks() * 512;
        assert!(allocated < 512 * 1024, "{allocated} bytes");
        assert_eq!(template(&store, 1024).unwrap(), first);
        assert_eq!(fs::metadata(&first.path).unwrap().ino(), metadata.ino());
        assert_ne!(template(&store, 64).unwrap().path, first.path);

        let dumpe2fs = tools::find("dumpe2fs").unwrap();
        let dump = Command::new(dumpe2fs).arg(&first.path).output().unwrap();
        let dump = String::from_utf8(dump.stdout).unwrap();
        assert!(!dump.contains("has_journal"));
        let groups = dump.lines().filter(|line| line.contains("(Blocks "));
        let zeroed = groups.clone().filter(|line| line.contains("ITABLE_ZEROED"));
        assert!(groups.clone().count() > 1);
        assert_eq!(groups.count(), zeroed.count());
    }
}
