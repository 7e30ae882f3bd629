//! The identity of the machine that PID 1 runs on.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, fchmod, fstat, ftruncate, open, openat, sync};
use rustix::io::{Errno, pwrite, write};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::system::sethostname;
use rustix::time::{ClockId, Timespec, clock_settime};

use super::Identity;
use crate::sys;

const MACHINE_ID: &str = "/etc/machine-id";

/// In memory, /run being a tmpfs.
const NAME: &str = "/run/rundlet.machine-id";

/// Writable with patches/0006 of `guest-kernel/`, of which the rest cannot be seen from here: a kernel
/// that takes the boot id also renews what it derives from its generator, when that is reseeded.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// There with patches/0008 of `guest-kernel/`, if the guest has an I/O window.
const SCRUB: &str = "/proc/sys/vm/scrub_io_window";

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    /// What is mounted over [`MACHINE_ID`].
    machine_id: Option<OwnedFd>,
}

impl Identity for Machine {
    /// Everything dirty goes to the disk: once here, and not some seconds later in each clone.
    ///
    /// The page cache stays. A page that is freed keeps its bytes, so that dropping the cache makes a template hardly
    /// smaller (docs/uniqueness.md), while each clone would read into memory of its own what all of them share now.
    fn settle(&mut self) -> io::Result<()> {
        self.machine_id_file()?;
        // Not syncfs(2): overlayfs answers it for a `volatile` layer without asking the disk.
        sync();
        scrub_window()
    }

    fn entropy(&mut self, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let random = open("/dev/random", flags, Mode::empty())?;
        sys::add_entropy(random.as_fd(), bytes)?;
        sys::reseed(random.as_fd())
    }

    fn realtime(&mut self, since_epoch: Duration) -> io::Result<()> {
        let time = Timespec::try_from(since_epoch)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(clock_settime(ClockId::Realtime, time)?)
    }

    fn hostname(&mut self, name: &str) -> io::Result<()> {
        Ok(sethostname(name.as_bytes())?)
    }

    fn machine_id(&mut self, id: &str) -> io::Result<()> {
        let file = self.machine_id_file()?;
        let line = format!("{id}\n");
        pwrite(file, line.as_bytes(), 0)?;
        Ok(ftruncate(file, line.len() as u64)?)
    }

    fn boot_id(&mut self, id: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = open(BOOT_ID, flags, Mode::empty()).map_err(|error| match error {
            Errno::ACCESS => io::Error::other("this kernel does not let it be set"),
            other => other.into(),
        })?;
        write(file, id.as_bytes())?;
        Ok(())
    }
}

/// Has the kernel zero what requests to disks left in the I/O window: each clone copies what is not zero
/// there. Without a window, or a kernel that can do it, clones copy more.
fn scrub_window() -> io::Result<()> {
    match open(SCRUB, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => {
            write(file, b"1")?;
            Ok(())
        }
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Machine {
    /// A file in memory over `/etc/machine-id`: setting it touches no disk, and works whether the image has one
    /// or not.
    fn machine_id_file(&mut self) -> io::Result<&OwnedFd> {
        if self.machine_id.is_none() {
            let file = mounted_file()
                .map_err(|error| io::Error::other(format!("{MACHINE_ID}: {error}")))?;
            self.machine_id = Some(file);
        }
        self.machine_id
            .as_ref()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// A new file, mounted over [`MACHINE_ID`]. It has a name of its own only until then: what has none cannot be
/// mounted.
fn mounted_file() -> io::Result<OwnedFd> {
    match std::fs::remove_file(NAME) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let file = open(NAME, flags, Mode::from_raw_mode(0o444))?;
    mount_over(&file, &mount_point()?)?;
    std::fs::remove_file(NAME)?;
    Ok(file)
}

/// `/etc/machine-id` of the image, or a new and empty one.
fn mount_point() -> io::Result<OwnedFd> {
    let path = OFlags::PATH | OFlags::CLOEXEC;
    let file = match openat(CWD, MACHINE_ID, path, Mode::empty()) {
        Err(Errno::NOENT) => {
            std::fs::create_dir_all("/etc")?;
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = open(MACHINE_ID, flags, Mode::from_raw_mode(0o444))?;
            // Whatever the umask is.
            fchmod(&file, Mode::from_raw_mode(0o444))?;
            file
        }
        other => other?,
    };
    if FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile {
        return Ok(file);
    }
    Err(io::Error::other("is no file"))
}

/// mount(2) with `MS_BIND`, by descriptors.
fn mount_over(file: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(file, "", flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", target, "", flags)?)
}
