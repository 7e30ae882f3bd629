//! The writable layer: a private disk that begins as a pre-formatted template, that nobody else can
//! open, and that is gone with its session.
//!
//! Must hold: the file of a layer has no name (`O_TMPFILE`, else unlinked before the first byte is
//! written), so neither a crash nor a forgotten step can leave one tenant's data to another. Its
//! length never changes: a full file system shows as an I/O error on write, and what was written
//! before stays readable. The one exception is a layer that its listener keeps, see [`keep`].
//!
//! The template is never written. It has to stay as it is while layers use it; one that changed is
//! refused to new sessions.

mod blocks;
mod copy;
pub mod keep;
mod layer;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rundlet_jail::root::{self, RootError};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use thiserror::Error;

use crate::disk::Capacity;
use crate::image::{self, Source};
use keep::Keep;
pub use layer::Layer;

#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot use the scratch template")]
    Template(#[from] image::Error),
    #[error("cannot create a scratch layer in {directory}")]
    Create {
        directory: PathBuf,
        source: io::Error,
    },
    #[error("cannot take the directory of scratch layers along")]
    Detach(#[from] RootError),
}

/// What a flush from the guest means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// Nothing: the layer dies with its VM, so there is no later moment to be safe for.
    Volatile,
    /// Written data survives a power cut of the host.
    Durable,
}

/// The file every layer of one disk starts from, and where layers live.
#[derive(Debug)]
pub struct Template {
    source: Source,
    directory: Place,
    flush: Flush,
    keep: Option<Keep>,
    tells_misses: bool,
}

impl Template {
    /// Fails when the directory cannot hold a layer, rather than at the first VM's first write.
    pub fn new(
        source: Source,
        directory: Place,
        flush: Flush,
        keep: Option<Keep>,
    ) -> Result<Arc<Self>, Error> {
        let mut template = Self {
            source,
            directory,
            flush,
            keep,
            tells_misses: false,
        };
        let trial = template.trial()?;
        template.tells_misses =
            image::tells_misses(&trial) && image::tells_misses(template.source.file());
        Ok(Arc::new(template))
    }

    /// An empty layer's file, or why there can be none.
    pub fn trial(&self) -> Result<File, Error> {
        self.file().map_err(|source| Error::Create {
            directory: self.directory.path.clone(),
            source,
        })
    }

    pub fn capacity(&self) -> Capacity {
        Capacity::holding(self.source.size())
    }

    /// Whole sectors, so that no read inside the capacity meets the end of a layer's file.
    fn length(&self) -> u64 {
        self.capacity().sectors() * crate::disk::SECTOR_BYTES
    }

    pub fn flush(&self) -> Flush {
        self.flush
    }

    pub fn keep(&self) -> Option<&Keep> {
        self.keep.as_ref()
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Whether template and layers know `RWF_NOWAIT`.
    fn tells_misses(&self) -> bool {
        self.tells_misses
    }

    /// A fresh layer with the template's content.
    pub fn layer(self: &Arc<Self>) -> Result<Layer, Error> {
        self.source.check()?;
        Ok(Layer::new(Arc::clone(self)))
    }

    /// The empty file of one layer.
    fn file(&self) -> io::Result<File> {
        let file = match self.keep {
            None => nameless_file(&self.directory.open),
            Some(_) => linkable_file(&self.directory.open),
        }?;
        file.set_len(self.length())?;
        Ok(file)
    }
}

/// A directory where layers live, open: who is shut in has no path to it any more.
#[derive(Debug)]
pub struct Place {
    open: OwnedFd,
    path: PathBuf,
}

impl Place {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(CWD, path, flags, Mode::empty()) {
            Ok(open) => Ok(Self::at(path, open)),
            Err(errno) => Err(Error::Create {
                directory: path.to_path_buf(),
                source: errno.into(),
            }),
        }
    }

    /// The same, from which no way leads to anything but what is in it.
    pub fn detach(path: &Path) -> Result<Self, Error> {
        Ok(Self::at(path, root::directory(path)?))
    }

    fn at(path: &Path, open: OwnedFd) -> Self {
        Self {
            open,
            path: path.to_path_buf(),
        }
    }
}

const ACCESS: OFlags = OFlags::RDWR.union(OFlags::CLOEXEC);
const FALLBACK: OFlags = ACCESS.union(OFlags::EXCL).union(OFlags::CREATE);
/// Flags of all files that are opened for layers, the first one for those that are kept.
pub const FLAGS: [OFlags; 3] = [
    ACCESS.union(OFlags::TMPFILE),
    ACCESS.union(OFlags::TMPFILE).union(OFlags::EXCL),
    FALLBACK,
];

/// A file in `directory` without a name, that may get one. Not on every file system.
fn linkable_file(directory: &OwnedFd) -> io::Result<File> {
    let [linkable, ..] = FLAGS;
    Ok(openat(directory, ".", linkable, Mode::RUSR | Mode::WUSR)?.into())
}

/// A file in `directory` that has no name and never gets one.
fn nameless_file(directory: &OwnedFd) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    // With O_EXCL the kernel also refuses to give it a name later.
    let [_, nameless, fallback] = FLAGS;
    match openat(directory, ".", nameless, mode) {
        Ok(file) => return Ok(File::from(file)),
        // What file systems without O_TMPFILE answer.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!(".layer-{}-{number}", std::process::id());
    let file = openat(directory, &*name, fallback, mode)?;
    unlinkat(directory, &*name, AtFlags::empty())?;
    Ok(File::from(file))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_changed_template_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("template");
        std::fs::write(&path, [1; 8192]).unwrap();
        let source = Source::open(&path).unwrap();
        let place = Place::open(dir.path()).unwrap();
        let template = Template::new(source, place, Flush::Volatile, None).unwrap();
        template.layer().unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"new", 1 << 20).unwrap();
        assert!(matches!(
            template.layer(),
            Err(Error::Template(image::Error::Changed { .. }))
        ));
    }

    #[test]
    fn a_missing_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Place::open(&dir.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
    }
}
