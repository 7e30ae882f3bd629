//! The store: images by digest, names that point to them, templates of scratch disks.
//!
//! ```text
//! images/sha256-<hex>.erofs   never changed once there; a sandbox that uses one holds it locked shared
//! names/<name>.json           a Reference, replaced by rename
//! templates/                  see crate::template::store; each keeps its image here
//! scratch/                    see crate::scratch
//! digests/                    see crate::digest
//! tmp/                        work in progress, one Claim each
//! lock                        held shared between looking a name up and locking its image, exclusively
//!                             while names and images are added or removed
//! ```
//!
//! A crash at any point leaves either the old or the new name, whole images only, and at worst an image
//! without a name or a claim without an owner; the next change of the store removes both.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::ImageName;
use crate::claim::{self, Claim};
use crate::error::PathError;
use crate::locks;
use crate::template::{self, TemplateName};

/// What a name points to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    pub name: ImageName,
    /// `sha256-` and 64 hexadecimal digits.
    pub digest: String,
    /// Size of the image in bytes.
    pub bytes: u64,
    /// Seconds since 1970.
    pub created: u64,
    /// Where it was imported from.
    pub source: String,
}

/// An image that stays while this exists.
#[derive(Debug)]
pub struct Image {
    /// `sha256-` and 64 hexadecimal digits.
    pub digest: String,
    pub path: PathBuf,
    _lock: File,
}

/// The store's directory.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(
        "there is no image {0}; `rundlet image ls` shows those that are there, `rundlet image import PATH {0}` makes one"
    )]
    NoSuchImage(ImageName),
    #[error("{} is damaged; import the image again", path.display())]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("image {name} is in use{}; stop its sandboxes first", locks::by(pids))]
    InUse { name: ImageName, pids: Vec<u32> },
    #[error(
        "image {name} is needed by template {}; `rundlet template rm` first",
        list(templates)
    )]
    Needed {
        name: ImageName,
        templates: Vec<TemplateName>,
    },
    #[error("the image {digest} is gone, which was called {name}; import it again")]
    Gone { name: ImageName, digest: String },
}

fn list(names: &[TemplateName]) -> String {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    names.join(", ")
}

impl Store {
    /// Opens the store, making what is missing.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        for directory in [
            "digests",
            "images",
            "names",
            "scratch",
            "scratch/layers",
            "templates",
            "templates/builds",
            "tmp",
        ] {
            let path = root.join(directory);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(PathError::at("create directory", &path))?;
        }
        Ok(Self {
            root: root.to_path_buf(),
        })
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where templates of scratch disks are.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// A place for work in progress on the store's filesystem. Sweeps what crashed work left behind.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn work(&self, prefix: &str) -> Result<Claim, StoreError> {
        let tmp = self.root.join("tmp");
        let swept = claim::sweep(&tmp)?;
        if swept > 0 {
            log::info!(
                "removed {swept} directories of unfinished work from {}",
                tmp.display()
            );
        }
        Ok(Claim::create_random(&tmp, prefix)?)
    }

    /// Looks a name up and locks its image against removal.
    ///
    /// # Errors
    /// No such image, or the store cannot be read.
    pub fn find(&self, name: &ImageName) -> Result<Image, StoreError> {
        let _shared = self.lock(FlockOperation::LockShared)?;
        let reference = self.read(name)?;
        self.open_image(name, &reference.digest)
    }

    /// Locks the image of this digest against removal, whatever its name points to by now.
    ///
    /// # Errors
    /// It is no longer there, or the store cannot be read.
    pub fn find_digest(&self, name: &ImageName, digest: &str) -> Result<Image, StoreError> {
        let _shared = self.lock(FlockOperation::LockShared)?;
        self.open_image(name, digest)
    }

    /// Locks an image by its digest; `name` is for the error. Under the shared lock.
    pub(crate) fn open_image(&self, name: &ImageName, digest: &str) -> Result<Image, StoreError> {
        let path = self.image_path(digest);
        let lock = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Gone {
                    name: name.clone(),
                    digest: digest.into(),
                });
            }
            other => other.map_err(PathError::at("open image", &path))?,
        };
        flock(&lock, FlockOperation::LockShared).map_err(PathError::at("lock image", &path))?;
        Ok(Image {
            digest: digest.into(),
            path,
            _lock: lock,
        })
    }

    /// All names, sorted.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<Reference>, StoreError> {
        let names = self.root.join("names");
        let mut all = Vec::new();
        for entry in fs::read_dir(&names).map_err(PathError::at("list", &names))? {
            let path = entry.map_err(PathError::at("list", &names))?.path();
            // Others are new references on their way to their name.
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                all.push(read_reference(&path)?);
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Takes a finished image file, on the store's filesystem and synced, under its digest and name. A
    /// name that was there before moves to it.
    ///
    /// # Errors
    /// The store cannot be written; the name is as it was then.
    pub fn publish(&self, staged: &Path, reference: &Reference) -> Result<(), StoreError> {
        let _exclusive = self.lock(FlockOperation::LockExclusive)?;
        let path = self.image_path(&reference.digest);
        if !path.exists() {
            fs::rename(staged, &path).map_err(PathError::at("move the image to", &path))?;
            sync(&self.root.join("images"))?;
        }
        self.write(reference)?;
        self.collect()
    }

    /// Takes a name away, and its image when no other name has it.
    ///
    /// # Errors
    /// No such name; or it is the last one of an image in use, or of one that a template needs.
    pub fn remove(&self, name: &ImageName) -> Result<Reference, StoreError> {
        let _exclusive = self.lock(FlockOperation::LockExclusive)?;
        let reference = self.read(name)?;
        let others = self.list()?;
        let last = !others
            .iter()
            .any(|other| other.digest == reference.digest && other.name != reference.name);
        let image = self.image_path(&reference.digest);
        if last && let Some(pids) = locks::users(&image) {
            return Err(StoreError::InUse {
                name: name.clone(),
                pids,
            });
        }
        let templates = template::store::needing(&self.root, &reference.digest)?;
        if last && !templates.is_empty() {
            return Err(StoreError::Needed {
                name: name.clone(),
                templates,
            });
        }
        let path = self.name_path(name);
        fs::remove_file(&path).map_err(PathError::at("remove", &path))?;
        sync(&self.root.join("names"))?;
        self.collect()?;
        Ok(reference)
    }

    /// Removes images that no name points to, no template needs and nobody uses. Under the exclusive lock.
    fn collect(&self) -> Result<(), StoreError> {
        let wanted: Vec<String> = self.list()?.into_iter().map(|it| it.digest).collect();
        let images = self.root.join("images");
        for entry in fs::read_dir(&images).map_err(PathError::at("list", &images))? {
            let path = entry.map_err(PathError::at("list", &images))?.path();
            let named = path
                .file_stem()
                .is_some_and(|stem| wanted.iter().any(|digest| stem == digest.as_str()));
            if !named && locks::users(&path).is_none() && !self.is_needed(&path)? {
                fs::remove_file(&path).map_err(PathError::at("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Whether a template needs an image file.
    fn is_needed(&self, image: &Path) -> Result<bool, StoreError> {
        let Some(digest) = image.file_stem().and_then(|stem| stem.to_str()) else {
            return Ok(false);
        };
        Ok(!template::store::needing(&self.root, digest)?.is_empty())
    }

    pub(crate) fn lock(&self, how: FlockOperation) -> Result<File, StoreError> {
        let path = self.root.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(PathError::at("open", &path))?;
        flock(&file, how).map_err(PathError::at("lock", &path))?;
        Ok(file)
    }

    fn image_path(&self, digest: &str) -> PathBuf {
        self.root.join("images").join(format!("{digest}.erofs"))
    }

    fn name_path(&self, name: &ImageName) -> PathBuf {
        self.root.join("names").join(name.file_name())
    }

    fn read(&self, name: &ImageName) -> Result<Reference, StoreError> {
        read_reference(&self.name_path(name)).map_err(|error| match error {
            StoreError::Path(path) if path.kind() == io::ErrorKind::NotFound => {
                StoreError::NoSuchImage(name.clone())
            }
            other => other,
        })
    }

    /// Under the exclusive lock, which makes the one temporary name enough.
    fn write(&self, reference: &Reference) -> Result<(), StoreError> {
        let path = self.name_path(&reference.name);
        let new = self.root.join("names").join("new");
        let json = serde_json::to_vec_pretty(reference).map_err(|source| StoreError::Damaged {
            path: new.clone(),
            source,
        })?;
        let mut file = File::create(&new).map_err(PathError::at("create", &new))?;
        file.write_all(&json)
            .and_then(|()| file.sync_all())
            .map_err(PathError::at("write", &new))?;
        fs::rename(&new, &path).map_err(PathError::at("write", &path))?;
        Ok(sync(&self.root.join("names"))?)
    }
}

fn read_reference(path: &Path) -> Result<Reference, StoreError> {
    let json = fs::read(path).map_err(PathError::at("read", path))?;
    serde_json::from_slice(&json).map_err(|source| StoreError::Damaged {
        path: path.to_path_buf(),
        source,
    })
}

/// Makes what was renamed into a directory outlive a crash of the machine.
pub(crate) fn sync(directory: &Path) -> Result<(), PathError> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(PathError::at("sync", directory))
}

#[cfg(test)]
mod tests;
