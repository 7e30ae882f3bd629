//! The front end's memory table: which files it shares, where the guest sees them, and where the
//! front end itself does (vhost-user, SET_MEM_TABLE).
//!
//! Must hold: touching any byte of the table can not raise a signal in this process, which serves
//! other tenants too. A mapped file that is short, or that its owner makes shorter later, raises
//! `SIGBUS` on access. So each file must be long enough *before* it is mapped and sealed against
//! shrinking; a memfd without seals is only taken from a front end that the configuration trusts.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{SealFlags, fcntl_get_seals, fstatfs};
use thiserror::Error;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionCollectionError, GuestRegionMmap,
    MmapRegion, mmap::MmapRegionError,
};

/// More than any VM here may have. One session must not use up the address space of all.
const BYTES_MAX: u64 = 1 << 40;

/// `statfs` of a hugetlbfs file, where touching an unreserved page raises `SIGBUS`.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

#[derive(Debug, Error)]
pub enum Error {
    #[error("memory region {0}: cannot examine its file")]
    Examine(usize, #[source] io::Error),
    #[error("memory region {0} reaches past the end of its file")]
    Short(usize),
    #[error(
        "memory region {0} can be made shorter by its owner; share memory as a memfd sealed with \
         F_SEAL_SHRINK (QEMU: memory-backend-memfd), or set \"trusted_front_end\" for this socket"
    )]
    Unsealed(usize),
    #[error("memory region {0} is of huge pages; set \"trusted_front_end\" for this socket")]
    HugePages(usize),
    #[error("memory table of more than {BYTES_MAX} bytes")]
    TooLarge,
    #[error("memory region {0}: address range wraps around")]
    Wraps(usize),
    #[error("memory region {0}: cannot map")]
    Map(usize, #[source] MmapRegionError),
    #[error("memory regions overlap")]
    Overlap(#[source] GuestRegionCollectionError),
}

/// Whether the front end may do what could kill this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    No,
    Yes,
}

/// A mapped memory table.
#[derive(Debug, Clone)]
pub(super) struct MemoryTable {
    memory: Arc<GuestMemoryMmap>,
    windows: Vec<Window>,
}

/// Where one region lies in the front end's address space and in the guest's.
#[derive(Debug, Clone, Copy)]
struct Window {
    front_end: u64,
    guest: u64,
    bytes: u64,
}

impl MemoryTable {
    pub(super) fn map(
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        trust: Trust,
    ) -> Result<Self, Error> {
        let mut total = 0u64;
        let mut mapped = Vec::with_capacity(regions.len());
        let mut windows = Vec::with_capacity(regions.len());
        for (index, (region, file)) in regions.iter().zip(files).enumerate() {
            total = total.saturating_add(region.memory_size);
            if total > BYTES_MAX {
                return Err(Error::TooLarge);
            }
            check(index, region, &file, trust)?;
            mapped.push(Arc::new(map_one(index, region, file)?));
            windows.push(Window {
                front_end: region.user_addr,
                guest: region.guest_phys_addr,
                bytes: region.memory_size,
            });
        }
        mapped.sort_by_key(|region: &Arc<GuestRegionMmap>| {
            vm_memory::GuestMemoryRegion::start_addr(region.as_ref())
        });
        let memory = GuestMemoryMmap::from_arc_regions(mapped).map_err(Error::Overlap)?;
        Ok(Self {
            memory: Arc::new(memory),
            windows,
        })
    }

    pub(super) fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// The guest's address of what the front end calls `address`.
    pub(super) fn translate(&self, address: u64) -> Option<u64> {
        self.windows.iter().find_map(|window| {
            let offset = address.checked_sub(window.front_end)?;
            (offset < window.bytes).then(|| window.guest.wrapping_add(offset))
        })
    }
}

fn check(
    index: usize,
    region: &VhostUserMemoryRegion,
    file: &File,
    trust: Trust,
) -> Result<(), Error> {
    let (size, offset, guest) = (
        region.memory_size,
        region.mmap_offset,
        region.guest_phys_addr,
    );
    let end = offset.checked_add(size).ok_or(Error::Wraps(index))?;
    guest.checked_add(size).ok_or(Error::Wraps(index))?;
    if trust == Trust::Yes {
        return Ok(());
    }
    // Fails for anything but a memfd or tmpfs file.
    let seals = fcntl_get_seals(file).unwrap_or(SealFlags::empty());
    if !seals.contains(SealFlags::SHRINK) {
        return Err(Error::Unsealed(index));
    }
    // After the seal: from here on the length can only grow.
    let meta = file
        .metadata()
        .map_err(|error| Error::Examine(index, error))?;
    if meta.len() < end {
        return Err(Error::Short(index));
    }
    let system = fstatfs(file).map_err(|error| Error::Examine(index, error.into()))?;
    if u64::try_from(system.f_type) == Ok(HUGETLBFS_MAGIC) {
        return Err(Error::HugePages(index));
    }
    Ok(())
}

fn map_one(
    index: usize,
    region: &VhostUserMemoryRegion,
    file: File,
) -> Result<GuestRegionMmap, Error> {
    let bytes = usize::try_from(region.memory_size).map_err(|_| Error::TooLarge)?;
    let mapping = MmapRegion::from_file(FileOffset::new(file, region.mmap_offset), bytes)
        .map_err(|error| Error::Map(index, error))?;
    GuestRegionMmap::new(mapping, GuestAddress(region.guest_phys_addr)).ok_or(Error::Wraps(index))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, fcntl_add_seals, memfd_create};

    use super::*;

    const PAGE: u64 = 4096;

    fn memfd(bytes: u64, seals: SealFlags) -> File {
        let file = File::from(memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap());
        file.set_len(bytes).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    }

    fn region(guest: u64, bytes: u64, user: u64, offset: u64) -> VhostUserMemoryRegion {
        VhostUserMemoryRegion::new(guest, bytes, user, offset)
    }

    fn map_sealed(regions: &[VhostUserMemoryRegion]) -> Result<MemoryTable, Error> {
        let files = regions
            .iter()
            .map(|_| memfd(16 * PAGE, SealFlags::SHRINK))
            .collect();
        MemoryTable::map(regions, files, Trust::No)
    }

    #[test]
    fn translation_follows_the_table() {
        let table = map_sealed(&[
            region(0x10_0000, PAGE, 0x7f00_0000_0000, 0),
            region(0, 2 * PAGE, 0x5500_0000_0000, PAGE),
        ])
        .unwrap();
        assert_eq!(table.translate(0x7f00_0000_0010), Some(0x10_0010));
        assert_eq!(table.translate(0x5500_0000_1fff), Some(0x1fff));
        assert_eq!(table.translate(0x5500_0000_2000), None);
        assert_eq!(table.translate(0), None);
    }

    #[test]
    fn memory_that_could_vanish_is_refused() {
        let one = [region(0, PAGE, 0, 0)];
        let unsealed = memfd(PAGE, SealFlags::GROW);
        let error = MemoryTable::map(&one, vec![unsealed], Trust::No).unwrap_err();
        assert!(matches!(error, Error::Unsealed(0)));
        let plain = tempfile::tempfile().unwrap();
        plain.set_len(PAGE).unwrap();
        let error = MemoryTable::map(&one, vec![plain.try_clone().unwrap()], Trust::No);
        assert!(matches!(error, Err(Error::Unsealed(0))));
        MemoryTable::map(&one, vec![plain], Trust::Yes).unwrap();
        let error = map_sealed(&[region(0, 17 * PAGE, 0, 0)]).unwrap_err();
        assert!(matches!(error, Error::Short(0)));
        let error = map_sealed(&[region(0, PAGE, 0, 16 * PAGE)]).unwrap_err();
        assert!(matches!(error, Error::Short(0)));
    }

    #[test]
    fn nonsense_tables_are_refused() {
        let overlapping = [region(0, 2 * PAGE, 0, 0), region(PAGE, PAGE, 1 << 30, 0)];
        assert!(matches!(map_sealed(&overlapping), Err(Error::Overlap(_))));
        assert!(matches!(
            map_sealed(&[region(0, u64::MAX, 0, 0)]),
            Err(Error::TooLarge)
        ));
        assert!(matches!(
            map_sealed(&[region(0, PAGE, 0, u64::MAX)]),
            Err(Error::Wraps(0))
        ));
        assert!(matches!(
            map_sealed(&[region(u64::MAX, PAGE, 0, 0)]),
            Err(Error::Wraps(0))
        ));
        assert!(matches!(
            map_sealed(&[region(0, PAGE, 0, 100)]),
            Err(Error::Map(0, _))
        ));
    }
}
