//! Filling a file: with what another one holds, or with zeroes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, copy_file_range, seek};
use rustix::io::Errno;

/// Buffer for file systems that cannot copy by themselves.
const CHUNK: usize = 128 << 10;

/// Copies what `from` holds in `bytes` to the same place in `to`; nothing is written for its holes. A
/// file system that can share extents between files does that instead.
pub(super) fn data(from: &File, bytes: Range<u64>, to: &File) -> io::Result<()> {
    let mut at = bytes.start;
    while let Some((start, end)) = next_data(from, at, bytes.end)? {
        range(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

/// The next stretch of `file` that holds data, from `at` on and before `limit`.
fn next_data(file: &File, at: u64, limit: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= limit {
        return Ok(None);
    }
    // The file offset that this moves is used by nobody: reads here name their position.
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) if start < limit => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?.min(limit);
    Ok((end > start).then_some((start, end)))
}

fn range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut source, mut target) = (start, start);
    while source < end {
        let left = usize::try_from(end - source).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), left) {
            // Shorter than when it was opened.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return through_buffer(from, to, source, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn through_buffer(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        from.read_exact_at(&mut buffer[..want], at)?;
        to.write_all_at(&buffer[..want], at)?;
        at += want as u64;
    }
    Ok(())
}

/// Writes zeroes the plain way, for file systems that cannot punch holes.
pub(super) fn zeroes(to: &File, start: u64, bytes: u64) -> io::Result<()> {
    static ZEROES: [u8; CHUNK] = [0; CHUNK];
    let mut done = 0;
    while done < bytes {
        let want = usize::try_from(bytes - done).unwrap_or(CHUNK).min(CHUNK);
        to.write_all_at(&ZEROES[..want], start + done)?;
        done += want as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn sparse() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 << 20).unwrap();
        file.write_all_at(&[1; 5000], 4096).unwrap();
        file.write_all_at(&[2; 4096], 8 << 20).unwrap();
        file
    }

    fn bytes(file: &File) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut all, 0).unwrap();
        all
    }

    #[test]
    fn holes_stay_holes() {
        let (from, to) = (sparse(), tempfile::tempfile().unwrap());
        to.set_len(16 << 20).unwrap();
        data(&from, 0..16 << 20, &to).unwrap();
        assert_eq!(bytes(&from), bytes(&to));
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn only_the_range_is_copied() {
        let (from, to) = (sparse(), tempfile::tempfile().unwrap());
        to.set_len(16 << 20).unwrap();
        data(&from, 5000..8 << 20, &to).unwrap();
        let all = bytes(&to);
        assert!(all[..5000].iter().chain(&all[8 << 20..]).all(|b| *b == 0));
        assert_eq!(all[5000..8 << 20], bytes(&from)[5000..8 << 20]);
    }

    #[test]
    fn the_buffer_copies_the_same() {
        let (from, to) = (sparse(), tempfile::tempfile().unwrap());
        through_buffer(&from, &to, 100, (8 << 20) + 4096).unwrap();
        assert_eq!(bytes(&from)[100..(8 << 20) + 4096], bytes(&to)[100..]);
    }

    #[test]
    fn zeroes_cover_exactly_the_range() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[9; 300_000], 0).unwrap();
        zeroes(&file, 10, 299_980).unwrap();
        let all = bytes(&file);
        assert!(all[..10].iter().chain(&all[299_990..]).all(|b| *b == 9));
        assert!(all[10..299_990].iter().all(|b| *b == 0));
    }
}
