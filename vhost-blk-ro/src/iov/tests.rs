use std::io::{Read, Seek, Write};

use vm_memory::Bytes;

use super::*;

fn segment(addr: u64, len: u32) -> Segment {
    Segment {
        addr: GuestAddress(addr),
        len,
    }
}

fn memory() -> GuestMemoryMmap {
    // Two adjacent regions, then a hole.
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x40000)])
        .unwrap()
}

#[test]
fn any_split_reads_the_same_bytes() {
    let data: Vec<u8> = (0..0x4000u32).map(|i| (i * 7 % 251) as u8).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&data).unwrap();
    let memory = memory();
    // 200 segments: more than one call's worth; the first spans both regions.
    let mut segments = vec![segment(0xf80, 0x100)];
    segments.extend((0..199).map(|i| segment(0x4000 + i * 0x80, 0x40)));
    let n = read(&file, 3, &memory, Span::whole(&segments), Wait::Yes).unwrap();
    assert_eq!(n, 0x100 + 199 * 0x40);
    let mut seen = Vec::new();
    for s in &segments {
        let mut piece = vec![0; s.len as usize];
        memory.read_slice(&mut piece, s.addr).unwrap();
        seen.extend(piece);
    }
    assert_eq!(seen, data[3..3 + seen.len()]);
}

#[test]
fn a_span_is_exactly_its_part() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[9; 4096]).unwrap();
    let segments = [segment(0, 100), segment(200, 100), segment(0xfff, 100)];
    for (skip, bytes) in [
        (0, 300),
        (0, 100),
        (50, 100),
        (100, 150),
        (250, 50),
        (299, 1),
        (300, 0),
    ] {
        let memory = memory();
        let span = Span {
            segments: &segments,
            skip,
            bytes,
        };
        assert_eq!(read(&file, 0, &memory, span, Wait::Yes).unwrap(), bytes);
        let mut seen = Vec::new();
        for s in &segments {
            let mut piece = vec![0; s.len as usize];
            memory.read_slice(&mut piece, s.addr).unwrap();
            seen.extend(piece);
        }
        let touched = (0..300u64).map(|i| {
            if (skip..skip + bytes).contains(&i) {
                9
            } else {
                0
            }
        });
        assert_eq!(seen, touched.collect::<Vec<u8>>(), "{skip} {bytes}");
    }
}

#[test]
fn the_end_of_the_file_is_a_short_count() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[1; 100]).unwrap();
    assert_eq!(
        read(
            &file,
            60,
            &memory(),
            Span::whole(&[segment(0, 512)]),
            Wait::Yes
        )
        .unwrap(),
        40
    );
    assert_eq!(
        read(
            &file,
            100,
            &memory(),
            Span::whole(&[segment(0, 512)]),
            Wait::Yes
        )
        .unwrap(),
        0
    );
}

#[test]
fn outside_the_memory_is_refused() {
    let file = tempfile::tempfile().unwrap();
    for bad in [
        segment(0x40fff, 2),
        segment(u64::MAX, 2),
        segment(1 << 40, 1),
    ] {
        let error = write(&file, 0, &memory(), &[segment(0, 16), bad], Sync::No);
        assert!(matches!(error, Err(Error::OutsideMemory)), "{bad:?}");
    }
}

#[test]
fn writes_arrive_whole() {
    let memory = memory();
    memory
        .write_slice(b"hello world", GuestAddress(0xffa))
        .unwrap();
    let mut file = tempfile::tempfile().unwrap();
    let pieces = [segment(0xffa, 3), segment(0xffd, 8)];
    write(&file, 5, &memory, &pieces, Sync::Data).unwrap();
    let mut text = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut text).unwrap();
    assert_eq!(text, b"\0\0\0\0\0hello world");
}

#[test]
fn a_read_only_file_cannot_be_written() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = File::open(file.path()).unwrap();
    let error = write(&file, 0, &memory(), &[segment(0, 16)], Sync::No);
    assert!(matches!(error, Err(Error::Io(_))));
}

#[test]
fn advance_skips_across_segments() {
    let mut list = [segment(0, 10), segment(100, 10), segment(200, 10)];
    assert_eq!(advance(&mut list, 16), [segment(106, 4), segment(200, 10)]);
    assert!(advance(&mut list, 1000).is_empty());
    let mut list = [segment(0, 16), segment(100, 10)];
    assert_eq!(advance(&mut list, 16), [segment(100, 10)]);
}
