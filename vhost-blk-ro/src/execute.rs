//! A request against a disk: what happens, which status the guest gets, and who hears of it.
//!
//! Must hold: nothing that a guest asks for is an error of the daemon. Every failure has a status
//! byte and a place in the log; none of them ends a session.

use std::io;

use thiserror::Error;
use vm_memory::{Bytes, GuestMemoryMmap};

use crate::disk::{Disk, Extent, SECTOR_BYTES, Sector, Serial};
use crate::iov::{self, Segment, Span, Sync, Wait, advance};
use crate::request::{self, Range, Refusal, Request, Status};
use crate::scratch::{Flush, Layer};

/// Why a request failed.
#[derive(Debug, Error)]
pub enum Failure {
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    #[error("sector {sector} with {bytes} bytes is not on the disk")]
    OutOfRange { sector: u64, bytes: u64 },
    #[error("the disk is read-only")]
    ReadOnly,
    #[error("discard and write-zeroes are not offered for a read-only disk")]
    NotOffered,
    #[error("the file behind the disk is shorter than it was")]
    Shrunk,
    #[error("the host failed")]
    Host(#[from] io::Error),
}

impl Failure {
    pub fn status(&self) -> Status {
        match self {
            Self::Refused(refusal) => refusal.status(),
            Self::NotOffered => Status::Unsupported,
            _ => Status::IoError,
        }
    }

    /// Whether the host is to blame (logged as an error) or the guest (a warning).
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Shrunk | Self::Host(_))
    }
}

impl From<iov::Error> for Failure {
    fn from(error: iov::Error) -> Self {
        match error {
            iov::Error::OutsideMemory => Self::Refused(Refusal::OutsideMemory),
            iov::Error::Io(error) => Self::Host(error),
        }
    }
}

/// What a session knows besides its disk.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    pub serial: Serial,
    /// The driver does not flush, so each write must be as durable as the disk promises.
    pub write_through: bool,
}

/// Does what `request` says; returns how many bytes went into the device-writable buffers.
///
/// `on_miss` is called once before a read waits for the medium.
pub fn execute(
    request: &Request<'_>,
    disk: &Disk,
    memory: &GuestMemoryMmap,
    context: &Context,
    on_miss: &mut dyn FnMut(),
) -> Result<u64, Failure> {
    match *request {
        Request::Read {
            sector,
            bytes,
            into,
        } => {
            let extent = locate(disk, sector, bytes)?;
            read(disk, extent, memory, into, on_miss)?;
            Ok(bytes)
        }
        Request::Write {
            sector,
            bytes,
            from,
        } => {
            let layer = writable(disk)?;
            let durable = context.write_through && layer.flush_mode() == Flush::Durable;
            let sync = if durable { Sync::Data } else { Sync::No };
            layer.write(locate(disk, sector, bytes)?, memory, from, sync)?;
            Ok(0)
        }
        Request::Flush => {
            if let Disk::Layer(layer) = disk {
                layer.flush()?;
            }
            Ok(0)
        }
        Request::GetId { bytes, into } => {
            request::copy_to(memory, into, &context.serial.bytes()[..bytes])?;
            Ok(bytes as u64)
        }
        Request::Discard { ranges } => {
            each_range(disk, ranges, |layer, extent, _| layer.discard(extent))?;
            Ok(0)
        }
        Request::WriteZeroes { ranges } => {
            let layer = each_range(disk, ranges, Layer::write_zeroes)?;
            if context.write_through {
                layer.flush()?;
            }
            Ok(0)
        }
    }
}

fn locate(disk: &Disk, sector: Sector, bytes: u64) -> Result<Extent, Failure> {
    let extent = disk.capacity().extent(sector, bytes);
    extent.ok_or(Failure::OutOfRange {
        sector: sector.0,
        bytes,
    })
}

fn writable(disk: &Disk) -> Result<&Layer, Failure> {
    match disk {
        Disk::Layer(layer) => Ok(layer),
        Disk::Image(_) => Err(Failure::ReadOnly),
    }
}

/// All ranges are checked before the first one changes anything.
fn each_range<'a>(
    disk: &'a Disk,
    ranges: &[Range],
    act: impl Fn(&Layer, Extent, bool) -> io::Result<()>,
) -> Result<&'a Layer, Failure> {
    let Disk::Layer(layer) = disk else {
        return Err(Failure::NotOffered);
    };
    for range in ranges {
        locate(disk, range.sector, range.bytes())?;
    }
    for range in ranges {
        let extent = locate(disk, range.sector, range.bytes())?;
        act(layer, extent, range.unmap)?;
    }
    Ok(layer)
}

fn read(
    disk: &Disk,
    extent: Extent,
    memory: &GuestMemoryMmap,
    into: &[Segment],
    on_miss: &mut dyn FnMut(),
) -> Result<(), Failure> {
    let copy = |done: u64, wait| {
        let rest = extent.after(done);
        let span = Span {
            segments: into,
            skip: done,
            bytes: rest.bytes(),
        };
        disk.read(rest, memory, span, wait)
    };
    let mut done = 0;
    if disk.tells_misses() {
        done = match copy(0, Wait::No) {
            Ok(done) => done,
            Err(iov::Error::OutsideMemory) => return Err(Refusal::OutsideMemory.into()),
            // Nothing of it in the page cache; a real error comes again below.
            Err(iov::Error::Io(_)) => 0,
        };
        if done == extent.bytes() {
            return Ok(());
        }
        // All of it at once: the kernel's own read-ahead would go in steps of 128 KiB.
        disk.prefetch(extent.after(done));
        on_miss();
    }
    done += copy(done, Wait::Yes)?;
    if done == extent.bytes() {
        return Ok(());
    }
    pad(disk, extent, done, memory, into)
}

/// A file need not end on a sector: the rest of its last one reads as zeroes.
fn pad(
    disk: &Disk,
    extent: Extent,
    done: u64,
    memory: &GuestMemoryMmap,
    into: &[Segment],
) -> Result<(), Failure> {
    let missing = extent.bytes() - done;
    if extent.offset() + done != disk.content_bytes() || missing >= SECTOR_BYTES {
        return Err(Failure::Shrunk);
    }
    let mut rest = into.to_vec();
    for segment in advance(&mut rest, done) {
        // The last sector only: at most 511 bytes.
        let zeroes = vec![0; segment.len as usize];
        memory
            .write_slice(&zeroes, segment.addr)
            .map_err(|_| Refusal::OutsideMemory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
