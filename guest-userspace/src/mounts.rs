//! The kernel's own filesystems: what PID 1 needs before the root is there, and what programs expect
//! in it.

use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// Why a filesystem could not be mounted. The message names what and where.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("cannot mount {source_name} ({kind}) at {target}")]
    Mount {
        source_name: String,
        kind: &'static str,
        target: &'static str,
        #[source]
        error: io::Error,
    },
    #[error("cannot create {path}")]
    Create {
        path: String,
        #[source]
        error: io::Error,
    },
}

/// One line of a mount table.
#[derive(Debug)]
struct Entry {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: &'static str,
    /// Whether a kernel without this filesystem will do.
    optional: bool,
}

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const SAFEST: MountFlags = SAFE.union(MountFlags::NOEXEC);

const PROC: Entry = entry("proc", "/proc", SAFEST, "");
const DEV: Entry = entry("devtmpfs", "/dev", MountFlags::NOSUID, "mode=755");

/// In order: the ones inside /dev and /sys after those.
const API: [Entry; 8] = [
    PROC,
    entry("sysfs", "/sys", SAFEST, ""),
    DEV,
    entry(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        "mode=620,gid=5,ptmxmode=666",
    ),
    entry("tmpfs", "/dev/shm", SAFE, "mode=1777"),
    entry("tmpfs", "/run", SAFE, "mode=755"),
    Entry {
        optional: true,
        ..entry("mqueue", "/dev/mqueue", SAFEST, "")
    },
    Entry {
        optional: true,
        ..entry("cgroup2", CGROUP, SAFEST, "")
    },
];

/// Where the root of the cgroup v2 tree is mounted.
pub(crate) const CGROUP: &str = "/sys/fs/cgroup";

/// What devtmpfs leaves to user space; shells' `<(...)` needs the first.
const DEV_LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

const fn entry(
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: &'static str,
) -> Entry {
    Entry {
        kind,
        target,
        flags,
        data,
        optional: false,
    }
}

/// In the initramfs: the command line and the block devices.
pub(crate) fn early() -> Result<(), MountError> {
    PROC.mount()?;
    DEV.mount()
}

/// In the sandbox's root: what a program expects to find.
pub(crate) fn api() -> Result<(), MountError> {
    for entry in &API {
        entry.mount()?;
    }
    for (link, target) in DEV_LINKS {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(MountError::Create {
                    path: link.to_owned(),
                    error,
                });
            }
            _ => {}
        }
    }
    temporary_directory()
}

/// `/tmp` is as the image has it; an image without one gets one.
fn temporary_directory() -> Result<(), MountError> {
    let create = |error| MountError::Create {
        path: "/tmp".to_owned(),
        error,
    };
    match std::fs::create_dir("/tmp") {
        Ok(()) => {
            let mode = std::fs::Permissions::from_mode(0o1777);
            std::fs::set_permissions("/tmp", mode).map_err(create)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(create(error)),
    }
}

impl Entry {
    fn mount(&self) -> Result<(), MountError> {
        match mount_at(self.kind, self.target, self.kind, self.flags, self.data) {
            Err(MountError::Mount { error, .. })
                if self.optional && Errno::from_io_error(&error) == Some(Errno::NODEV) =>
            {
                Ok(())
            }
            other => other,
        }
    }
}

/// Mounts `source`, making the directory `target` where there is none.
pub(crate) fn mount_at(
    source: &str,
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    data: &str,
) -> Result<(), MountError> {
    make_directory(target)?;
    let error = |error: io::Error| MountError::Mount {
        source_name: source.to_owned(),
        kind,
        target,
        error,
    };
    let data = std::ffi::CString::new(data).map_err(|nul| error(nul.into()))?;
    mount(source, target, kind, flags, data.as_c_str()).map_err(|errno| error(errno.into()))
}

/// Makes a directory and those above it; one that exists stays as it is.
pub(crate) fn make_directory(path: &str) -> Result<(), MountError> {
    if Path::new(path).is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(|error| MountError::Create {
        path: path.to_owned(),
        error,
    })
}
