//! A tar stream into a directory, with everything an image needs: owners, modes, times, extended
//! attributes, hard links, device nodes.
//!
//! The archive is not trusted. Its names are resolved by the kernel as if the directory were `/`
//! (openat2(2), `RESOLVE_IN_ROOT`), so neither `..` nor a symbolic link leads out of it; a name with
//! `..` is refused all the same. Headers are read by the crate tar.

mod metadata;
mod place;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{self as sys, AtFlags, FileType, Mode, OFlags, Timestamps};
use tar::{Archive, Entry, EntryType};

use super::archive::EndWatch;
use metadata::{at, mode, owner, set_xattrs, times, xattrs};
use place::{Place, Root};

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("the archive cannot be read after {after:?}")]
    Archive { after: String, source: io::Error },
    #[error("the archive ends without its end marker: it is cut off")]
    CutOff,
    #[error("the archive's entry {path:?} is refused: {reason}")]
    Refused { path: String, reason: &'static str },
    #[error("the archive's entry {path:?} cannot be unpacked")]
    Entry { path: String, source: io::Error },
    #[error("the archive's entry {path:?} has type {kind:?}, which is not known")]
    Kind { path: String, kind: char },
}

/// What was unpacked, and what could not be kept without being root.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) entries: u64,
    pub(super) devices_left_out: u64,
    pub(super) attributes_left_out: u64,
}

/// A directory whose times and mode are set when everything is in it.
struct Later {
    mode: Mode,
    times: Timestamps,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Later {
    /// For a directory without an entry: a fixed time, so that equal archives give equal images.
    fn unlisted() -> Self {
        Self {
            mode: Mode::from_raw_mode(0o755),
            times: at(0),
            xattrs: Vec::new(),
        }
    }
}

/// The unpacking of one archive.
struct Unpacker {
    root: Root,
    /// Whether owners and device nodes are ours to make.
    privileged: bool,
    report: Report,
    /// By place, so that the last entry of a directory counts.
    later: BTreeMap<Place, Later>,
}

/// Unpacks `tar` into the empty directory `into`.
///
/// # Errors
/// The archive is damaged or wants something that is refused, or the filesystem fails; `into` holds a
/// part of it then.
pub(super) fn unpack(tar: impl Read, into: &Path, privileged: bool) -> Result<Report, UnpackError> {
    let watch = EndWatch::new(tar);
    let end = watch.end();
    let mut archive = Archive::new(watch);
    let mut after = String::from("its start");
    let broken = |after: &str, source| UnpackError::Archive {
        after: after.into(),
        source,
    };
    let mut unpacker = Unpacker {
        root: Root::open(into).map_err(|error| broken(&after, error.into()))?,
        privileged,
        report: Report::default(),
        later: BTreeMap::new(),
    };
    for entry in archive.entries().map_err(|error| broken(&after, error))? {
        let mut entry = entry.map_err(|error| broken(&after, error))?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        unpacker.entry(&mut entry, &path)?;
        after = path;
    }
    if !end.seen() {
        return Err(UnpackError::CutOff);
    }
    // What follows the end marker is padding; reading it lets a decoder check its sum.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|error| broken(&after, error))?;
    unpacker.finish()
}

impl Unpacker {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>, path: &str) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let place = Place::parse(&entry.path_bytes()).map_err(|reason| UnpackError::Refused {
            path: path.into(),
            reason,
        })?;
        let made = match kind {
            EntryType::Directory => self.directory(entry, &place),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(entry, &place)
            }
            EntryType::Symlink => self.symlink(entry, &place),
            EntryType::Link => return self.hard_link(entry, &place, path),
            EntryType::Char => self.node(entry, &place, FileType::CharacterDevice),
            EntryType::Block => self.node(entry, &place, FileType::BlockDevice),
            EntryType::Fifo => self.node(entry, &place, FileType::Fifo),
            other => {
                return Err(UnpackError::Kind {
                    path: path.into(),
                    kind: other.as_byte().into(),
                });
            }
        };
        self.report.entries += 1;
        made.map_err(|source| UnpackError::Entry {
            path: path.into(),
            source,
        })
    }

    fn directory<R: Read>(&mut self, entry: &mut Entry<'_, R>, place: &Place) -> io::Result<()> {
        let directory = match place.name() {
            None => self.root.clone_directory()?,
            Some(name) => {
                let parent = self.root.parent(place)?;
                if !is_directory(&parent, name)? {
                    clear(&parent, name)?;
                    sys::mkdirat(&parent, name, Mode::RWXU)?;
                }
                open_directory(&parent, name)?
            }
        };
        if self.privileged {
            let (uid, gid) = owner(entry)?;
            sys::fchown(&directory, Some(uid), Some(gid))?;
        }
        let later = Later {
            mode: mode(entry)?,
            times: times(entry)?,
            xattrs: xattrs(entry)?,
        };
        self.later.insert(place.clone(), later);
        Ok(())
    }

    fn file<R: Read>(&mut self, entry: &mut Entry<'_, R>, place: &Place) -> io::Result<()> {
        let name = place.file_name()?;
        let parent = self.root.parent(place)?;
        clear(&parent, name)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let xattrs = xattrs(entry)?;
        let mut file = File::from(sys::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR)?);
        io::copy(entry, &mut file)?;
        if self.privileged {
            let (uid, gid) = owner(entry)?;
            sys::fchown(&file, Some(uid), Some(gid))?;
        }
        let mut mode = mode(entry)?;
        if !self.privileged {
            // mkfs.erofs has to read it, as us.
            mode |= Mode::RUSR;
        }
        sys::fchmod(&file, mode)?;
        self.report.attributes_left_out += set_xattrs(&file, &xattrs)?;
        sys::futimens(&file, &times(entry)?)?;
        Ok(())
    }

    fn symlink<R: Read>(&mut self, entry: &mut Entry<'_, R>, place: &Place) -> io::Result<()> {
        let name = place.file_name()?;
        let target = entry
            .link_name_bytes()
            .filter(|target| !target.is_empty())
            .ok_or_else(|| invalid("a symbolic link without a target"))?;
        let parent = self.root.parent(place)?;
        clear(&parent, name)?;
        sys::symlinkat(&*target, &parent, name)?;
        self.finish_node(entry, &parent, name, None)
    }

    fn node<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        place: &Place,
        kind: FileType,
    ) -> io::Result<()> {
        let name = place.file_name()?;
        if kind != FileType::Fifo && !self.privileged {
            self.report.devices_left_out += 1;
            return Ok(());
        }
        let header = entry.header();
        let major = header.device_major()?.unwrap_or_default();
        let minor = header.device_minor()?.unwrap_or_default();
        let mode = mode(entry)?;
        let parent = self.root.parent(place)?;
        clear(&parent, name)?;
        let device = sys::makedev(major, minor);
        match sys::mknodat(&parent, name, kind, mode, device) {
            // Root in a container or user namespace.
            Err(rustix::io::Errno::PERM) => {
                self.report.devices_left_out += 1;
                return Ok(());
            }
            other => other?,
        }
        self.finish_node(entry, &parent, name, Some(mode))
    }

    /// Owner, mode and time of what cannot be opened.
    fn finish_node<R: Read>(
        &self,
        entry: &Entry<'_, R>,
        parent: &impl std::os::fd::AsFd,
        name: &std::ffi::OsStr,
        mode: Option<Mode>,
    ) -> io::Result<()> {
        if self.privileged {
            let (uid, gid) = owner(entry)?;
            sys::chownat(
                parent,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
        if let Some(mode) = mode {
            // Follows links, but this name was made a moment ago and is none.
            sys::chmodat(parent, name, mode, AtFlags::empty())?;
        }
        sys::utimensat(parent, name, &times(entry)?, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    fn hard_link<R: Read>(
        &mut self,
        entry: &Entry<'_, R>,
        place: &Place,
        path: &str,
    ) -> Result<(), UnpackError> {
        let target = entry.link_name_bytes().unwrap_or_default();
        let target = Place::parse(&target).map_err(|reason| UnpackError::Refused {
            path: path.into(),
            reason,
        })?;
        self.report.entries += 1;
        let link = || -> io::Result<()> {
            let (name, old_name) = (place.file_name()?, target.file_name()?);
            if *place == target {
                return Ok(());
            }
            let old = self.root.parent(&target)?;
            let parent = self.root.parent(place)?;
            clear(&parent, name)?;
            match sys::linkat(&old, old_name, &parent, name, AtFlags::empty()) {
                // To a device node that was left out itself.
                Err(rustix::io::Errno::NOENT) if self.report.devices_left_out > 0 => Ok(()),
                other => Ok(other?),
            }
        };
        link().map_err(|source| UnpackError::Entry {
            path: path.into(),
            source,
        })
    }

    /// Modes and times of directories, the innermost first.
    fn finish(mut self) -> Result<Report, UnpackError> {
        for place in self.root.unlisted() {
            self.later.entry(place).or_insert_with(Later::unlisted);
        }
        while let Some((place, later)) = self.later.pop_last() {
            let set = || -> io::Result<u64> {
                let directory = match place.name() {
                    None => self.root.clone_directory()?,
                    Some(name) => {
                        let parent = self.root.parent(&place)?;
                        if !is_directory(&parent, name)? {
                            // A later entry took its place.
                            return Ok(0);
                        }
                        open_directory(&parent, name)?
                    }
                };
                let lost = set_xattrs(&directory, &later.xattrs)?;
                sys::futimens(&directory, &later.times)?;
                let mut mode = later.mode;
                if !self.privileged {
                    mode |= Mode::RUSR | Mode::XUSR;
                }
                sys::fchmod(&directory, mode)?;
                Ok(lost)
            };
            let lost = set().map_err(|source| UnpackError::Entry {
                path: place.to_string(),
                source,
            })?;
            self.report.attributes_left_out += lost;
        }
        Ok(self.report)
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn is_directory(parent: &impl std::os::fd::AsFd, name: &std::ffi::OsStr) -> io::Result<bool> {
    match sys::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn open_directory(
    parent: &impl std::os::fd::AsFd,
    name: &std::ffi::OsStr,
) -> io::Result<rustix::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(sys::openat(parent, name, flags, Mode::empty())?)
}

/// Removes what an earlier entry put there; an empty directory too.
fn clear(parent: &impl std::os::fd::AsFd, name: &std::ffi::OsStr) -> io::Result<()> {
    let removed = match sys::unlinkat(parent, name, AtFlags::empty()) {
        Err(rustix::io::Errno::ISDIR) => sys::unlinkat(parent, name, AtFlags::REMOVEDIR),
        other => other,
    };
    match removed {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}
