//! What guest memory can be made of.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use thiserror::Error;
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
    let size = usize::try_from(len).map_err(|_| BackingError::TooLarge(len))?;
    MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()
        .map_err(BackingError::Map)
}

/// What becomes of writes to a mapped file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// They stay in this process.
    Private,
    /// They go into the file.
    Shared,
}

/// Replaces `len` bytes of a mapping by a view of `file`.
///
/// # Safety
///
/// `[at, at + len)` must be whole pages of a mapping that the caller owns, with no references into it.
pub unsafe fn overlay(
    at: *mut u8,
    len: usize,
    (file, offset): (&File, u64),
    writes: Writes,
) -> io::Result<()> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::FIXED | MapFlags::NORESERVE;
    let flags = flags
        | match writes {
            Writes::Private => MapFlags::PRIVATE,
            Writes::Shared => MapFlags::SHARED,
        };
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
