//! A private copy of a sparse file, as cheap as the filesystem makes it: peers have no block backend that
//! would do it for them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::error::PathError;

/// Copies `from` to the new file `to`: a reflink where the filesystem knows them, otherwise what is no hole.
pub(super) fn file(from: &Path, to: &Path) -> Result<(), PathError> {
    let source = File::open(from).map_err(PathError::at("open", from))?;
    let target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(to)
        .map_err(PathError::at("create", to))?;
    if ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    sparse(&source, &target).map_err(PathError::at("copy to", to))
}

fn sparse(source: &File, target: &File) -> io::Result<()> {
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut at = 0;
    while at < length {
        let data = match seek(source, SeekFrom::Data(at)) {
            // Nothing but a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            other => other?,
        };
        let end = seek(source, SeekFrom::Hole(data))?;
        range(source, target, data, end)?;
        at = end;
    }
    Ok(())
}

fn range(source: impl AsFd, target: impl AsFd, from: u64, to: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (from, from);
    while read_at < to {
        let left = usize::try_from(to - read_at).unwrap_or(usize::MAX);
        let copied = copy_file_range(
            &source,
            Some(&mut read_at),
            &target,
            Some(&mut write_at),
            left,
        )?;
        if copied == 0 {
            // It has become shorter meanwhile.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_copy_has_the_same_bytes_and_holes() {
        let directory = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| directory.path().join(name));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        (&file).write_all(b"start").unwrap();
        file.write_all_at(b"middle", 32 << 20).unwrap();
        super::file(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        assert!(super::file(&from, &to).is_err(), "there is one already");

        let again = directory.path().join("again");
        let target = File::create(&again).unwrap();
        sparse(&file_read(&from), &target).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&again).unwrap());
    }

    fn file_read(path: &Path) -> File {
        File::open(path).unwrap()
    }
}
