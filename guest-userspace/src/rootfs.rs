//! The sandbox's root: the shared read-only image below, the throw-away writable layer above.
//!
//! What must hold afterwards: the only way to either layer is through the overlay.

use std::io;

use rustix::mount::{MountFlags, UnmountFlags, mount_move, unmount};
use rustix::process::{chdir, chroot};

use crate::cmdline::BootConfig;
use crate::mounts::{MountError, make_directory, mount_at};

/// Read-only image.
const LOWER: &str = "/lower";
/// Writable layer; overlayfs wants two directories in it.
const SCRATCH: &str = "/scratch";
const UPPER: &str = "/scratch/upper";
const WORK: &str = "/scratch/work";
/// The overlay, before it becomes `/`.
const ROOT: &str = "/root";

/// ext4 for a disk that nobody will ever mount again: no write barriers, freed blocks told to the
/// host, and no kernel thread that fills in inode tables while the sandbox idles (ext4(5)).
const SCRATCH_OPTIONS: &str = "nobarrier,discard,noinit_itable";

/// `volatile`: fsync(2) in the sandbox need not reach a disk that is thrown away. `redirect_dir`:
/// directories of the image can be renamed like any other. Both: the kernel's overlayfs.rst.
const OVERLAY_OPTIONS: &str =
    "lowerdir=/lower,upperdir=/scratch/upper,workdir=/scratch/work,volatile,redirect_dir=on";

/// Why the root is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("cannot {step}")]
    Enter {
        step: &'static str,
        #[source]
        error: io::Error,
    },
}

/// Stacks the layers at [`ROOT`].
pub(crate) fn assemble(config: &BootConfig) -> Result<(), RootError> {
    let read_only = MountFlags::RDONLY | MountFlags::NOATIME;
    mount_at(&config.root, LOWER, "erofs", read_only, "")?;
    match &config.scratch {
        Some(device) => mount_at(
            device,
            SCRATCH,
            "ext4",
            MountFlags::NOATIME,
            SCRATCH_OPTIONS,
        )?,
        None => mount_at("tmpfs", SCRATCH, "tmpfs", MountFlags::NOATIME, "mode=755")?,
    }
    make_directory(UPPER)?;
    make_directory(WORK)?;
    mount_at(
        "overlay",
        ROOT,
        "overlay",
        MountFlags::NOATIME,
        OVERLAY_OPTIONS,
    )?;
    Ok(())
}

/// Makes [`ROOT`] the root directory. The initramfs stays below it, unreachable: it holds nothing but
/// this program, whose pages are in use anyway.
pub(crate) fn enter() -> Result<(), RootError> {
    let failed = |step| {
        move |error: rustix::io::Errno| RootError::Enter {
            step,
            error: error.into(),
        }
    };
    // The overlay holds both layers by itself.
    for (layer, step) in [
        (LOWER, "detach the image's own mount"),
        (SCRATCH, "detach scratch's own mount"),
        ("/dev", "detach the early /dev"),
        ("/proc", "detach the early /proc"),
    ] {
        unmount(layer, UnmountFlags::DETACH).map_err(failed(step))?;
    }
    chdir(ROOT).map_err(failed("enter the overlay"))?;
    mount_move(".", "/").map_err(failed("move the overlay to /"))?;
    chroot(".").map_err(failed("make the overlay the root directory"))?;
    chdir("/").map_err(failed("enter the new root directory"))
}
