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
fn the_window_is_a_file_and_the_same_memory() {
    use std::os::unix::fs::FileExt;
    let ram = GuestRam::allocate(&spec(64, 2)).unwrap();
    assert_eq!(ram.low_end(), 64 * MIB);
    assert_eq!(ram.memory().num_regions(), 1, "one memory slot");
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
fn nothing_but_the_window_goes_into_a_file() {
    use std::os::unix::fs::FileExt;
    let template = tempfile::tempfile().unwrap();
    let spec = spec(3073, 1);
    template.set_len(3072 * MIB).unwrap();
    // The first page behind the window, and the first above 4 GiB.
    let behind = (8 * MIB, GuestAddress(9 * MIB));
    let high = (3071 * MIB, GuestAddress(4 * GIB));
    template.write_all_at(&[1], behind.0).unwrap();
    template.write_all_at(&[2], high.0).unwrap();
    let ram = GuestRam::private_over(&spec, &template).unwrap();
    assert_eq!(ram.memory().num_regions(), 2);
    let read = |at| ram.memory().read_obj::<u8>(at).unwrap();
    assert_eq!((read(behind.1), read(high.1)), (1, 2));
    let window = GuestAddress(8 * MIB);
    assert_eq!(read(window), 0);
    for at in [behind.1, high.1, window] {
        ram.memory().write_obj(7_u8, at).unwrap();
    }
    let mut byte = [0];
    for (offset, value) in [(behind.0, 1), (high.0, 2)] {
        template.read_exact_at(&mut byte, offset).unwrap();
        assert_eq!(byte, [value]);
    }
    ram.window().file.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [7]);
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
    let refused = |start, len, offset| ram.map_file(Range::new(start, len), &file, offset).is_err();
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
    assert!(rustix::fs::fcntl_add_seals(&ram.window().file, rustix::fs::SealFlags::WRITE).is_err());
}
