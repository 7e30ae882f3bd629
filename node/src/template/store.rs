//! The store's templates.
//!
//! ```text
//! templates/<name>        a symbolic link to builds/<id>, replaced by rename
//! templates/builds/<id>/  a template, never changed once there; who uses it holds the directory locked
//!                         shared
//! ```
//!
//! Names have a colon, so none of them is `builds`. All changes are made under the store's exclusive lock.
//! A crash leaves the old or the new build under the name, and at worst a build without a name, which the
//! next change removes, as it removes a replaced one when its last user has gone.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::record::RecordError;
use super::{Inspection, Record, TemplateName};
use crate::claim::{self, Claim};
use crate::error::PathError;
use crate::image::store::sync;
use crate::image::{Image, Store, StoreError};
use crate::locks;
use crate::scratch;

/// The scratch disk in a template's directory.
pub(super) const SCRATCH: &str = "scratch.img";

/// Files that every template has.
pub(super) const FILES: [&str; 5] = ["state", "memory", "window", SCRATCH, super::record::FILE];

/// Files that a template may have.
pub(super) const HINTS: [&str; 2] = ["touched", "first-command"];

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(
        "there is no template {0}; `rundlet template ls` shows those that are there, `rundlet template build IMAGE {0}` makes one"
    )]
    NoSuchTemplate(TemplateName),
    #[error("template {name} is damaged; `rundlet template rm {name}` removes it")]
    Damaged {
        name: TemplateName,
        source: serde_json::Error,
    },
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the built template has no {0}")]
    Incomplete(&'static str),
    #[error(
        "template {name} is in use{}; stop its sandboxes first",
        locks::by(pids)
    )]
    InUse { name: TemplateName, pids: Vec<u32> },
}

/// A template that stays, with its image, while this exists.
#[derive(Debug)]
pub struct Template {
    pub record: Record,
    pub path: PathBuf,
    pub image: Image,
    /// Its scratch disk as the template left it, of which each clone has a copy.
    pub scratch: scratch::Template,
    _lock: File,
}

/// The templates of a store.
#[derive(Clone, Debug)]
pub struct Templates {
    store: Store,
}

impl Templates {
    #[must_use]
    pub fn of(store: &Store) -> Self {
        Self {
            store: store.clone(),
        }
    }

    /// A place to build one, on the store's filesystem.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn work(&self) -> Result<Claim, TemplateError> {
        Ok(self.store.work("template")?)
    }

    /// Waits until nobody else builds a template that was found unfit, and keeps others from it.
    ///
    /// # Errors
    /// The lock cannot be taken.
    pub fn rebuild_lock(&self) -> Result<File, TemplateError> {
        let path = self.builds();
        let lock = File::open(&path).map_err(PathError::at("open", &path))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(PathError::at("lock", &path))?;
        Ok(lock)
    }

    /// Takes a complete template, whose files are synced, under the name in its record. What had the name
    /// before lives on for those who use it.
    ///
    /// # Errors
    /// It is not complete, or the store cannot be written; the name is as it was then.
    pub fn publish(&self, staged: &Path, record: &Record) -> Result<(), TemplateError> {
        for name in FILES {
            if !staged.join(name).is_file() {
                return Err(TemplateError::Incomplete(name));
            }
        }
        sync(staged)?;
        let _exclusive = self.store.lock(FlockOperation::LockExclusive)?;
        let builds = self.builds();
        let path = builds.join(&record.id);
        fs::rename(staged, &path).map_err(PathError::at("move the template to", &path))?;
        sync(&builds)?;
        self.point(&record.name, &record.id)?;
        self.collect_locked()
    }

    /// Looks a name up and locks its template, and the template's image, against removal.
    ///
    /// # Errors
    /// No such template, or the store cannot be read.
    pub fn find(&self, name: &TemplateName) -> Result<Template, TemplateError> {
        let _shared = self.store.lock(FlockOperation::LockShared)?;
        let (path, record) = self.read(name)?;
        self.open(path, record)
    }

    /// A template that has no name yet, in the work directory of its builder.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub(super) fn staged(&self, path: &Path, record: &Record) -> Result<Template, TemplateError> {
        self.open(path.to_path_buf(), record.clone())
    }

    /// The same with the build of this id, whatever its name points to by now.
    ///
    /// # Errors
    /// It is no longer there, or the store cannot be read.
    pub fn find_build(&self, id: &str) -> Result<Template, TemplateError> {
        let _shared = self.store.lock(FlockOperation::LockShared)?;
        let path = self.builds().join(id);
        let record = Record::read(&path)?;
        self.open(path, record)
    }

    /// Locks it, and its image, of which nobody may make away with either meanwhile.
    fn open(&self, path: PathBuf, record: Record) -> Result<Template, TemplateError> {
        let lock = File::open(&path).map_err(PathError::at("open", &path))?;
        flock(&lock, FlockOperation::LockShared).map_err(PathError::at("lock", &path))?;
        let image = self
            .store
            .open_image(&record.recipe.image, &record.binding.image)?;
        let scratch = scratch::Template {
            path: path.join(SCRATCH),
            layers: scratch::layers(&self.store),
        };
        Ok(Template {
            record,
            path,
            image,
            scratch,
            _lock: lock,
        })
    }

    /// All templates, sorted by name. Damaged ones are left out, with a warning.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<Inspection>, TemplateError> {
        let _shared = self.store.lock(FlockOperation::LockShared)?;
        let mut all = Vec::new();
        for (path, record) in records(self.store.root())? {
            all.push(Inspection::of(path, record)?);
        }
        all.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        Ok(all)
    }

    /// Everything about one.
    ///
    /// # Errors
    /// No such template, or the store cannot be read.
    pub fn inspect(&self, name: &TemplateName) -> Result<Inspection, TemplateError> {
        let _shared = self.store.lock(FlockOperation::LockShared)?;
        let (path, record) = self.read(name)?;
        Ok(Inspection::of(path, record)?)
    }

    /// Takes a template away.
    ///
    /// # Errors
    /// No such template, or it is in use.
    pub fn remove(&self, name: &TemplateName) -> Result<(), TemplateError> {
        let _exclusive = self.store.lock(FlockOperation::LockExclusive)?;
        let link = self.link(name);
        let path = self.follow(name)?;
        if let Some(pids) = locks::users(&path) {
            return Err(TemplateError::InUse {
                name: name.clone(),
                pids,
            });
        }
        fs::remove_file(&link).map_err(PathError::at("remove", &link))?;
        sync(&self.directory())?;
        self.collect_locked()
    }

    /// Gives a template back; one that was replaced meanwhile is removed with its last user.
    pub fn release(&self, template: Template) {
        let current = self.follow(&template.record.name).ok();
        if current.as_ref() == Some(&template.path) {
            return;
        }
        drop(template);
        let collected = self
            .store
            .lock(FlockOperation::LockExclusive)
            .map_err(TemplateError::from)
            .and_then(|_exclusive| self.collect_locked());
        if let Err(error) = collected {
            log::warn!("{}", crate::error::chain(&error));
        }
    }

    fn directory(&self) -> PathBuf {
        self.store.root().join("templates")
    }

    fn builds(&self) -> PathBuf {
        self.directory().join("builds")
    }

    fn link(&self, name: &TemplateName) -> PathBuf {
        self.directory().join(name.file_name())
    }

    /// The build that a name points to.
    fn follow(&self, name: &TemplateName) -> Result<PathBuf, TemplateError> {
        let link = self.link(name);
        match fs::read_link(&link) {
            Ok(target) => Ok(self.directory().join(target)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(TemplateError::NoSuchTemplate(name.clone()))
            }
            Err(error) => Err(PathError::at("read", &link)(error).into()),
        }
    }

    fn read(&self, name: &TemplateName) -> Result<(PathBuf, Record), TemplateError> {
        let path = self.follow(name)?;
        match Record::read(&path) {
            Ok(record) => Ok((path, record)),
            Err(RecordError::Damaged { source, .. }) => Err(TemplateError::Damaged {
                name: name.clone(),
                source,
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Under the exclusive lock, which makes the one temporary name enough.
    fn point(&self, name: &TemplateName, id: &str) -> Result<(), TemplateError> {
        let (directory, link) = (self.directory(), self.link(name));
        let new = directory.join("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(PathError::at("remove", &new)(error).into());
            }
            _ => {}
        }
        symlink(Path::new("builds").join(id), &new).map_err(PathError::at("create", &new))?;
        fs::rename(&new, &link).map_err(PathError::at("write", &link))?;
        Ok(sync(&directory)?)
    }

    /// Removes builds that no name points to and nobody uses. Under the exclusive lock.
    fn collect_locked(&self) -> Result<(), TemplateError> {
        let directory = self.directory();
        let mut named = Vec::new();
        for entry in fs::read_dir(&directory).map_err(PathError::at("list", &directory))? {
            let entry = entry.map_err(PathError::at("list", &directory))?;
            named.extend(fs::read_link(entry.path()));
        }
        let builds = self.builds();
        for entry in fs::read_dir(&builds).map_err(PathError::at("list", &builds))? {
            let entry = entry.map_err(PathError::at("list", &builds))?;
            let path = entry.path();
            let wanted = named.contains(&Path::new("builds").join(entry.file_name()));
            if !wanted && locks::users(&path).is_none() {
                claim::remove(&path).map_err(PathError::at("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// The templates that need an image, for the image store. Under its lock.
pub(crate) fn needing(root: &Path, digest: &str) -> Result<Vec<TemplateName>, PathError> {
    let mut names: Vec<TemplateName> = records(root)?
        .into_iter()
        .filter(|(_, record)| record.binding.image == digest)
        .map(|(_, record)| record.name)
        .collect();
    names.sort();
    Ok(names)
}

/// Every named template that can be read.
fn records(root: &Path) -> Result<Vec<(PathBuf, Record)>, PathError> {
    let directory = root.join("templates");
    let mut all = Vec::new();
    for entry in fs::read_dir(&directory).map_err(PathError::at("list", &directory))? {
        let entry = entry.map_err(PathError::at("list", &directory))?;
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        if entry.file_name() == "new" {
            continue;
        }
        let path = directory.join(target);
        match Record::read(&path) {
            Ok(record) => all.push((path, record)),
            Err(error) => log::warn!("left out: {}", crate::error::chain(&error)),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
