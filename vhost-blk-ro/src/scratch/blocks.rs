//! Which blocks of a disk its layer holds, one bit each; all others are still the template's.
//!
//! Must hold: a bit is set after what it stands for is in the layer's file, and never cleared, so a
//! reader on any thread that sees it finds the block there. Memory comes with the first block that is
//! set: nothing for a disk that is only read, then 16 bytes for each 16 MiB of the disk, and half
//! a KiB more where one of their blocks is set.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A page of the page cache, and what a guest's file system writes at least.
pub(super) const BLOCK: usize = 4096;
pub(super) const BLOCK_BYTES: u64 = BLOCK as u64;

const WORDS: usize = 64;
const LEAF_BLOCKS: u64 = 64 * WORDS as u64;

type Leaf = [AtomicU64; WORDS];

#[derive(Debug)]
pub(super) struct Blocks {
    count: u64,
    leaves: OnceLock<Box<[OnceLock<Box<Leaf>>]>>,
}

/// The numbers of the blocks that the bytes touch.
pub(super) fn touched(bytes: Range<u64>) -> Range<u64> {
    bytes.start / BLOCK_BYTES..bytes.end.div_ceil(BLOCK_BYTES)
}

impl Blocks {
    /// For a disk of so many bytes; no bit is set.
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            count: bytes.div_ceil(BLOCK_BYTES),
            leaves: OnceLock::new(),
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// How the first block of `blocks` is, and how many from there on are like it.
    pub(super) fn run(&self, blocks: Range<u64>) -> (bool, u64) {
        let is_set = self.word(blocks.start) >> (blocks.start % 64) & 1 == 1;
        let mut at = blocks.start;
        while at < blocks.end {
            if !is_set && self.leaf(at).is_none() {
                at = (at / LEAF_BLOCKS + 1) * LEAF_BLOCKS;
                continue;
            }
            let word = self.word(at);
            let other = (if is_set { !word } else { word }) >> (at % 64);
            let left = 64 - at % 64;
            let alike = u64::from(other.trailing_zeros()).min(left);
            at += alike;
            if alike < left {
                break;
            }
        }
        (is_set, at.min(blocks.end) - blocks.start)
    }

    pub(super) fn all_set(&self, blocks: Range<u64>) -> bool {
        blocks.is_empty() || self.run(blocks.clone()) == (true, blocks.end - blocks.start)
    }

    pub(super) fn set(&self, blocks: Range<u64>) {
        let mut at = blocks.start;
        while at < blocks.end.min(self.count) {
            let next = ((at / 64 + 1) * 64).min(blocks.end);
            let mask = u64::MAX >> (64 - (next - at)) << (at % 64);
            if let Some((leaf, word)) = self.place(at) {
                let leaf = leaf.get_or_init(|| Box::new([const { AtomicU64::new(0) }; WORDS]));
                leaf[word].fetch_or(mask, Ordering::Release);
            }
            at = next;
        }
    }

    /// Makes the table of leaves when there is none.
    fn place(&self, block: u64) -> Option<(&OnceLock<Box<Leaf>>, usize)> {
        let leaves = self.leaves.get_or_init(|| {
            let count = self.count.div_ceil(LEAF_BLOCKS);
            (0..count).map(|_| OnceLock::new()).collect()
        });
        let leaf = leaves.get(usize::try_from(block / LEAF_BLOCKS).ok()?)?;
        Some((leaf, word_index(block)))
    }

    fn leaf(&self, block: u64) -> Option<&Leaf> {
        let number = usize::try_from(block / LEAF_BLOCKS).ok()?;
        self.leaves.get()?.get(number)?.get().map(|leaf| &**leaf)
    }

    /// The 64 bits among which `block` has its own.
    fn word(&self, block: u64) -> u64 {
        self.leaf(block)
            .map_or(0, |leaf| leaf[word_index(block)].load(Ordering::Acquire))
    }
}

fn word_index(block: u64) -> usize {
    usize::try_from(block % LEAF_BLOCKS / 64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COUNT: u64 = 3 * LEAF_BLOCKS + 100;

    #[test]
    fn a_disk_that_is_only_read_has_no_bits() {
        let blocks = Blocks::new(1 << 40);
        assert_eq!(blocks.run(5..1 << 28), (false, (1 << 28) - 5));
        assert!(blocks.all_set(7..7) && !blocks.all_set(7..8));
        assert!(blocks.leaves.get().is_none());
        blocks.set(1 << 20..(1 << 20) + 1);
        let made = |leaf: &&OnceLock<_>| leaf.get().is_some();
        assert_eq!(blocks.leaves.get().unwrap().iter().filter(made).count(), 1);
        assert_eq!(blocks.run(5..1 << 28), (false, (1 << 20) - 5));
    }

    #[test]
    fn bytes_touch_whole_blocks() {
        assert_eq!(touched(0..1), 0..1);
        assert_eq!(touched(4095..4097), 0..2);
        assert_eq!(touched(4096..8192), 1..2);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn it_is_a_list_of_flags(
            sets in prop::collection::vec((0..COUNT, 0..200u64), 0..20),
            wide in prop::option::of((0..COUNT, 0..COUNT)),
            asks in prop::collection::vec((0..COUNT, 1..COUNT), 1..50),
        ) {
            let blocks = Blocks::new(COUNT * BLOCK_BYTES);
            let mut model = vec![false; usize::try_from(COUNT).unwrap()];
            for (start, len) in sets.into_iter().chain(wide) {
                let end = (start + len).min(COUNT);
                blocks.set(start..end);
                model[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()].fill(true);
            }
            for (start, len) in asks {
                let end = (start + len).min(COUNT);
                let part = &model[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()];
                let alike = part.iter().take_while(|flag| **flag == part[0]).count();
                prop_assert_eq!(blocks.run(start..end), (part[0], alike as u64));
                prop_assert_eq!(blocks.all_set(start..end), part.iter().all(|flag| *flag));
            }
        }
    }
}
