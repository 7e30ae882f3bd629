//! A root of one's own: one directory, or none at all.
//!
//! The old root is detached and not only covered. A descriptor of a directory in it would still be a way to
//! all of it, by `..`: whoever has to keep one opens it with [`directory`].

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};
use thiserror::Error;

/// Why there is no such root.
#[derive(Debug, Error)]
#[error("cannot {what} {}", path.display())]
pub struct RootError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What is to be seen of the file system.
#[derive(Clone, Copy, Debug)]
pub enum Root<'a> {
    /// What is in this directory.
    Directory(&'a Path),
    /// Nothing; and nothing can be made.
    Empty,
}

/// Changes to the new root, in a mount namespace that nobody else is in.
pub fn enter(root: Root<'_>) -> Result<(), RootError> {
    let failed = |what, path: &'static str| move |errno| error(what, Path::new(path), errno);
    // What happens to mounts here must not happen to the host's.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(failed("make private the mounts under", "/"))?;
    let new = match root {
        Root::Directory(path) => directory(path)?,
        Root::Empty => nothing().map_err(failed("make a file system for", "/"))?,
    };
    // Over the old root, where it covers nothing that is still looked up: the root of a process is
    // followed to no mount on it.
    move_mount(&new, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(failed("mount the new root on", "/"))?;
    fchdir(&new).map_err(failed("change to", "the new root"))?;
    drop(new);
    // With both names the same the old root lies on the new one (pivot_root(2)), and goes from there.
    pivot_root(".", ".").map_err(failed("make a root of", "the new root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("detach", "the old root"))?;
    chdir("/").map_err(failed("change to", "the new root"))?;
    let barren = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount("/", barren, "").map_err(failed("forbid programs in", "the new root"))
}

/// A descriptor of a directory that leads nowhere else, `..` included: its root is the directory.
pub fn directory(path: &Path) -> Result<OwnedFd, RootError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags).map_err(|errno| error("detach a view of", path, errno))
}

/// An empty file system that takes nothing.
fn nothing() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "mode", "0555")?;
    fsconfig_set_string(&context, "nr_inodes", "1")?;
    fsconfig_create(&context)?;
    let barren = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, barren)
}

fn error(what: &'static str, path: &Path, errno: rustix::io::Errno) -> RootError {
    RootError {
        what,
        path: path.to_owned(),
        source: errno.into(),
    }
}
