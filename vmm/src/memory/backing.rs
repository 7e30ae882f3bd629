//! What guest memory can be made of.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use thiserror::Error;
use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder, MmapRegionError};

/// Why a piece of memory could not be had.
#[derive(Debug, Error)]
pub enum BackingError {
    /// mmap(2) failed.
    #[error("mmap failed; is the host out of memory or address space?")]
    Map(#[source] MmapRegionError),
    /// The window's file could not be made.
    #[error("cannot {what} the memfd of the I/O window")]
    Memfd {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// More than this machine can address.
    #[error("{0:#x} bytes do not fit this machine's address space")]
    TooLarge(u64),
}

/// Private anonymous memory. MAP_NORESERVE: sandboxes are overcommitted on purpose.
pub fn anonymous(len: u64) -> Result<MmapRegion, BackingError> {
    builder(len)?
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()
        .map_err(BackingError::Map)
}

/// The whole of `file`, shared.
pub fn shared(file: &Arc<File>, len: u64) -> Result<MmapRegion, BackingError> {
    builder(len)?
        .with_file_offset(FileOffset::from_arc(Arc::clone(file), 0))
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .build()
        .map_err(BackingError::Map)
}

/// `len` bytes of `file` from `offset` on, private: what is written stays here. The caller has checked that
/// the file is long enough.
pub fn private_over(file: &Arc<File>, offset: u64, len: u64) -> Result<MmapRegion, BackingError> {
    builder(len)?
        .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset))
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        .build()
        .map_err(BackingError::Map)
}

fn builder(len: u64) -> Result<MmapRegionBuilder, BackingError> {
    let size = usize::try_from(len).map_err(|_| BackingError::TooLarge(len))?;
    Ok(MmapRegionBuilder::new(size).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE))
}

/// Replaces `len` bytes of a mapping by a private view of `file`.
///
/// # Safety
///
/// `[at, at + len)` must be whole pages of a mapping that the caller owns, with no references into it.
pub unsafe fn overlay(at: *mut u8, len: usize, file: &File, offset: u64) -> io::Result<()> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the caller's promise is mmap's condition for MAP_FIXED.
    let place = unsafe { rustix::mm::mmap(at.cast(), len, protection, flags, file, offset) }?;
    debug_assert_eq!(place, at.cast());
    Ok(())
}

/// A memfd whose size nobody can change any more: a backend that holds it cannot make us fault.
pub fn sealed_memfd(len: u64) -> Result<File, BackingError> {
    let failed = |what| {
        move |errno: rustix::io::Errno| BackingError::Memfd {
            what,
            source: errno.into(),
        }
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("rundlet-window", flags).map_err(failed("create"))?;
    rustix::fs::ftruncate(&fd, len).map_err(failed("size"))?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(failed("seal"))?;
    Ok(File::from(fd))
}
