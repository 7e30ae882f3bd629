//! Guest RAM: always private to this process, except the I/O window.
//!
//! RAM is split where its backing changes: below the window, the window, above it, above 4 GiB. Each
//! piece is one mapping and one KVM memory slot. Nothing is touched before the guest or the boot
//! loader touches it.

#![allow(unsafe_code)]

pub mod backing;
pub mod layout;

use std::fs::File;
use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::mmap::MmapRegion;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionCollectionError,
    GuestRegionMmap,
};

use crate::spec::MemorySpec;
use layout::Range;

/// Guest-physical memory as the devices see it: clones share the mappings.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// Why there is no guest memory.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// A mapping failed.
    #[error("cannot map {len:#x} bytes of guest memory at {start:#x}")]
    Map {
        start: u64,
        len: u64,
        #[source]
        source: backing::BackingError,
    },
    /// The pieces did not fit together.
    #[error("cannot put the guest memory together")]
    Assemble(#[source] GuestRegionCollectionError),
    /// A file cannot stand behind this piece.
    #[error("cannot map a file into guest memory at {:#x}..{:#x}", range.start, range.end())]
    File {
        range: Range,
        #[source]
        source: io::Error,
    },
    /// The window could not be filled.
    #[error("cannot copy the template's I/O window")]
    Window {
        #[source]
        source: io::Error,
    },
    /// KVM refused a slot.
    #[error("KVM refused memory slot {slot} at {start:#x}")]
    Slot {
        slot: u32,
        start: u64,
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// What stands behind one piece of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Private anonymous memory.
    Private,
    /// The shared window.
    Window,
}

/// The pieces of RAM for a spec, in ascending order.
#[must_use]
pub fn regions(spec: &MemorySpec) -> Vec<(Range, Kind)> {
    let window = window_range(spec);
    let low_end = spec.bytes().min(layout::LOW_RAM_LIMIT);
    let mut regions = vec![
        (Range::new(0, window.start), Kind::Private),
        (window, Kind::Window),
        (
            Range::new(window.end(), low_end - window.end()),
            Kind::Private,
        ),
    ];
    if spec.bytes() > low_end {
        let high = Range::new(layout::HIGH_RAM, spec.bytes() - low_end);
        regions.push((high, Kind::Private));
    }
    regions
}

fn window_range(spec: &MemorySpec) -> Range {
    Range::new(layout::WINDOW.start, spec.window_bytes())
}

/// The part of RAM that vhost-user backends may see.
#[derive(Clone, Debug)]
pub struct Window {
    /// Where the guest finds it.
    pub range: Range,
    /// The sealed memfd behind it; offset 0 is the first byte.
    pub file: Arc<File>,
}

/// All RAM of one sandbox.
#[derive(Clone, Debug)]
pub struct GuestRam {
    memory: GuestMemory,
    window: Window,
}

impl GuestRam {
    /// Reserves address space for everything the spec asks for; no page is touched.
    pub fn allocate(spec: &MemorySpec) -> Result<Self, MemoryError> {
        Self::build(spec, |range| backing::anonymous(range.len))
    }

    /// RAM whose private pieces, one after the other, are what `file` holds until they are written to. The
    /// window is empty. The file is as long as the pieces together and stays so: who owns the store of
    /// templates sees to it.
    pub fn private_over(spec: &MemorySpec, file: &Arc<File>) -> Result<Self, MemoryError> {
        let mut offset = 0;
        Self::build(spec, |range| {
            let at = offset;
            offset += range.len;
            backing::private_over(file, at, range.len)
        })
    }

    fn build(
        spec: &MemorySpec,
        mut private: impl FnMut(Range) -> Result<MmapRegion, backing::BackingError>,
    ) -> Result<Self, MemoryError> {
        let range = window_range(spec);
        let map_error = |range: Range| {
            move |source| MemoryError::Map {
                start: range.start,
                len: range.len,
                source,
            }
        };
        let file = Arc::new(backing::sealed_memfd(range.len).map_err(map_error(range))?);
        let mut mappings = Vec::new();
        for (range, kind) in regions(spec) {
            let mapping = match kind {
                Kind::Private => private(range),
                Kind::Window => backing::shared(&file, range.len),
            }
            .map_err(map_error(range))?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(range.start))
                .expect("layout constants keep every region below 2^64");
            mappings.push(region);
        }
        let memory = GuestMemory::from_regions(mappings).map_err(MemoryError::Assemble)?;
        Ok(Self {
            memory,
            window: Window { range, file },
        })
    }

    /// The memory, for boot loader and devices.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The shared window.
    #[must_use]
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Puts a private view of `file` (from `offset` on) in place of `range`, which must be whole pages
    /// of private memory. Past the end of the file's last page there is nothing: the caller has checked
    /// its length. The file must not shrink later, which is for whoever owns the store to see to.
    pub fn map_file(&self, range: Range, file: &File, offset: u64) -> Result<(), MemoryError> {
        let invalid = |what: &str| MemoryError::File {
            range,
            source: io::Error::new(io::ErrorKind::InvalidInput, what.to_owned()),
        };
        let aligned = [range.start, range.len, offset]
            .iter()
            .all(|n| n.is_multiple_of(layout::PAGE));
        let region = self
            .memory
            .find_region(GuestAddress(range.start))
            .filter(|region| aligned && region.file_offset().is_none())
            .ok_or_else(|| invalid("not whole pages of private memory"))?;
        let within = range.start - region.start_addr().0;
        if within
            .checked_add(range.len)
            .is_none_or(|end| end > region.len())
        {
            return Err(invalid("runs over the end of private memory"));
        }
        // Both fit: they are less than the length of a mapping.
        let len = usize::try_from(range.len).map_err(|_| invalid("too long"))?;
        let within = usize::try_from(within).map_err(|_| invalid("too long"))?;
        // SAFETY: `within..within + len` is inside the region's mapping (checked above), which is ours
        // and stays ours: unmapping the region later unmaps this, too. Nobody holds references into
        // guest memory; it is only accessed through volatile copies.
        unsafe { backing::overlay(region.as_ptr().add(within), len, file, offset) }
            .map_err(|source| MemoryError::File { range, source })
    }

    /// Where RAM below the device hole ends.
    #[must_use]
    pub fn low_end(&self) -> u64 {
        self.memory
            .iter()
            .map(|region| region.last_addr().raw_value() + 1)
            .filter(|&end| end <= layout::LOW_RAM_LIMIT)
            .max()
            .unwrap_or(0)
    }

    /// Makes the pieces memory slots of `vm` (KVM API §4.35). The mappings must outlive the VM: the
    /// caller keeps `self` (or a clone of its memory) until the vCPUs are gone.
    pub fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        for (slot, region) in (0u32..).zip(self.memory.iter()) {
            let start = region.start_addr().raw_value();
            let slot_error = |source| MemoryError::Slot {
                slot,
                start,
                source,
            };
            let entry = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: start,
                memory_size: region.len(),
                userspace_addr: region.as_ptr().addr() as u64,
            };
            // SAFETY: the range is exactly one live mapping of `self.memory`; regions do not overlap
            // (checked when the collection was made) and slots are numbered apart. KVM takes its own
            // references to the pages, so that even a dropped mapping faults in the guest only.
            unsafe { vm.set_user_memory_region(entry) }.map_err(slot_error)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::layout::{GIB, MIB};
    use super::*;
    use vm_memory::Bytes;

    fn spec(mib: u32, window: u32) -> MemorySpec {
        MemorySpec {
            mib,
            window_mib: window,
        }
    }

    #[test]
    fn every_byte_asked_for_is_there_once() {
        for (mib, window) in [(64, 1), (64, 8), (128, 2), (3072, 2), (3073, 2), (65536, 4)] {
            let regions = regions(&spec(mib, window));
            assert_eq!(
                regions.iter().map(|(r, _)| r.len).sum::<u64>(),
                u64::from(mib) * MIB
            );
            assert!(
                regions
                    .windows(2)
                    .all(|pair| pair[0].0.end() <= pair[1].0.start)
            );
            assert!(
                regions
                    .iter()
                    .all(|(r, _)| r.len > 0 && r.start % layout::PAGE == 0)
            );
            let windows: Vec<_> = regions.iter().filter(|(_, k)| *k == Kind::Window).collect();
            assert_eq!(windows.len(), 1);
            assert_eq!(windows[0].0, Range::new(8 * MIB, u64::from(window) * MIB));
            assert!(
                regions
                    .iter()
                    .all(|(r, _)| r.end() <= 3 * GIB || r.start >= 4 * GIB)
            );
        }
    }

    #[test]
    fn only_the_window_has_a_file_and_it_is_the_same_memory() {
        use std::os::unix::fs::FileExt;
        let ram = GuestRam::allocate(&spec(64, 2)).unwrap();
        assert_eq!(ram.low_end(), 64 * MIB);
        let with_file: Vec<_> = ram
            .memory()
            .iter()
            .filter(|r| r.file_offset().is_some())
            .collect();
        assert_eq!(with_file.len(), 1);
        let window = ram.window();
        ram.memory()
            .write_obj(0x1122_3344_u32, GuestAddress(window.range.start + 8))
            .unwrap();
        let mut bytes = [0u8; 4];
        window.file.read_exact_at(&mut bytes, 8).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 0x1122_3344);
        // Accesses may run from private memory into the window and out again.
        let across = GuestAddress(window.range.start - 4);
        ram.memory().write_slice(&[7; 16], across).unwrap();
        assert_eq!(
            ram.memory()
                .read_obj::<u8>(GuestAddress(window.range.start))
                .unwrap(),
            7
        );
    }

    #[test]
    fn a_mapped_file_is_read_and_never_written() {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 10_000], 0).unwrap();
        let ram = GuestRam::allocate(&spec(64, 1)).unwrap();
        let place = Range::new(16 * MIB, 8192);
        ram.map_file(place, &file, 0).unwrap();
        let at = GuestAddress(place.start + 100);
        assert_eq!(ram.memory().read_obj::<u8>(at).unwrap(), 7);
        ram.memory().write_obj(9_u8, at).unwrap();
        assert_eq!(ram.memory().read_obj::<u8>(at).unwrap(), 9);
        assert_eq!(
            ram.memory()
                .read_obj::<u8>(GuestAddress(place.end()))
                .unwrap(),
            0
        );
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 100).unwrap();
        assert_eq!(byte, [7]);
    }

    #[test]
    fn files_go_into_whole_pages_of_private_memory_only() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MIB).unwrap();
        let ram = GuestRam::allocate(&spec(64, 1)).unwrap();
        let refused =
            |start, len, offset| ram.map_file(Range::new(start, len), &file, offset).is_err();
        assert!(refused(8 * MIB, 4096, 0), "the window");
        assert!(refused(8 * MIB - 4096, 8192, 0), "into the window");
        assert!(refused(64 * MIB - 4096, 8192, 0), "past the end");
        assert!(
            refused(64 * MIB, 4096, 0) && refused(1 << 63, 1 << 63, 0),
            "no memory at all"
        );
        assert!(refused(16 * MIB + 1, 4096, 0) && refused(16 * MIB, 4095, 0));
        assert!(refused(16 * MIB, 4096, 1));
        assert!(!refused(16 * MIB, 4096, 4096));
    }

    #[test]
    fn the_window_file_cannot_be_resized_by_whoever_holds_it() {
        let ram = GuestRam::allocate(&spec(64, 1)).unwrap();
        assert!(ram.window().file.set_len(0).is_err());
        assert!(ram.window().file.set_len(16 * MIB).is_err());
        assert!(
            rustix::fs::fcntl_add_seals(&ram.window().file, rustix::fs::SealFlags::WRITE).is_err()
        );
    }
}
