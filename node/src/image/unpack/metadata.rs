//! Owner, mode, time and extended attributes of an entry.

use std::io::{self, Read};
use std::os::fd::AsFd;

use rustix::fs::{self as sys, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tar::Entry;

use super::invalid;

/// Prefix of extended attributes in pax headers, as written by GNU tar, bsdtar and star.
const XATTR: &str = "SCHILY.xattr.";

/// Longest extended attribute, xattr(7).
const MAX_XATTR: usize = 64 * 1024;

pub(super) fn owner<R: Read>(entry: &Entry<'_, R>) -> io::Result<(Uid, Gid)> {
    let id = |id: u64| u32::try_from(id).map_err(|_| invalid("its owner is no 32-bit number"));
    let header = entry.header();
    let (uid, gid) = (id(header.uid()?)?, id(header.gid()?)?);
    // -1 would mean "leave as it is".
    if uid == u32::MAX || gid == u32::MAX {
        return Err(invalid("its owner is -1"));
    }
    Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
}

pub(super) fn mode<R: Read>(entry: &Entry<'_, R>) -> io::Result<Mode> {
    Ok(Mode::from_raw_mode(entry.header().mode()? & 0o7777))
}

pub(super) fn times<R: Read>(entry: &Entry<'_, R>) -> io::Result<Timestamps> {
    let seconds =
        i64::try_from(entry.header().mtime()?).map_err(|_| invalid("its time is out of range"))?;
    Ok(at(seconds))
}

pub(super) fn at(seconds: i64) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

pub(super) fn xattrs<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    let Some(extensions) = entry.pax_extensions()? else {
        return Ok(all);
    };
    for extension in extensions {
        let extension = extension?;
        // Keys that are no text are none of ours.
        if let Ok(Some(name)) = extension.key().map(|key| key.strip_prefix(XATTR)) {
            if extension.value_bytes().len() > MAX_XATTR {
                return Err(invalid("an extended attribute is over 64 KiB"));
            }
            all.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(all)
}

/// Sets the attributes; how many the system would not take from us.
pub(super) fn set_xattrs(file: &impl AsFd, xattrs: &[(String, Vec<u8>)]) -> io::Result<u64> {
    let mut lost = 0;
    for (name, value) in xattrs {
        match sys::fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP) => lost += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(lost)
}
