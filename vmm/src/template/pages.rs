//! Files of guest pages: sparse, because most pages of a guest are zero, and read and written a piece at a
//! time.
//!
//! The checksum is over every page that is not all zero, in ascending order, each after its offset in the
//! file. So it says nothing of how a file system keeps the zeroes: a copy whose holes were filled, or
//! were dug deeper, is as good.

use std::fs::File;
use std::hash::Hasher;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use twox_hash::XxHash3_64;

use super::format::Pages;
use crate::memory::layout;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == layout::PAGE);
/// Bytes read or written at a time.
pub(super) const PIECE: usize = 64 * PAGE;

static ZEROES: [u8; PAGE] = [0; PAGE];

/// The checksum in the making.
struct Sum {
    hasher: XxHash3_64,
    data: u64,
}

impl Sum {
    fn new() -> Self {
        Self {
            hasher: XxHash3_64::default(),
            data: 0,
        }
    }

    fn add(&mut self, offset: u64, page: &[u8]) {
        self.hasher.write(&offset.to_le_bytes());
        self.hasher.write(page);
        self.data += page.len() as u64;
    }

    fn finish(&self, len: u64) -> Pages {
        Pages {
            len,
            data: self.data,
            sum: self.hasher.finish(),
        }
    }
}

/// Writes pages one after the other into an empty file.
pub(super) struct PageWriter<'a> {
    file: &'a File,
    at: u64,
    sum: Sum,
}

impl<'a> PageWriter<'a> {
    /// At the start of `file`.
    #[must_use]
    pub(super) fn new(file: &'a File) -> Self {
        Self {
            file,
            at: 0,
            sum: Sum::new(),
        }
    }

    /// Adds whole pages; those that are zero become holes.
    pub(super) fn write(&mut self, pages: &[u8]) -> io::Result<()> {
        // Pages that are not zero and follow each other are written at once.
        let mut run = 0..0;
        for (start, page) in (0..).step_by(PAGE).zip(pages.chunks(PAGE)) {
            if page == &ZEROES[..page.len()] {
                continue;
            }
            self.sum.add(self.at + start as u64, page);
            if run.end != start {
                self.put(pages, run)?;
                run = start..start;
            }
            run.end = start + page.len();
        }
        self.put(pages, run)?;
        self.at += pages.len() as u64;
        Ok(())
    }

    fn put(&self, pages: &[u8], run: std::ops::Range<usize>) -> io::Result<()> {
        let at = self.at + run.start as u64;
        self.file
            .write_all_at(pages.get(run).unwrap_or_default(), at)
    }

    /// Sets the file's length and has the disk keep it all.
    pub(super) fn finish(self) -> io::Result<Pages> {
        self.file.set_len(self.at)?;
        self.file.sync_all()?;
        Ok(self.sum.finish(self.at))
    }
}

/// Reads the `len` bytes of `file`, hands each page that is not zero to `visit` with its offset, and says
/// what the checksum is. Holes are not read.
pub(super) fn read(file: &File, len: u64, mut visit: impl FnMut(u64, &[u8])) -> io::Result<Pages> {
    let mut sum = Sum::new();
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while let Some((start, end)) = next_data(file, at, len)? {
        at = start;
        while at < end {
            let count = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
            let piece = piece.get_mut(..count).unwrap_or_default();
            file.read_exact_at(piece, at)?;
            for (offset, page) in (at..).step_by(PAGE).zip(piece.chunks(PAGE)) {
                if page != &ZEROES[..page.len()] {
                    sum.add(offset, page);
                    visit(offset, page);
                }
            }
            at += count as u64;
        }
    }
    Ok(sum.finish(len))
}

/// The next stretch that is no hole, in whole pages.
fn next_data(file: &File, from: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if from >= len {
        return Ok(None);
    }
    let data = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(data) if data < len => data,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?;
    let start = data / layout::PAGE * layout::PAGE;
    let end = hole.next_multiple_of(layout::PAGE).min(len);
    Ok(Some((start, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; 600 * PAGE];
        for (page, value) in [(0, 1), (1, 2), (7, 3), (63, 4), (64, 5), (599, 6)] {
            bytes[page * PAGE + page] = value;
        }
        bytes
    }

    fn write(bytes: &[u8]) -> (File, Pages) {
        let file = tempfile::tempfile().unwrap();
        let mut writer = PageWriter::new(&file);
        for piece in bytes.chunks(PIECE) {
            writer.write(piece).unwrap();
        }
        let pages = writer.finish().unwrap();
        (file, pages)
    }

    fn read_back(file: &File, len: u64) -> (Vec<u8>, Pages) {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        let pages = read(file, len, |offset, page| {
            let at = usize::try_from(offset).unwrap();
            bytes[at..at + page.len()].copy_from_slice(page);
        });
        (bytes, pages.unwrap())
    }

    #[test]
    fn what_was_written_is_read_and_zeroes_take_no_room() {
        use std::os::unix::fs::MetadataExt;
        let bytes = sample();
        let (file, pages) = write(&bytes);
        assert_eq!((pages.len, pages.data), (600 * 4096, 6 * 4096));
        assert_eq!(read_back(&file, pages.len), (bytes, pages));
        assert!(file.metadata().unwrap().blocks() * 512 < 100 * 4096);
    }

    #[test]
    fn the_sum_does_not_ask_where_the_holes_are() {
        let bytes = sample();
        let (_, pages) = write(&bytes);
        let dense = tempfile::tempfile().unwrap();
        dense.write_all_at(&bytes, 0).unwrap();
        assert_eq!(read_back(&dense, pages.len), (bytes, pages));
    }

    #[test]
    fn every_change_changes_the_sum() {
        let (file, pages) = write(&sample());
        for (offset, value) in [
            (0, 9),
            (7 * 4096 + 7, 0),
            (20 * 4096, 1),
            (600 * 4096 - 1, 1),
        ] {
            let mut old = [0];
            file.read_exact_at(&mut old, offset).unwrap();
            file.write_all_at(&[value], offset).unwrap();
            assert_ne!(read_back(&file, pages.len).1.sum, pages.sum, "{offset}");
            file.write_all_at(&old, offset).unwrap();
        }
        assert_eq!(read_back(&file, pages.len).1, pages);
        // A page that moved.
        let mut bytes = sample();
        bytes.rotate_right(PAGE);
        assert_ne!(write(&bytes).1.sum, pages.sum);
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let (file, pages) = write(&sample());
        file.set_len(pages.len - 100).unwrap();
        assert!(read(&file, pages.len, |_, _| {}).is_err());
    }
}
