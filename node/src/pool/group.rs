//! One cgroup, as the files of its directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, XattrFlags};

/// Usage that a slot had before its present owner, microseconds as text: usage cannot be set back, and a daemon that
/// finds a slot in use has to know where its owner began.
const BASE: &str = "user.rundlet.cpu_base_us";

/// More than any number has digits.
const BASE_BYTES: usize = 32;

/// A cgroup, by path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    path: PathBuf,
}

impl Group {
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.path.join(file))
    }

    /// One write(2), which is what the kernel takes as one setting. Makes no file: one that is missing belongs to a
    /// controller that is not enabled.
    pub(crate) fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(self.path.join(file))?;
        file.write_all(value.as_bytes())
    }

    /// What clone3(2) takes for CLONE_INTO_CGROUP.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(CWD, &self.path, flags, Mode::empty())?)
    }

    /// Moves a process here.
    pub(crate) fn join(&self, pid: u32) -> io::Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Kills all of it, also what is being forked at this moment.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", "1")
    }

    pub(crate) fn is_populated(&self) -> io::Result<bool> {
        Events::open(self)?.is_populated()
    }

    /// `memory.current`, bytes.
    pub(crate) fn memory_current(&self) -> io::Result<u64> {
        let text = self.read("memory.current")?;
        text.trim().parse().map_err(|_| malformed("memory.current"))
    }

    /// `usage_usec` since the cgroup was made.
    pub(crate) fn cpu_total_us(&self) -> io::Result<u64> {
        let text = self.read("cpu.stat")?;
        field(&text, "usage_usec").ok_or_else(|| malformed("cpu.stat"))
    }

    /// What was last given to [`Group::set_cpu_base_us`]; nothing where that could not be kept.
    pub(crate) fn cpu_base_us(&self) -> Option<u64> {
        let mut value = [0_u8; BASE_BYTES];
        let length = rustix::fs::getxattr(&self.path, BASE, &mut value).ok()?;
        std::str::from_utf8(value.get(..length)?).ok()?.parse().ok()
    }

    pub(crate) fn set_cpu_base_us(&self, base: u64) -> io::Result<()> {
        let value = base.to_string();
        rustix::fs::setxattr(&self.path, BASE, value.as_bytes(), XattrFlags::empty())?;
        Ok(())
    }
}

/// `cgroup.events`, kept open: poll(2) tells of a change since it was last read.
#[derive(Debug)]
pub(crate) struct Events(File);

impl Events {
    pub(crate) fn open(group: &Group) -> io::Result<Self> {
        File::open(group.path.join("cgroup.events")).map(Self)
    }

    pub(crate) fn is_populated(&self) -> io::Result<bool> {
        let mut bytes = [0_u8; 256];
        let length = self.0.read_at(&mut bytes, 0)?;
        let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
        match field(&text, "populated") {
            Some(populated) => Ok(populated != 0),
            None => Err(malformed("cgroup.events")),
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.0
    }
}

/// The number behind a name in a flat keyed file.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?.strip_prefix(' ')?;
        rest.trim().parse().ok()
    };
    text.lines().find_map(value)
}

fn malformed(file: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{file} is not as the kernel writes it"),
    )
}
