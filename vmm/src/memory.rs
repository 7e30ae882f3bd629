//! Guest RAM: always private to this process, except the I/O window.
//!
//! RAM is one region below the device hole and, if it does not fit there, one above 4 GiB: each is one stretch
//! of this process's addresses and one KVM memory slot, since every slot costs each start a wait for
//! all CPUs. What stands behind a region changes within it: the window's file lies over it, and
//! parts of other files may. Nothing is touched before the guest or the boot loader touches it.

#![allow(unsafe_code)]

pub mod backing;
pub mod layout;

use std::fs::File;
use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::mm::Advice;
use thiserror::Error;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionCollectionError,
    GuestRegionMmap,
};

use self::backing::Writes;
use self::layout::Range;
use crate::spec::MemorySpec;

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

/// RAM as the guest sees it: pieces that meet are one.
fn stretches(spec: &MemorySpec) -> Vec<Range> {
    let mut stretches: Vec<Range> = Vec::new();
    for (range, _) in regions(spec) {
        match stretches.last_mut() {
            Some(last) if last.end() == range.start => last.len += range.len,
            _ => stretches.push(range),
        }
    }
    stretches
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
        let window = window_range(spec);
        let map_error = |range: Range| {
            move |source| MemoryError::Map {
                start: range.start,
                len: range.len,
                source,
            }
        };
        let file = Arc::new(backing::sealed_memfd(window.len).map_err(map_error(window))?);
        let mut mappings = Vec::new();
        for range in stretches(spec) {
            let mapping = backing::anonymous(range.len).map_err(map_error(range))?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(range.start))
                .expect("layout constants keep every region below 2^64");
            mappings.push(region);
        }
        let memory = GuestMemory::from_regions(mappings).map_err(MemoryError::Assemble)?;
        let ram = Self {
            memory,
            window: Window {
                range: window,
                file: Arc::clone(&file),
            },
        };
        ram.lay_over(window, (&file, 0), Writes::Shared)?;
        Ok(ram)
    }

    /// RAM whose private pieces, one after the other, are what `file` holds until they are written to. The
    /// window is empty. The file is as long as the pieces together and stays so: who owns the store of
    /// templates sees to it.
    pub fn private_over(spec: &MemorySpec, file: &File) -> Result<Self, MemoryError> {
        let ram = Self::allocate(spec)?;
        let mut offset = 0;
        for (range, kind) in regions(spec) {
            if kind == Kind::Private {
                ram.lay_over(range, (file, offset), Writes::Private)?;
                ram.read_at_random(range)
                    .map_err(|source| MemoryError::File { range, source })?;
                offset += range.len;
            }
        }
        Ok(ram)
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
        let window = self.window.range;
        let meets =
            range.start < window.end() && window.start < range.start.saturating_add(range.len);
        if meets {
            return Err(MemoryError::File {
                range,
                source: io::Error::new(io::ErrorKind::InvalidInput, "not private memory"),
            });
        }
        self.lay_over(range, (file, offset), Writes::Private)
    }

    /// Puts a view of a file in place of whole pages of one region.
    fn lay_over(
        &self,
        range: Range,
        (file, offset): (&File, u64),
        writes: Writes,
    ) -> Result<(), MemoryError> {
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
            .filter(|_| aligned)
            .ok_or_else(|| invalid("not whole pages of memory"))?;
        let within = range.start - region.start_addr().0;
        if within
            .checked_add(range.len)
            .is_none_or(|end| end > region.len())
        {
            return Err(invalid("runs over the end of memory"));
        }
        // Both fit: they are less than the length of a mapping.
        let len = usize::try_from(range.len).map_err(|_| invalid("too long"))?;
        let within = usize::try_from(within).map_err(|_| invalid("too long"))?;
        // SAFETY: `within..within + len` is inside the region's mapping (checked above), which is ours
        // and stays ours: unmapping the region later unmaps this, too. Nobody holds references into
        // guest memory; it is only accessed through volatile copies.
        unsafe { backing::overlay(region.as_ptr().add(within), len, (file, offset), writes) }
            .map_err(|source| MemoryError::File { range, source })
    }

    /// Where `range`, whole pages of one region, begins in this process, and which of its pages are in memory or in
    /// the page cache, mincore(2).
    pub fn resident(&self, range: Range) -> io::Result<(u64, Vec<bool>)> {
        let (at, len) = self.place(range)?;
        let mut pages = vec![0_u8; len / 4096];
        // SAFETY: [at, at + len) is mapped, and there is a byte for each of its pages.
        if unsafe { libc::mincore(at.cast(), len, pages.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let pages = pages.into_iter().map(|page| page & 1 != 0).collect();
        Ok((at.addr() as u64, pages))
    }

    /// Has the kernel read the pages of a file that are touched, and no others: what comes next is not to be
    /// guessed, and `template::touched` goes by what was read.
    fn read_at_random(&self, range: Range) -> io::Result<()> {
        let (at, len) = self.place(range)?;
        // SAFETY: [at, at + len) is mapped, and its contents stay what they are.
        unsafe { rustix::mm::madvise(at.cast(), len, Advice::Random) }?;
        Ok(())
    }

    /// Gives this process pages of its own for `range`, as if each was written to, without changing them.
    pub fn populate(&self, range: Range) -> io::Result<()> {
        let (at, len) = self.place(range)?;
        // SAFETY: [at, at + len) is mapped, and its contents stay what they are.
        unsafe { rustix::mm::madvise(at.cast(), len, Advice::LinuxPopulateWrite) }?;
        Ok(())
    }

    /// Where whole pages of one region are in this process.
    fn place(&self, range: Range) -> io::Result<(*mut u8, usize)> {
        let aligned = [range.start, range.len]
            .iter()
            .all(|n| n.is_multiple_of(layout::PAGE));
        let region = self
            .memory
            .find_region(GuestAddress(range.start))
            .filter(|_| aligned);
        let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "not whole pages of memory");
        let region = region.ok_or_else(invalid)?;
        let within = range.start - region.start_addr().0;
        if within
            .checked_add(range.len)
            .is_none_or(|end| end > region.len())
        {
            return Err(invalid());
        }
        let number = |n: u64| usize::try_from(n).map_err(|_| invalid());
        // SAFETY: it is inside the region's mapping, as was checked.
        Ok((
            unsafe { region.as_ptr().add(number(within)?) },
            number(range.len)?,
        ))
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
            // SAFETY: the range is exactly one live region of `self.memory`; regions do not overlap
            // (checked when the collection was made) and slots are numbered apart. KVM takes its own
            // references to the pages, so that even a dropped mapping faults in the guest only.
            unsafe { vm.set_user_memory_region(entry) }.map_err(slot_error)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
