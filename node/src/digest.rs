//! Digests of files that seldom change: kernel, initrd, the VMM. A cache in the store remembers them, as
//! hashing a kernel takes longer than starting a clone.
//!
//! A remembered digest is believed as long as the file is the same inode with the same size and the same
//! times of change of content and inode, which only root can turn back.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::claim;
use crate::error::PathError;
use crate::image::Store;

/// What was known of a file when it was hashed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    path: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    seen: Seen,
    digest: String,
}

impl Seen {
    fn of(path: &Path, metadata: &Metadata) -> Self {
        Self {
            path: path.to_path_buf(),
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// `sha256-` and 64 hexadecimal digits of a file's content.
///
/// # Errors
/// The file cannot be read. A cache that cannot be used is no error.
pub fn of_file(store: &Store, path: &Path) -> Result<String, PathError> {
    let mut file = File::open(path).map_err(PathError::at("open", path))?;
    let metadata = file.metadata().map_err(PathError::at("look at", path))?;
    let seen = Seen::of(path, &metadata);
    let directory = store.root().join("digests");
    let entry = directory.join(format!("{}-{}.json", seen.device, seen.inode));
    if let Some(digest) = recall(&entry, &seen) {
        return Ok(digest);
    }
    let digest = hash(&mut file).map_err(PathError::at("read", path))?;
    let remembered = Remembered { seen, digest };
    if let Err(error) = remember(&directory, &entry, &remembered) {
        log::warn!("digest of {} not remembered: {error}", path.display());
    }
    Ok(remembered.digest)
}

fn recall(entry: &Path, seen: &Seen) -> Option<String> {
    let json = fs::read(entry).ok()?;
    let remembered: Remembered = serde_json::from_slice(&json).ok()?;
    (remembered.seen == *seen).then_some(remembered.digest)
}

/// By rename, as others may read or write the same entry.
fn remember(directory: &Path, entry: &Path, remembered: &Remembered) -> io::Result<()> {
    let new = directory.join(format!("new-{}", claim::random_hex()?));
    fs::write(&new, serde_json::to_vec(remembered)?)?;
    fs::rename(&new, entry)
}

fn hash(from: &mut impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        let count = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if count == 0 {
            break;
        }
        hash.update(buffer.get(..count).unwrap_or_default());
    }
    let digits = hash.finalize();
    let digits = digits.iter().map(|byte| format!("{byte:02x}"));
    Ok(format!("sha256-{}", digits.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_remembered_until_the_file_changes() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "abc").unwrap();
        let first = of_file(&store, &path).unwrap();
        // FIPS 180-4's example.
        assert_eq!(
            first,
            "sha256-ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let entries = || {
            let entries = fs::read_dir(store.root().join("digests")).unwrap();
            entries.map(|it| it.unwrap().path()).collect::<Vec<_>>()
        };
        let entry = entries().pop().unwrap();
        let json = fs::read_to_string(&entry).unwrap();
        fs::write(&entry, json.replace(&first, "sha256-remembered")).unwrap();
        assert_eq!(of_file(&store, &path).unwrap(), "sha256-remembered");
        fs::write(&path, "abd").unwrap();
        let second = of_file(&store, &path).unwrap();
        assert!(second != first && second != "sha256-remembered");
        assert_eq!(entries().len(), 1);
        fs::write(&entry, "{").unwrap();
        assert_eq!(of_file(&store, &path).unwrap(), second);
        assert!(of_file(&store, Path::new("/nonexistent")).is_err());
    }
}
