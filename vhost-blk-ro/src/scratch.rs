//! The writable layer: a private copy of a pre-formatted template that nobody else can open and
//! that is gone with its session.
//!
//! Must hold: the file has no name (`O_TMPFILE`, else unlinked before the first byte is written), so
//! neither a crash nor a forgotten step can leave one tenant's data to another. Its length never
//! changes: a full file system shows as an I/O error on write, and what was written before stays
//! readable. The one exception is a layer that its listener keeps, see [`keep`].

mod copy;
pub mod keep;
pub mod pool;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, fallocate, open, openat, unlinkat};
use rustix::io::Errno;
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use crate::disk::{Capacity, Extent};
use crate::image::{self, Source};
use crate::iov::{self, Segment, Span, Sync, Wait};
use keep::Keep;

#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot use the scratch template")]
    Template(#[from] image::Error),
    #[error("cannot create a scratch layer in {directory}")]
    Create {
        directory: PathBuf,
        source: io::Error,
    },
    #[error("cannot copy {template} into a scratch layer in {directory}")]
    Copy {
        template: PathBuf,
        directory: PathBuf,
        source: io::Error,
    },
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
    directory: PathBuf,
    flush: Flush,
    keep: Option<Keep>,
}

impl Template {
    pub fn new(source: Source, directory: &Path, flush: Flush) -> Self {
        Self {
            source,
            directory: directory.to_path_buf(),
            flush,
            keep: None,
        }
    }

    /// With layers that can be published, made where they will be.
    #[must_use]
    pub fn kept(self, keep: Keep) -> Self {
        Self {
            directory: keep.directory().to_path_buf(),
            keep: Some(keep),
            ..self
        }
    }

    pub fn keep(&self) -> Option<&Keep> {
        self.keep.as_ref()
    }

    pub fn capacity(&self) -> Capacity {
        Capacity::holding(self.source.size())
    }

    pub fn flush(&self) -> Flush {
        self.flush
    }

    /// A fresh layer with the template's content.
    pub fn layer(&self) -> Result<Layer, Error> {
        self.source.check()?;
        let file = match self.keep {
            None => nameless_file(&self.directory),
            Some(_) => linkable_file(&self.directory),
        };
        let file = file.map_err(|source| Error::Create {
            directory: self.directory.clone(),
            source,
        })?;
        // Whole sectors, so that no read inside the capacity meets the end of the file.
        let length = self.capacity().sectors() * crate::disk::SECTOR_BYTES;
        copy::content(self.source.file(), self.source.size(), &file)
            .and_then(|()| file.set_len(length))
            .map_err(|source| Error::Copy {
                template: self.source.path().to_path_buf(),
                directory: self.directory.clone(),
                source,
            })?;
        let tells_misses = image::tells_misses(&file);
        Ok(Layer {
            file,
            capacity: self.capacity(),
            flush: self.flush,
            tells_misses,
        })
    }
}

const ACCESS: OFlags = OFlags::RDWR.union(OFlags::CLOEXEC);

/// A file in `directory` without a name, that may get one. Not on every file system.
fn linkable_file(directory: &Path) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(open(directory, ACCESS | OFlags::TMPFILE, mode)?.into())
}

/// A file in `directory` that has no name and never gets one.
fn nameless_file(directory: &Path) -> io::Result<File> {
    let access = ACCESS | OFlags::EXCL;
    let mode = Mode::RUSR | Mode::WUSR;
    // With O_EXCL the kernel also refuses to give it a name later.
    match open(directory, access | OFlags::TMPFILE, mode) {
        Ok(file) => return Ok(File::from(file)),
        // What file systems without O_TMPFILE answer.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let parent = open(
        directory,
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!(".layer-{}-{number}", std::process::id());
    let file = openat(&parent, &*name, access | OFlags::CREATE, mode)?;
    unlinkat(&parent, &*name, AtFlags::empty())?;
    Ok(File::from(file))
}

/// One session's writable disk.
#[derive(Debug)]
pub struct Layer {
    file: File,
    capacity: Capacity,
    flush: Flush,
    tells_misses: bool,
}

impl Layer {
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    pub fn tells_misses(&self) -> bool {
        self.tells_misses
    }

    pub fn flush_mode(&self) -> Flush {
        self.flush
    }

    pub fn read(
        &self,
        extent: Extent,
        memory: &GuestMemoryMmap,
        span: Span<'_>,
        wait: Wait,
    ) -> Result<u64, iov::Error> {
        iov::read(&self.file, extent.offset(), memory, span, wait)
    }

    /// Starts reading `extent` into the page cache without waiting for it.
    pub fn prefetch(&self, extent: Extent) {
        image::prefetch(&self.file, extent);
    }

    pub fn write(
        &self,
        extent: Extent,
        memory: &GuestMemoryMmap,
        segments: &[Segment],
        sync: Sync,
    ) -> Result<(), iov::Error> {
        iov::write(&self.file, extent.offset(), memory, segments, sync)
    }

    pub fn flush(&self) -> io::Result<()> {
        match self.flush {
            Flush::Volatile => Ok(()),
            Flush::Durable => self.file.sync_data(),
        }
    }

    /// Gives the space back to the host. Advice: where the file system cannot, nothing happens.
    pub fn discard(&self, extent: Extent) -> io::Result<()> {
        match punch(&self.file, extent) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Makes `extent` read as zeroes; with `unmap` its space may go back to the host.
    pub fn write_zeroes(&self, extent: Extent, unmap: bool) -> io::Result<()> {
        if !unmap {
            let keep = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            match on_extent(&self.file, extent, keep) {
                Err(Errno::OPNOTSUPP) => {}
                result => return Ok(result?),
            }
        }
        match punch(&self.file, extent) {
            Err(Errno::OPNOTSUPP) => copy::zeroes(&self.file, extent.offset(), extent.bytes()),
            result => Ok(result?),
        }
    }
}

fn punch(file: &File, extent: Extent) -> Result<(), Errno> {
    on_extent(
        file,
        extent,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
    )
}

fn on_extent(file: &File, extent: Extent, flags: FallocateFlags) -> Result<(), Errno> {
    if extent.bytes() == 0 {
        return Ok(());
    }
    loop {
        match fallocate(file, flags, extent.offset(), extent.bytes()) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests;
