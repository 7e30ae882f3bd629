//! A layer that outlives its session: the scratch disk of a guest that becomes a template.
//!
//! Must hold: the name appears once the content is complete and on the medium, so whoever sees the
//! file may use it. Nothing is ever overwritten, and whatever fails or dies half way leaves nothing,
//! since the file has no name until then.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, linkat};
use rustix::io::Errno;
use thiserror::Error;

use super::Layer;

#[derive(Debug, Error)]
pub enum Error {
    #[error("{0} is not the absolute path of a file in some directory")]
    Place(PathBuf),
    #[error("{0} exists already and is never overwritten; remove it or keep the layer elsewhere")]
    Exists(PathBuf),
    #[error("cannot complete the layer for {path}")]
    Complete { path: PathBuf, source: io::Error },
    #[error("cannot write the layer for {path} to the medium")]
    Sync { path: PathBuf, source: io::Error },
    #[error("cannot give the layer the name {path}")]
    Link { path: PathBuf, source: io::Error },
}

/// A name that a layer will get, in a directory where that can work.
#[derive(Debug)]
pub struct Keep {
    path: PathBuf,
    directory: PathBuf,
}

impl Keep {
    /// Fails for a name that is taken.
    pub fn new(path: &Path) -> Result<Self, Error> {
        let directory = path.parent().filter(|_| path.file_name().is_some());
        let directory = directory.ok_or_else(|| Error::Place(path.to_path_buf()))?;
        if fs::symlink_metadata(path).is_ok() {
            return Err(Error::Exists(path.to_path_buf()));
        }
        Ok(Self {
            path: path.to_path_buf(),
            directory: directory.to_path_buf(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the layer has to be made, so that a name is all it needs in the end.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Publishes `layer`, which nobody may write to any more.
    pub fn publish(&self, layer: &Layer) -> Result<(), Error> {
        let sync = |source| Error::Sync {
            path: self.path.clone(),
            source,
        };
        let file = layer.complete().map_err(|source| Error::Complete {
            path: self.path.clone(),
            source,
        })?;
        file.sync_all().map_err(sync)?;
        let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
        match linkat(CWD, nameless, CWD, &self.path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(Error::Exists(self.path.clone())),
            Err(error) => {
                return Err(Error::Link {
                    path: self.path.clone(),
                    source: error.into(),
                });
            }
        }
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(sync)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;

    use super::*;
    use crate::image::Source;
    use crate::scratch::{Flush, Place, Template};

    fn template(dir: &Path) -> Arc<Template> {
        let path = dir.join("template");
        let file = File::create(&path).unwrap();
        file.set_len(16 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[5; 8192], 1 << 20).unwrap();
        let keep = Keep::new(&dir.join("kept")).unwrap();
        let source = Source::open(&path).unwrap();
        let place = Place::open(keep.directory()).unwrap();
        Template::new(source, place, Flush::Volatile, Some(keep)).unwrap()
    }

    #[test]
    fn a_kept_layer_has_the_content_and_the_holes() {
        let dir = tempfile::tempdir().unwrap();
        let template = template(dir.path());
        let layer = template.layer().unwrap();
        let path = dir.path().join("kept");
        assert!(!path.exists());
        template.keep().unwrap().publish(&layer).unwrap();
        let kept = fs::read(&path).unwrap();
        assert_eq!(kept, fs::read(dir.path().join("template")).unwrap());
        let meta = fs::metadata(&path).unwrap();
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
        assert_eq!(meta.nlink(), 1);
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let template = template(dir.path());
        let path = dir.path().join("kept");
        fs::write(&path, "precious").unwrap();
        let error = template
            .keep()
            .unwrap()
            .publish(&template.layer().unwrap())
            .unwrap_err();
        assert!(matches!(error, Error::Exists(_)), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert!(matches!(Keep::new(&path), Err(Error::Exists(_))));
        assert!(matches!(Keep::new(Path::new("/")), Err(Error::Place(_))));
    }

    #[test]
    fn a_layer_that_is_not_published_leaves_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let template = template(dir.path());
        drop(template.layer().unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
