//! What a disk tells the driver: feature bits and the configuration space (virtio 1.2 §5.2.3,
//! §5.2.4).

use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::disk::{Disk, SECTOR_BYTES};
use crate::request::{RANGE_SECTORS_MAX, RANGES_MAX, SEGMENT_BYTES_MAX, SEGMENTS_MAX};
use crate::scratch::Flush;

/// `struct virtio_blk_config` up to and including the zoned fields, which stay zero.
const CONFIG_BYTES: usize = 96;

/// Front ends ask for a struct of their own size, never more than this (vhost-user, GET_CONFIG).
const ANSWER_BYTES_MAX: usize = 256;

/// Host pages are 4 KiB: smaller or unaligned requests work but cost a read-modify-write below.
const PHYSICAL_BLOCK_EXP: u8 = 3;
const MIN_IO_BLOCKS: u16 = 1 << PHYSICAL_BLOCK_EXP;

/// The feature bits of `disk`, without those of the vhost-user transport.
pub(super) fn features(disk: &Disk, queues: u16) -> u64 {
    let mut bits = vec![
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        blk::VIRTIO_BLK_F_SIZE_MAX,
        blk::VIRTIO_BLK_F_SEG_MAX,
        blk::VIRTIO_BLK_F_GEOMETRY,
        blk::VIRTIO_BLK_F_BLK_SIZE,
        blk::VIRTIO_BLK_F_TOPOLOGY,
    ];
    if queues > 1 {
        bits.push(blk::VIRTIO_BLK_F_MQ);
    }
    match disk {
        Disk::Image(_) => bits.push(blk::VIRTIO_BLK_F_RO),
        Disk::Layer(layer) => {
            bits.extend([blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES]);
            // Without the bit the driver never flushes. That is what volatile means, and saves a
            // round trip for each fsync in the guest; a flush that comes anyway succeeds.
            if layer.flush_mode() == Flush::Durable {
                bits.push(blk::VIRTIO_BLK_F_FLUSH);
            }
        }
    }
    bits.iter().fold(0, |all, bit| all | 1 << bit)
}

/// Whether a driver with `acked` features counts on each write being as safe as a flush.
pub(super) fn is_write_through(acked: u64) -> bool {
    acked & (1 << blk::VIRTIO_BLK_F_FLUSH) == 0
}

/// `size` bytes of the configuration space from `offset` on; empty when that is not a sane question.
pub(super) fn read(disk: &Disk, queues: u16, offset: u32, size: u32) -> Vec<u8> {
    let bounds = usize::try_from(offset).ok().zip(usize::try_from(size).ok());
    let Some((offset, size)) = bounds else {
        return Vec::new();
    };
    match offset.checked_add(size) {
        Some(end) if end <= ANSWER_BYTES_MAX => {
            let mut space = space(disk, queues).to_vec();
            space.resize(ANSWER_BYTES_MAX, 0);
            space[offset..end].to_vec()
        }
        _ => Vec::new(),
    }
}

fn space(disk: &Disk, queues: u16) -> [u8; CONFIG_BYTES] {
    let sectors = disk.capacity().sectors();
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &sectors.to_le_bytes());
    put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    // The customary shape for a disk without one: 16 heads, 63 sectors, as many cylinders as fit.
    let cylinders = u16::try_from(sectors / (16 * 63)).unwrap_or(u16::MAX);
    put(16, &cylinders.to_le_bytes());
    put(18, &[16, 63]);
    put(
        20,
        &u32::try_from(SECTOR_BYTES).unwrap_or(512).to_le_bytes(),
    );
    put(24, &[PHYSICAL_BLOCK_EXP, 0]);
    put(26, &MIN_IO_BLOCKS.to_le_bytes());
    put(28, &(SEGMENT_BYTES_MAX / 512).to_le_bytes());
    put(34, &queues.to_le_bytes());
    if let Disk::Layer(_) = disk {
        put(36, &RANGE_SECTORS_MAX.to_le_bytes());
        put(40, &RANGES_MAX.to_le_bytes());
        put(44, &u32::from(MIN_IO_BLOCKS).to_le_bytes());
        put(48, &RANGE_SECTORS_MAX.to_le_bytes());
        put(52, &RANGES_MAX.to_le_bytes());
        put(56, &[1]);
    }
    config
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::image::{Image, Source};
    use crate::scratch::Template;

    fn disks() -> (tempfile::TempDir, Disk, Disk, Disk) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        let source = || Source::open(&path).unwrap();
        let layer = |flush| {
            let template = Template::new(
                source(),
                crate::scratch::Place::open(dir.path()).unwrap(),
                flush,
                None,
            )
            .unwrap();
            template.layer().unwrap()
        };
        let image = Disk::Image(Arc::new(Image::new(source())));
        let (volatile, durable) = (layer(Flush::Volatile), layer(Flush::Durable));
        (dir, image, Disk::Layer(volatile), Disk::Layer(durable))
    }

    #[test]
    fn only_an_image_is_read_only_and_only_layers_discard() {
        let (_dir, image, volatile, durable) = disks();
        let has = |disk: &Disk, bit: u32| features(disk, 1) & (1 << bit) != 0;
        assert!(has(&image, blk::VIRTIO_BLK_F_RO) && !has(&image, blk::VIRTIO_BLK_F_DISCARD));
        assert!(!has(&volatile, blk::VIRTIO_BLK_F_RO) && has(&volatile, blk::VIRTIO_BLK_F_DISCARD));
        assert!(!has(&volatile, blk::VIRTIO_BLK_F_FLUSH));
        assert!(has(&durable, blk::VIRTIO_BLK_F_FLUSH));
        assert!(!has(&image, blk::VIRTIO_BLK_F_MQ));
        assert!(features(&image, 2) & (1 << blk::VIRTIO_BLK_F_MQ) != 0);
    }

    #[test]
    fn the_space_has_the_specified_offsets() {
        let (_dir, image, layer, _) = disks();
        let config = read(&layer, 4, 0, 60);
        assert_eq!(config[..8], (1u64 << 21).to_le_bytes());
        assert_eq!(config[20..24], 512u32.to_le_bytes());
        assert_eq!(config[34..36], 4u16.to_le_bytes());
        assert_eq!(config[36..40], RANGE_SECTORS_MAX.to_le_bytes());
        assert_eq!(config[56], 1);
        assert_eq!(read(&image, 4, 36, 24), [0; 24]);
        assert_eq!(read(&image, 1, 8, 4), SEGMENT_BYTES_MAX.to_le_bytes());
    }

    #[test]
    fn a_longer_struct_is_padded_and_nonsense_is_empty() {
        let (_dir, image, ..) = disks();
        assert_eq!(read(&image, 1, 0, 256).len(), 256);
        assert!(read(&image, 1, 1, 256).is_empty());
        assert!(read(&image, 1, u32::MAX, u32::MAX).is_empty());
    }
}
