//! What a session reads and writes: a shared read-only image or a throw-away writable layer.
//!
//! Must hold: an [`Extent`] lies inside the disk that made it, so nothing below this line checks a
//! guest's sector number again. [`Disk::Image`] has no way to write: its file is open read-only and
//! [`Image`] has no method that writes.

use std::ops::Range;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::image::Image;
use crate::iov::{self, Span, Wait};
use crate::scratch::Layer;

/// Bytes in a sector: the unit of every address on the wire, whatever the block size (virtio 1.2
/// §5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// A sector number as the guest wrote it; not known to be on any disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sector(pub u64);

/// Size of a disk in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capacity(u64);

impl Capacity {
    /// The sectors needed to hold `bytes`; the tail of a half-filled last sector reads as zeroes.
    pub fn holding(bytes: u64) -> Self {
        Self(bytes.div_ceil(SECTOR_BYTES))
    }

    pub fn sectors(self) -> u64 {
        self.0
    }

    /// The `bytes` from `sector` on, or nothing when they are not whole sectors of this disk.
    pub fn extent(self, sector: Sector, bytes: u64) -> Option<Extent> {
        if !bytes.is_multiple_of(SECTOR_BYTES) {
            return None;
        }
        let end = sector.0.checked_add(bytes / SECTOR_BYTES)?;
        if end > self.0 {
            return None;
        }
        Some(Extent {
            offset: sector.0.checked_mul(SECTOR_BYTES)?,
            bytes,
        })
    }
}

/// A run of bytes known to lie on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    offset: u64,
    bytes: u64,
}

impl Extent {
    /// Byte offset in the file behind the disk.
    pub fn offset(self) -> u64 {
        self.offset
    }

    pub fn bytes(self) -> u64 {
        self.bytes
    }

    pub fn range(self) -> Range<u64> {
        self.offset..self.offset + self.bytes
    }

    /// Without its first `bytes`, as far as it has that many.
    pub fn after(self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        Self {
            offset: self.offset + bytes,
            bytes: self.bytes - bytes,
        }
    }

    /// Only its first `bytes`.
    pub fn first(self, bytes: u64) -> Self {
        Self {
            bytes: bytes.min(self.bytes),
            ..self
        }
    }
}

/// What `VIRTIO_BLK_T_GET_ID` answers: up to 20 bytes, zero padded (virtio 1.2 §5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serial([u8; Self::BYTES]);

impl Serial {
    pub const BYTES: usize = 20;

    /// Nothing when `text` is longer than 20 bytes or not printable ASCII.
    pub fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; Self::BYTES];
        bytes
            .get_mut(..text.len())?
            .copy_from_slice(text.as_bytes());
        text.bytes()
            .all(|b| b.is_ascii_graphic() || b == b' ')
            .then_some(Self(bytes))
    }

    pub fn bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

/// The disk of one session.
#[derive(Debug)]
pub enum Disk {
    /// Shared by every session that reads the same file.
    Image(Arc<Image>),
    /// Owned by this session, gone with it.
    Layer(Layer),
}

impl Disk {
    pub fn capacity(&self) -> Capacity {
        match self {
            Self::Image(image) => image.capacity(),
            Self::Layer(layer) => layer.capacity(),
        }
    }

    /// Whether a read can be told to stop where the page cache ends.
    pub fn tells_misses(&self) -> bool {
        match self {
            Self::Image(image) => image.tells_misses(),
            Self::Layer(layer) => layer.tells_misses(),
        }
    }

    /// Where the file under the disk ends: in its last sector.
    pub fn content_bytes(&self) -> u64 {
        match self {
            Self::Image(image) => image.source().size(),
            Self::Layer(layer) => layer.template().source().size(),
        }
    }

    /// Reads `extent` into `span`; the count is short as [`iov::read`] says.
    pub fn read(
        &self,
        extent: Extent,
        memory: &GuestMemoryMmap,
        span: Span<'_>,
        wait: Wait,
    ) -> Result<u64, iov::Error> {
        match self {
            Self::Image(image) => image.read(extent, memory, span, wait),
            Self::Layer(layer) => layer.read(extent, memory, span, wait),
        }
    }

    /// Starts reading `extent` into the page cache without waiting for it.
    pub fn prefetch(&self, extent: Extent) {
        match self {
            Self::Image(image) => image.prefetch(extent),
            Self::Layer(layer) => layer.prefetch(extent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_stay_on_the_disk() {
        let disk = Capacity::holding(4096);
        assert_eq!(disk.sectors(), 8);
        assert_eq!(
            disk.extent(Sector(7), 512),
            Some(Extent {
                offset: 3584,
                bytes: 512
            })
        );
        assert_eq!(
            disk.extent(Sector(8), 0),
            Some(Extent {
                offset: 4096,
                bytes: 0
            })
        );
        assert_eq!(disk.extent(Sector(8), 512), None);
        assert_eq!(disk.extent(Sector(0), 4097), None);
        assert_eq!(disk.extent(Sector(0), 100), None);
        assert_eq!(disk.extent(Sector(u64::MAX), 512), None);
        assert_eq!(disk.extent(Sector(u64::MAX / 512), 512), None);
        assert_eq!(
            Capacity::holding(u64::MAX).extent(Sector(u64::MAX / 512 + 1), 0),
            None
        );
    }

    #[test]
    fn a_half_filled_sector_counts() {
        assert_eq!(Capacity::holding(513).sectors(), 2);
    }

    #[test]
    fn serials_are_short_printable_text() {
        assert_eq!(&Serial::new("root").unwrap().bytes()[..6], b"root\0\0");
        assert!(Serial::new("12345678901234567890").is_some());
        assert!(Serial::new("123456789012345678901").is_none());
        assert!(Serial::new("tab\there").is_none());
    }
}
