//! Names in an archive, and their resolution below the directory that is unpacked into.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self as sys, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Deepest and longest name that is taken: `PATH_MAX` of Linux.
const MAX_PATH: usize = 4096;

/// A name in the archive: relative, without `.` and `..`; empty for the root itself.
/// Sorts after the directories it is in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    parent: PathBuf,
    name: Option<OsString>,
}

impl Place {
    /// A leading `/` is dropped, as every tar does.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() >= MAX_PATH {
            return Err("its name is too long");
        }
        if bytes.contains(&0) {
            return Err("its name has a zero byte");
        }
        let mut parent = PathBuf::new();
        let mut name: Option<OsString> = None;
        for part in bytes.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err("its name has the part \"..\""),
                part => {
                    if let Some(before) = name.replace(OsStr::from_bytes(part).to_owned()) {
                        parent.push(before);
                    }
                }
            }
        }
        Ok(Self { parent, name })
    }

    /// The last part, `None` for the root.
    pub(super) fn name(&self) -> Option<&OsStr> {
        self.name.as_deref()
    }

    /// The last part of what is no directory.
    pub(super) fn file_name(&self) -> io::Result<&OsStr> {
        self.name()
            .ok_or_else(|| super::invalid("only a directory can be the root"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.parent.join(self.name.as_deref().unwrap_or_default());
        write!(f, "{}", path.display())
    }
}

/// The directory that is unpacked into.
pub(super) struct Root {
    directory: OwnedFd,
    /// The last parent: entries of one directory follow each other.
    last: RefCell<Option<(PathBuf, Rc<OwnedFd>)>>,
    /// Directories that entries needed and the archive had not listed by then.
    made: RefCell<Vec<Place>>,
}

/// An open parent directory.
pub(super) struct Parent(Rc<OwnedFd>);

impl AsFd for Parent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

impl Root {
    pub(super) fn open(path: &Path) -> rustix::io::Result<Self> {
        Ok(Self {
            directory: sys::open(path, DIRECTORY, Mode::empty())?,
            last: RefCell::new(None),
            made: RefCell::default(),
        })
    }

    pub(super) fn clone_directory(&self) -> io::Result<OwnedFd> {
        self.directory.try_clone()
    }

    /// Opens the directory that a name is in; makes those that the archive did not list.
    pub(super) fn parent(&self, place: &Place) -> io::Result<Parent> {
        if let Some((path, directory)) = &*self.last.borrow()
            && *path == place.parent
        {
            return Ok(Parent(Rc::clone(directory)));
        }
        let directory = match self.resolve(&place.parent) {
            Err(Errno::NOENT) => self.make(&place.parent)?,
            other => other?,
        };
        let directory = Rc::new(directory);
        *self.last.borrow_mut() = Some((place.parent.clone(), Rc::clone(&directory)));
        Ok(Parent(directory))
    }

    /// Directories that were made without an entry, and the root.
    pub(super) fn unlisted(&self) -> Vec<Place> {
        let root = Place {
            parent: PathBuf::new(),
            name: None,
        };
        let mut all = std::mem::take(&mut *self.made.borrow_mut());
        all.push(root);
        all
    }

    fn resolve(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        sys::openat2(&self.directory, path, DIRECTORY, Mode::empty(), inside)
    }

    fn make(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut directory = self.clone_directory()?;
        let mut so_far = PathBuf::new();
        for part in path {
            so_far.push(part);
            directory = match self.resolve(&so_far) {
                Err(Errno::NOENT) => {
                    sys::mkdirat(&directory, part, Mode::from_raw_mode(0o755))?;
                    self.made.borrow_mut().push(Place {
                        parent: so_far.parent().unwrap_or_else(|| Path::new("")).into(),
                        name: Some(part.into()),
                    });
                    self.resolve(&so_far)?
                }
                other => other?,
            };
        }
        Ok(directory)
    }
}
