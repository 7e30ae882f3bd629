//! The guest that all systems run: the same kernel, init, root image and size.

use std::path::PathBuf;

use super::report::Guest;
use crate::image::{Image, ImageName, Store};
use crate::run::{Cause, Machine};
use crate::scratch;
use crate::template::guest_files;

/// Words for the guest's kernel that no device or VMM adds. What ours says to its guests
/// (`vmm/src/boot/command_line.rs`), without what is about its own devices.
const WORDS: &str = "nokaslr panic=-1 reboot=k swiotlb=noforce tsc=nowatchdog console=ttyS0 quiet";

/// Everything a VMM needs to know of it.
#[derive(Debug)]
pub(super) struct GuestSetup {
    pub(super) size: Guest,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) image: ImageName,
    pub(super) digest: String,
    /// The image's file, which stays while this exists.
    pub(super) root: PathBuf,
    pub(super) scratch: scratch::Template,
    pub(super) store: Store,
    _locked: Option<Image>,
}

impl GuestSetup {
    pub(super) fn of(store: &Store, machine: &Machine) -> Result<Self, Cause> {
        let (kernel, initrd) = guest_files(&machine.kernel, &machine.initrd)?;
        let absolute = |path: PathBuf| path.canonicalize().unwrap_or(path);
        let image = store.find(&machine.image)?;
        let scratch = scratch::template(store, machine.scratch_mib)?;
        Ok(Self {
            size: Guest {
                memory_mib: machine.memory_mib,
                vcpus: machine.vcpus,
                scratch_mib: machine.scratch_mib,
            },
            kernel: absolute(kernel),
            initrd: absolute(initrd),
            image: machine.image.clone(),
            digest: image.digest.clone(),
            root: image.path.clone(),
            scratch,
            store: store.clone(),
            _locked: Some(image),
        })
    }
}

/// The kernel's command line for a VMM that is not ours, whose disks are in the order root, scratch.
pub(super) fn command_line(hostname: &str) -> String {
    format!("{WORDS} rundlet.root=/dev/vda rundlet.scratch=/dev/vdb rundlet.hostname={hostname}")
}

#[cfg(test)]
impl GuestSetup {
    /// One whose files are not there, but for the store, the image and the scratch disk.
    pub(super) fn example(directory: &std::path::Path) -> Self {
        let store = Store::open(&directory.join("store")).unwrap();
        let path = directory.join("scratch.img");
        std::fs::write(&path, "scratch").unwrap();
        let root = directory.join("root.erofs");
        std::fs::write(&root, "root").unwrap();
        Self {
            size: Guest {
                memory_mib: 128,
                vcpus: 1,
                scratch_mib: 64,
            },
            kernel: "/guest/vmlinux".into(),
            initrd: "/guest/initrd.cpio".into(),
            image: "example".parse().unwrap(),
            digest: "sha256-0".into(),
            root,
            scratch: scratch::Template {
                path,
                layers: store.root().to_path_buf(),
            },
            store,
            _locked: None,
        }
    }
}
