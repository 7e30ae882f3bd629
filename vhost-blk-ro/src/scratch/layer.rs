//! One session's writable disk: blocks that were written are in a file of its own, all others are read
//! from the template, which every layer shares in the page cache.
//!
//! Must hold: a block is in the file before its bit says so, and a write of part of a block brings the
//! rest of it along first. Whoever changes a block's place holds the lock; writing again where
//! everything is in the file already, and reading, need none.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use vm_memory::GuestMemoryMmap;

use super::blocks::{BLOCK, BLOCK_BYTES, Blocks, touched};
use super::{Flush, Template, copy};
use crate::disk::{Capacity, Extent};
use crate::image;
use crate::iov::{self, Segment, Span, Sync, Wait};

#[derive(Debug)]
pub struct Layer {
    template: Arc<Template>,
    blocks: Blocks,
    /// Made with the first block that it holds.
    file: OnceLock<File>,
    place: Mutex<()>,
}

impl Layer {
    /// As the template is. Costs nothing yet.
    pub(super) fn new(template: Arc<Template>) -> Self {
        Self {
            blocks: Blocks::new(template.length()),
            template,
            file: OnceLock::new(),
            place: Mutex::new(()),
        }
    }

    pub fn capacity(&self) -> Capacity {
        self.template.capacity()
    }

    pub fn tells_misses(&self) -> bool {
        self.template.tells_misses()
    }

    pub fn flush_mode(&self) -> Flush {
        self.template.flush()
    }

    pub fn template(&self) -> &Template {
        &self.template
    }

    /// The count is short as [`iov::read`] says, also where the template ends within a sector.
    pub fn read(
        &self,
        extent: Extent,
        memory: &GuestMemoryMmap,
        span: Span<'_>,
        wait: Wait,
    ) -> Result<u64, iov::Error> {
        let mut done = 0;
        while done < extent.bytes() {
            let (file, run) = self.run(extent.after(done));
            let part = Span {
                skip: span.skip + done,
                bytes: run.bytes(),
                ..span
            };
            match iov::read(file, run.offset(), memory, part, wait) {
                Ok(read) => {
                    done += read;
                    if read < run.bytes() {
                        break;
                    }
                }
                Err(iov::Error::Io(error))
                    if done > 0 && error.kind() == io::ErrorKind::WouldBlock =>
                {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Starts reading `extent` into the page cache without waiting for it.
    pub fn prefetch(&self, mut extent: Extent) {
        while extent.bytes() > 0 {
            let (file, run) = self.run(extent);
            image::prefetch(file, run);
            extent = extent.after(run.bytes());
        }
    }

    /// How much of `extent` is in one file, from its start on, and in which.
    fn run(&self, extent: Extent) -> (&File, Extent) {
        let template = self.template.source().file();
        let Some(file) = self.file.get() else {
            return (template, extent);
        };
        let blocks = touched(extent.range());
        let (ours, count) = self.blocks.run(blocks.clone());
        let end = (blocks.start + count).saturating_mul(BLOCK_BYTES);
        let run = extent.first(end.saturating_sub(extent.offset()));
        (if ours { file } else { template }, run)
    }

    pub fn write(
        &self,
        extent: Extent,
        memory: &GuestMemoryMmap,
        segments: &[Segment],
        sync: Sync,
    ) -> Result<(), iov::Error> {
        if extent.bytes() == 0 {
            return Ok(());
        }
        let blocks = touched(extent.range());
        if let Some(file) = self.file.get()
            && self.blocks.all_set(blocks.clone())
        {
            return iov::write(file, extent.offset(), memory, segments, sync);
        }
        let _place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.file().map_err(iov::Error::Io)?;
        self.bring_ends(file, extent).map_err(iov::Error::Io)?;
        iov::write(file, extent.offset(), memory, segments, sync)?;
        self.blocks.set(blocks);
        Ok(())
    }

    pub fn flush(&self) -> io::Result<()> {
        match (self.template.flush(), self.file.get()) {
            (Flush::Durable, Some(file)) => file.sync_data(),
            _ => Ok(()),
        }
    }

    /// Gives the space back to the host. Advice: where the file system cannot, nothing happens.
    pub fn discard(&self, extent: Extent) -> io::Result<()> {
        self.clear(extent, |file| match punch(file, extent.range()) {
            Err(Errno::OPNOTSUPP) => Ok(Cleared::No),
            result => Ok(result.map(|()| Cleared::Yes)?),
        })
    }

    /// Makes `extent` read as zeroes; with `unmap` its space may go back to the host.
    pub fn write_zeroes(&self, extent: Extent, unmap: bool) -> io::Result<()> {
        self.clear(extent, |file| {
            if !unmap {
                let keep = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                match on_range(file, extent.range(), keep) {
                    Err(Errno::OPNOTSUPP) => {}
                    result => return Ok(result.map(|()| Cleared::Yes)?),
                }
            }
            match punch(file, extent.range()) {
                Err(Errno::OPNOTSUPP) => copy::zeroes(file, extent.offset(), extent.bytes())?,
                result => result?,
            }
            Ok(Cleared::Yes)
        })
    }

    fn clear(&self, extent: Extent, act: impl Fn(&File) -> io::Result<Cleared>) -> io::Result<()> {
        if extent.bytes() == 0 {
            return Ok(());
        }
        let _place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.file()?;
        self.bring_ends(file, extent)?;
        if act(file)? == Cleared::Yes {
            self.blocks.set(touched(extent.range()));
        }
        Ok(())
    }

    /// The layer's own file. Only for who holds the lock.
    fn file(&self) -> io::Result<&File> {
        match self.file.get() {
            Some(file) => Ok(file),
            None => {
                let file = self.template.file()?;
                Ok(self.file.get_or_init(|| file))
            }
        }
    }

    /// What will be changed in part only comes from the template first.
    fn bring_ends(&self, file: &File, extent: Extent) -> io::Result<()> {
        for at in [extent.range().start, extent.range().end] {
            if !at.is_multiple_of(BLOCK_BYTES) && at < self.template.length() {
                self.bring(file, at / BLOCK_BYTES)?;
            }
        }
        Ok(())
    }

    fn bring(&self, file: &File, block: u64) -> io::Result<()> {
        if self.blocks.all_set(block..block + 1) {
            return Ok(());
        }
        let start = block * BLOCK_BYTES;
        let part = |end: u64| {
            let bytes = end.saturating_sub(start).min(BLOCK_BYTES);
            usize::try_from(bytes).unwrap_or_default()
        };
        // The template may end within the block; the layer has whole sectors.
        let mut buffer = [0; BLOCK];
        let source = self.template.source();
        source
            .file()
            .read_exact_at(&mut buffer[..part(source.size())], start)?;
        file.write_all_at(&buffer[..part(self.template.length())], start)?;
        self.blocks.set(block..block + 1);
        Ok(())
    }

    /// The file, with everything in it that is still only in the template. Holes stay holes.
    pub(super) fn complete(&self) -> io::Result<&File> {
        let _place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.file()?;
        let source = self.template.source();
        let mut at = 0;
        while at < self.blocks.count() {
            let (ours, count) = self.blocks.run(at..self.blocks.count());
            let range = at * BLOCK_BYTES..(at + count) * BLOCK_BYTES;
            at += count;
            if !ours {
                let end = range.end.min(self.template.length());
                // A write that failed may have left something here.
                punch(file, range.start..end)?;
                copy::data(source.file(), range.start..end.min(source.size()), file)?;
            }
        }
        // Afterwards: a change on the way shows as well.
        source.check().map_err(io::Error::other)?;
        Ok(file)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cleared {
    No,
    Yes,
}

fn punch(file: &File, bytes: Range<u64>) -> Result<(), Errno> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    on_range(file, bytes, flags)
}

fn on_range(file: &File, bytes: Range<u64>, flags: FallocateFlags) -> Result<(), Errno> {
    loop {
        match fallocate(file, flags, bytes.start, bytes.end - bytes.start) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests;
