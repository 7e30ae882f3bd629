use std::path::Path;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::disk::{SECTOR_BYTES, Sector};
use crate::image::Source;

/// Seven blocks and a part of one.
const SECTORS: u64 = 61;

fn template_of(content: &[u8], flush: Flush) -> (tempfile::TempDir, Arc<Template>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("template");
    std::fs::write(&path, content).unwrap();
    let template = Template::new(
        Source::open(&path).unwrap(),
        crate::scratch::Place::open(dir.path()).unwrap(),
        flush,
        None,
    );
    (dir, template.unwrap())
}

fn content() -> Vec<u8> {
    (0..SECTORS * SECTOR_BYTES)
        .map(|i| u8::try_from(i / SECTOR_BYTES).unwrap() + 1)
        .collect()
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn segments(bytes: u64) -> [Segment; 1] {
    [Segment {
        addr: GuestAddress(0),
        len: u32::try_from(bytes).unwrap(),
    }]
}

fn read(layer: &Layer, extent: Extent) -> Vec<u8> {
    let memory = memory();
    let n = layer
        .read(
            extent,
            &memory,
            Span::whole(&segments(extent.bytes())),
            Wait::Yes,
        )
        .unwrap();
    assert_eq!(n, extent.bytes());
    let mut out = vec![0; usize::try_from(n).unwrap()];
    memory.read_slice(&mut out, GuestAddress(0)).unwrap();
    out
}

fn write(layer: &Layer, extent: Extent, byte: u8) {
    let memory = memory();
    let fill = vec![byte; usize::try_from(extent.bytes()).unwrap()];
    memory.write_slice(&fill, GuestAddress(0)).unwrap();
    layer
        .write(extent, &memory, &segments(extent.bytes()), Sync::No)
        .unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Write(u8),
    Discard,
    Zeroes(bool),
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<(Step, u64, u64)>> {
    let step = prop_oneof![
        any::<u8>().prop_map(Step::Write),
        Just(Step::Discard),
        any::<bool>().prop_map(Step::Zeroes),
        Just(Step::Flush),
    ];
    prop::collection::vec((step, 0..SECTORS, 1..16u64), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever is done to a layer, it reads like a plain byte array with the template's content.
    #[test]
    fn a_layer_is_a_byte_array(steps in steps()) {
        let (_dir, template) = template_of(&content(), Flush::Durable);
        let layer = template.layer().unwrap();
        let mut model = content();
        for (step, sector, count) in steps {
            let count = count.min(SECTORS - sector);
            let extent = extent(&layer, sector, count);
            let at = usize::try_from(extent.offset()).unwrap();
            let range = at..at + usize::try_from(extent.bytes()).unwrap();
            match step {
                Step::Write(byte) => {
                    write(&layer, extent, byte);
                    model[range].fill(byte);
                }
                Step::Discard => {
                    layer.discard(extent).unwrap();
                    model[range].fill(0);
                }
                Step::Zeroes(unmap) => {
                    layer.write_zeroes(extent, unmap).unwrap();
                    model[range].fill(0);
                }
                Step::Flush => layer.flush().unwrap(),
            }
        }
        let all = extent(&layer, 0, SECTORS);
        prop_assert_eq!(&read(&layer, all), &model);
        let file = layer.complete().unwrap();
        let mut kept = vec![0; model.len()];
        file.read_exact_at(&mut kept, 0).unwrap();
        prop_assert_eq!(kept, model);
    }
}

fn extent(layer: &Layer, sector: u64, sectors: u64) -> Extent {
    let bytes = sectors * SECTOR_BYTES;
    layer.capacity().extent(Sector(sector), bytes).unwrap()
}

fn names(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

fn blocks_on_medium(file: &File) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap())
}

#[test]
fn layers_are_private_and_leave_no_name() {
    let (dir, template) = template_of(&content(), Flush::Volatile);
    let (one, two) = (template.layer().unwrap(), template.layer().unwrap());
    let first = extent(&one, 0, 1);
    write(&one, first, 0xee);
    assert_eq!(read(&one, first)[0], 0xee);
    assert_eq!(read(&two, first)[0], 1);
    assert_eq!(read(&template.layer().unwrap(), first)[0], 1);
    assert_eq!(names(dir.path()), 1, "only the template has a name");
    let template = std::fs::read(dir.path().join("template")).unwrap();
    assert!(template == content());
}

#[test]
fn a_layer_that_is_only_read_has_no_file() {
    let (_dir, template) = template_of(&content(), Flush::Durable);
    let layer = template.layer().unwrap();
    let all = extent(&layer, 0, SECTORS);
    assert_eq!(read(&layer, all), content());
    layer.prefetch(all);
    layer.flush().unwrap();
    // Nothing to do is nothing done.
    let none = extent(&layer, 1, 0);
    layer.write(none, &memory(), &[], Sync::No).unwrap();
    layer.discard(none).unwrap();
    assert!(layer.file.get().is_none());
}

#[test]
fn only_what_was_written_takes_space() {
    let (_dir, template) = template_of(&vec![3; 1 << 20], Flush::Volatile);
    let layer = template.layer().unwrap();
    write(&layer, extent(&layer, 16, 8), 9);
    write(&layer, extent(&layer, 801, 1), 9);
    let file = layer.file.get().unwrap();
    file.sync_all().unwrap();
    assert_eq!(blocks_on_medium(file), 16);
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    layer.discard(extent(&layer, 0, 2048)).unwrap();
    assert_eq!(blocks_on_medium(file), 0);
    assert_eq!(read(&layer, extent(&layer, 800, 8)), [0; 4096]);
}

#[test]
fn writers_of_one_block_keep_each_others_sectors() {
    let (_dir, template) = template_of(&content(), Flush::Volatile);
    for _ in 0..50 {
        let layer = template.layer().unwrap();
        std::thread::scope(|scope| {
            for first in 0..2 {
                let layer = &layer;
                scope.spawn(move || {
                    for sector in (first..SECTORS).step_by(2) {
                        write(layer, extent(layer, sector, 1), 0xee);
                    }
                });
            }
        });
        let all = read(&layer, extent(&layer, 0, SECTORS));
        assert!(all.iter().all(|byte| *byte == 0xee));
    }
}

#[test]
fn what_a_failed_write_left_is_not_the_disks() {
    let (_dir, template) = template_of(&content(), Flush::Volatile);
    let layer = template.layer().unwrap();
    write(&layer, extent(&layer, 0, 8), 9);
    let file = layer.file.get().unwrap();
    file.write_all_at(&[0xbb; 8192], 8192).unwrap();
    let mut expected = content();
    expected[..4096].fill(9);
    assert_eq!(read(&layer, extent(&layer, 0, SECTORS)), expected);
    write(&layer, extent(&layer, 17, 1), 8);
    expected[17 * 512..18 * 512].fill(8);
    assert_eq!(read(&layer, extent(&layer, 0, SECTORS)), expected);
    layer.complete().unwrap();
    let mut seen = vec![0; expected.len()];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(seen, expected);
}

#[test]
fn without_room_for_a_file_reading_goes_on() {
    let (dir, template) = template_of(&content(), Flush::Volatile);
    let layer = template.layer().unwrap();
    drop(dir);
    let first = extent(&layer, 0, 8);
    let outcome = layer.write(first, &memory(), &segments(4096), Sync::No);
    assert!(matches!(outcome, Err(iov::Error::Io(_))));
    assert!(layer.discard(first).is_err());
    assert_eq!(read(&layer, first), content()[..4096]);
}

#[test]
fn a_template_that_got_shorter_is_noticed() {
    let (dir, template) = template_of(&content(), Flush::Volatile);
    let layer = template.layer().unwrap();
    let path = dir.path().join("template");
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(4096).unwrap();
    let part = extent(&layer, 9, 1);
    let outcome = layer.write(part, &memory(), &segments(512), Sync::No);
    assert!(matches!(outcome, Err(iov::Error::Io(_))));
    assert!(layer.complete().is_err());
}
