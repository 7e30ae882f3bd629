//! The read-only image: one file, opened once, shared by every session that reads it.
//!
//! Must hold: the file is open read-only and no method writes. Images are content-addressed, so a
//! file that changes while it is served is a fault: sessions are refused rather than given a
//! mixture.

use std::fs::{File, Metadata};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use crate::disk::{Capacity, Extent};
use crate::iov::{self, Span, Wait};

#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot stat {path}")]
    Stat { path: PathBuf, source: io::Error },
    #[error("{path} is not a regular file")]
    NotAFile { path: PathBuf },
    #[error("{path} is empty")]
    Empty { path: PathBuf },
    #[error("{path} changed after it was opened; start the daemon again to serve the new content")]
    Changed { path: PathBuf },
}

/// What must stay the same for a file to count as the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl From<&Metadata> for Identity {
    fn from(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        }
    }
}

/// A regular file, open read-only, with the identity it had then.
#[derive(Debug)]
pub struct Source {
    file: File,
    path: PathBuf,
    identity: Identity,
}

impl Source {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let named = || path.to_path_buf();
        let file = File::open(path).map_err(|source| Error::Open {
            path: named(),
            source,
        })?;
        let meta = file.metadata().map_err(|source| Error::Stat {
            path: named(),
            source,
        })?;
        if !meta.is_file() {
            return Err(Error::NotAFile { path: named() });
        }
        if meta.size() == 0 {
            return Err(Error::Empty { path: named() });
        }
        Ok(Self {
            file,
            path: named(),
            identity: Identity::from(&meta),
        })
    }

    /// Fails when the content is no longer what was opened.
    pub fn check(&self) -> Result<(), Error> {
        let meta = self.file.metadata();
        let meta = meta.map_err(|source| Error::Stat {
            path: self.path.clone(),
            source,
        })?;
        if Identity::from(&meta) == self.identity {
            Ok(())
        } else {
            Err(Error::Changed {
                path: self.path.clone(),
            })
        }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn identity(&self) -> Identity {
        self.identity
    }

    pub fn size(&self) -> u64 {
        self.identity.size
    }
}

/// A disk that can only be read.
#[derive(Debug)]
pub struct Image {
    source: Source,
    tells_misses: bool,
}

impl Image {
    pub fn new(source: Source) -> Self {
        let tells_misses = tells_misses(source.file());
        Self {
            source,
            tells_misses,
        }
    }

    pub fn tells_misses(&self) -> bool {
        self.tells_misses
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    pub fn capacity(&self) -> Capacity {
        Capacity::holding(self.source.size())
    }

    pub fn read(
        &self,
        extent: Extent,
        memory: &GuestMemoryMmap,
        span: Span<'_>,
        wait: Wait,
    ) -> Result<u64, iov::Error> {
        iov::read(self.source.file(), extent.offset(), memory, span, wait)
    }

    /// Starts reading `extent` into the page cache without waiting for it.
    pub fn prefetch(&self, extent: Extent) {
        prefetch(self.source.file(), extent);
    }
}

/// Whether the file system under `file` knows `RWF_NOWAIT`.
pub(crate) fn tells_misses(file: &File) -> bool {
    let mut byte = [0];
    let probe = preadv2(
        file,
        &mut [IoSliceMut::new(&mut byte)],
        0,
        ReadWriteFlags::NOWAIT,
    );
    matches!(probe, Ok(_) | Err(Errno::AGAIN))
}

/// A hint only: a file system that does not take it just reads later.
pub(crate) fn prefetch(file: &File, extent: Extent) {
    if let Some(length) = std::num::NonZeroU64::new(extent.bytes())
        && let Err(error) = fadvise(file, extent.offset(), Some(length), Advice::WillNeed)
    {
        log::debug!("read-ahead hint refused: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_a_filled_regular_file_is_an_image() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(matches!(Source::open(&at("none")), Err(Error::Open { .. })));
        assert!(matches!(
            Source::open(dir.path()),
            Err(Error::NotAFile { .. })
        ));
        std::fs::write(at("empty"), b"").unwrap();
        assert!(matches!(
            Source::open(&at("empty")),
            Err(Error::Empty { .. })
        ));
        std::fs::write(at("odd"), [7; 700]).unwrap();
        assert_eq!(
            Image::new(Source::open(&at("odd")).unwrap())
                .capacity()
                .sectors(),
            2
        );
    }

    #[test]
    fn a_changed_image_is_noticed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 4096]).unwrap();
        let source = Source::open(file.path()).unwrap();
        source.check().unwrap();
        file.write_all(&[2; 512]).unwrap();
        let error = source.check().unwrap_err();
        assert!(
            error.to_string().contains("changed after it was opened"),
            "{error}"
        );
    }

    #[test]
    fn replacing_the_name_leaves_the_open_image_valid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [1; 512]).unwrap();
        let source = Source::open(&path).unwrap();
        std::fs::write(dir.path().join("new"), [2; 512]).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        source.check().unwrap();
    }
}
