use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::pool::Pool;
use super::*;
use crate::disk::{SECTOR_BYTES, Sector};

const SECTORS: u64 = 64;

fn template_of(content: &[u8], flush: Flush) -> (tempfile::TempDir, Template) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("template");
    std::fs::write(&path, content).unwrap();
    let template = Template::new(Source::open(&path).unwrap(), dir.path(), flush);
    (dir, template)
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
            let extent = layer.capacity().extent(Sector(sector), count * SECTOR_BYTES).unwrap();
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
        let all = layer.capacity().extent(Sector(0), SECTORS * SECTOR_BYTES).unwrap();
        prop_assert_eq!(read(&layer, all), model);
    }
}

#[test]
fn layers_are_private_and_leave_no_name() {
    let (dir, template) = template_of(&content(), Flush::Volatile);
    let (one, two) = (template.layer().unwrap(), template.layer().unwrap());
    let extent = one.capacity().extent(Sector(0), SECTOR_BYTES).unwrap();
    write(&one, extent, 0xee);
    assert_eq!(read(&one, extent)[0], 0xee);
    assert_eq!(read(&two, extent)[0], 1);
    assert_eq!(read(&template.layer().unwrap(), extent)[0], 1);
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "only the template has a name: {names:?}");
}

#[test]
fn an_odd_sized_template_is_padded_with_zeroes() {
    let (_dir, template) = template_of(&[7; 700], Flush::Volatile);
    let layer = template.layer().unwrap();
    let extent = layer.capacity().extent(Sector(1), SECTOR_BYTES).unwrap();
    let seen = read(&layer, extent);
    assert!(seen[..188].iter().all(|b| *b == 7) && seen[188..].iter().all(|b| *b == 0));
}

#[test]
fn discard_gives_space_back() {
    use std::os::unix::fs::MetadataExt;
    let (_dir, template) = template_of(&vec![3; 1 << 20], Flush::Volatile);
    let layer = template.layer().unwrap();
    let before = layer.file.metadata().unwrap().blocks();
    let all = layer.capacity().extent(Sector(0), 1 << 20).unwrap();
    layer.discard(all).unwrap();
    assert!(layer.file.metadata().unwrap().blocks() < before);
    assert_eq!(layer.file.metadata().unwrap().len(), 1 << 20);
}

#[test]
fn a_changed_template_is_refused() {
    let (dir, template) = template_of(&content(), Flush::Volatile);
    let file = File::options()
        .write(true)
        .open(dir.path().join("template"))
        .unwrap();
    file.write_all_at(b"new", 1 << 20).unwrap();
    assert!(matches!(
        template.layer(),
        Err(Error::Template(image::Error::Changed { .. }))
    ));
}

#[test]
fn a_missing_directory_is_named() {
    let (dir, mut template) = template_of(&content(), Flush::Volatile);
    template.directory = dir.path().join("none");
    let error = template.layer().unwrap_err().to_string();
    assert!(error.contains("none"), "{error}");
}

#[test]
fn the_pool_gives_distinct_layers_and_survives_an_error() {
    let (dir, template) = template_of(&content(), Flush::Volatile);
    let pool = Pool::start(Arc::new(template), 2).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let extent = pool
        .template()
        .capacity()
        .extent(Sector(0), SECTOR_BYTES)
        .unwrap();
    for _ in 0..20 {
        let layer = pool.take().unwrap();
        assert_eq!(read(&layer, extent)[0], 1);
        write(&layer, extent, 9);
        assert!(Instant::now() < deadline);
    }
    let file = File::options()
        .write(true)
        .open(dir.path().join("template"))
        .unwrap();
    file.write_all_at(b"new", 1 << 20).unwrap();
    // At most the layers made before the change are still handed out.
    let refused = (0..5).filter(|_| pool.take().is_err()).count();
    assert!(refused >= 2, "{refused}");
}
