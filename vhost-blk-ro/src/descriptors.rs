//! What the descriptors of this process are, by name.
//!
//! /proc says it, which a process in a jail does not see: the folder is opened before.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat};

/// Where they are listed.
pub const FOLDER: &str = "/proc/self/fd";

static OPEN: OnceLock<OwnedFd> = OnceLock::new();

/// Takes `folder` for [`FOLDER`] from now on. The first one counts.
pub fn listed_in(folder: OwnedFd) {
    let _ = OPEN.set(folder);
}

/// What the kernel calls `descriptor`.
pub fn name(descriptor: &impl AsRawFd) -> io::Result<CString> {
    let number = descriptor.as_raw_fd().to_string();
    Ok(match OPEN.get() {
        Some(folder) => readlinkat(folder, number, Vec::new())?,
        None => readlinkat(plain()?, number, Vec::new())?,
    })
}

/// The folder, for a process without a jail.
pub fn plain() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, FOLDER, flags, Mode::empty())?)
}
