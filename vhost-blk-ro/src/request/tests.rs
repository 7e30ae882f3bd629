use proptest::prelude::*;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::*;

const MEMORY: u64 = 1 << 20;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

/// Descriptors linked by their flags alone, as the chain iterator yields them.
fn chain(pieces: &[(u64, u32, bool)]) -> Vec<Descriptor> {
    let last = pieces.len().saturating_sub(1);
    let link = |(i, (addr, len, write)): (usize, &(u64, u32, bool))| {
        let flags = if i < last { NEXT } else { 0 } | if *write { WRITE } else { 0 };
        Descriptor::new(*addr, *len, flags, 0)
    };
    pieces.iter().enumerate().map(link).collect()
}

fn put_header(memory: &GuestMemoryMmap, at: u64, kind: u32, sector: u64) {
    memory.write_obj(kind.to_le(), GuestAddress(at)).unwrap();
    memory
        .write_obj(sector.to_le(), GuestAddress(at + 8))
        .unwrap();
}

/// What `pieces` parse to when a header for `kind` lies at address 0.
fn refusal(kind: u32, pieces: &[(u64, u32, bool)]) -> Refusal {
    let memory = memory();
    put_header(&memory, 0, kind, 0);
    let mut buffers = Buffers::default();
    let parsed = parse(chain(pieces).into_iter(), &memory, &mut buffers).unwrap();
    parsed.request.unwrap_err()
}

fn broken(descriptors: Vec<Descriptor>) -> Broken {
    parse(descriptors.into_iter(), &memory(), &mut Buffers::default()).unwrap_err()
}

#[test]
fn chains_without_a_place_for_the_answer_are_broken() {
    assert_eq!(broken(vec![]), Broken::Truncated);
    let cut = vec![
        Descriptor::new(0, 16, NEXT, 1),
        Descriptor::new(16, 1, NEXT | WRITE, 9),
    ];
    assert_eq!(broken(cut), Broken::Truncated);
    assert_eq!(broken(chain(&[(0, 16, false)])), Broken::NoStatus);
    assert_eq!(
        broken(chain(&[(0, 16, false), (64, 0, true)])),
        Broken::NoStatus
    );
    let outside = chain(&[(0, 16, false), (MEMORY, 1, true)]);
    assert_eq!(broken(outside), Broken::StatusOutsideMemory(MEMORY));
    let wraps = chain(&[(0, 16, false), (u64::MAX, 8, true)]);
    assert_eq!(broken(wraps), Broken::StatusOutsideMemory(u64::MAX));
}

#[test]
fn mistakes_with_a_place_for_the_answer_are_refused() {
    let status = (4096, 1, true);
    let read = abi::VIRTIO_BLK_T_IN;
    let write = abi::VIRTIO_BLK_T_OUT;
    assert_eq!(
        refusal(read, &[(0, 15, false), status]),
        Refusal::ShortHeader
    );
    assert_eq!(
        refusal(read, &[(MEMORY - 4, 16, false), status]),
        Refusal::OutsideMemory
    );
    assert_eq!(
        refusal(read, &[(0, 16, false), (512, 100, true), status]),
        Refusal::Shape(read)
    );
    assert_eq!(
        refusal(read, &[(0, 16 + 512, false), status]),
        Refusal::Shape(read)
    );
    assert_eq!(
        refusal(write, &[(0, 16, false), (512, 512, true), status]),
        Refusal::Shape(write)
    );
    assert_eq!(
        refusal(write, &[(0, 16 + 100, false), status]),
        Refusal::Shape(write)
    );
    assert_eq!(
        refusal(read, &[(0, 16, false), status, (512, 16, false)]),
        Refusal::Order
    );
    assert_eq!(
        refusal(99, &[(0, 16, false), status]),
        Refusal::UnknownType(99)
    );
    assert_eq!(Refusal::UnknownType(99).status(), Status::Unsupported);
    assert_eq!(refusal(8, &[(0, 16, false), status]), Refusal::Shape(8));
    let many: Vec<_> = std::iter::once((0, 16, false))
        .chain((0..2000).map(|i| (i * 512, 512, true)))
        .chain([status])
        .collect();
    assert_eq!(refusal(read, &many), Refusal::TooManySegments);
    let large: Vec<_> = std::iter::once((0, 16, false))
        .chain((0..3).map(|_| (0, 1 << 30, true)))
        .chain([status])
        .collect();
    assert_eq!(refusal(read, &large), Refusal::TooLarge);
}

#[test]
fn ranges_are_checked_against_the_offer() {
    let memory = memory();
    let mut buffers = Buffers::default();
    let mut parse_ranges = |kind, list: &[(u64, u32, u32)]| {
        put_header(&memory, 0, kind, 0);
        for (i, (sector, sectors, flags)) in list.iter().enumerate() {
            let at = 512 + 16 * i as u64;
            memory.write_obj(sector.to_le(), GuestAddress(at)).unwrap();
            memory
                .write_obj(sectors.to_le(), GuestAddress(at + 8))
                .unwrap();
            memory
                .write_obj(flags.to_le(), GuestAddress(at + 12))
                .unwrap();
        }
        let bytes = u32::try_from(16 * list.len()).unwrap();
        let pieces = [(0, 16, false), (512, bytes, false), (4096, 1, true)];
        let parsed = parse(chain(&pieces).into_iter(), &memory, &mut buffers).unwrap();
        parsed.request.map(|request| match request {
            Request::Discard { ranges } | Request::WriteZeroes { ranges } => ranges.to_vec(),
            other => panic!("{other:?}"),
        })
    };
    let range = |sector, sectors, unmap| Range {
        sector: Sector(sector),
        sectors,
        unmap,
    };
    let (discard, zeroes) = (abi::VIRTIO_BLK_T_DISCARD, abi::VIRTIO_BLK_T_WRITE_ZEROES);
    assert_eq!(
        parse_ranges(discard, &[(7, 8, 0)]),
        Ok(vec![range(7, 8, false)])
    );
    let both = [(0, 1, 1), (9, 2, 0)];
    assert_eq!(
        parse_ranges(zeroes, &both),
        Ok(vec![range(0, 1, true), range(9, 2, false)])
    );
    assert_eq!(
        parse_ranges(discard, &[(7, 8, 1)]),
        Err(Refusal::RangeFlags(1))
    );
    assert_eq!(
        parse_ranges(zeroes, &[(7, 8, 2)]),
        Err(Refusal::RangeFlags(2))
    );
    assert_eq!(Refusal::RangeFlags(2).status(), Status::Unsupported);
    let too_long = (0, RANGE_SECTORS_MAX + 1, 0);
    assert_eq!(
        parse_ranges(discard, &[too_long]),
        Err(Refusal::RangeLimits)
    );
    let most = vec![(0, 1, 0); RANGES_MAX as usize];
    assert_eq!(
        parse_ranges(discard, &most).map(|r| r.len()),
        Ok(most.len())
    );
    let too_many = vec![(0, 1, 0); RANGES_MAX as usize + 1];
    assert_eq!(parse_ranges(discard, &too_many), Err(Refusal::RangeLimits));
    assert_eq!(parse_ranges(discard, &[]), Err(Refusal::Shape(discard)));
}

#[test]
fn the_id_goes_as_far_as_its_buffer() {
    let memory = memory();
    put_header(&memory, 0, abi::VIRTIO_BLK_T_GET_ID, 0);
    let mut buffers = Buffers::default();
    for (room, expected) in [(20, 20), (64, 20), (5, 5)] {
        let pieces = [(0, 16, false), (512, room, true), (4096, 1, true)];
        let parsed = parse(chain(&pieces).into_iter(), &memory, &mut buffers).unwrap();
        assert!(matches!(parsed.request, Ok(Request::GetId { bytes, .. }) if bytes == expected));
    }
}

/// Cuts `bytes` from `at` on into pieces at the given fractions, with empty ones in between.
fn cut(at: u64, bytes: u32, cuts: &[u32], write: bool) -> Vec<(u64, u32, bool)> {
    let mut places: Vec<u32> = cuts.iter().map(|c| c % (bytes + 1)).collect();
    places.extend([0, bytes]);
    places.sort_unstable();
    places
        .windows(2)
        .map(|w| (at + u64::from(w[0]), w[1] - w[0], write))
        .collect()
}

fn bytes_of(segments: &[Segment]) -> Vec<u64> {
    segments
        .iter()
        .flat_map(|s| s.addr.0..s.addr.0 + u64::from(s.len))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The same streams in any descriptors are the same request.
    #[test]
    fn any_split_is_the_same_request(
        is_read in any::<bool>(),
        sectors in 0..40u32,
        sector in any::<u64>(),
        cuts in prop::collection::vec(any::<u32>(), 0..12),
    ) {
        let memory = memory();
        let kind = if is_read { abi::VIRTIO_BLK_T_IN } else { abi::VIRTIO_BLK_T_OUT };
        let (header, out) = (4096, 1 << 16);
        put_header(&memory, header, kind, sector);
        let data = sectors * 512;
        let (readable, writable) = if is_read { (16, data + 1) } else { (16 + data, 1) };
        let mut pieces = cut(header, readable, &cuts, false);
        pieces.extend(cut(out, writable, &cuts, true));
        let mut buffers = Buffers::default();
        let parsed = parse(chain(&pieces).into_iter(), &memory, &mut buffers).unwrap();
        prop_assert_eq!(parsed.status.0, out + u64::from(writable) - 1);
        let (bytes, segments, first) = match parsed.request.unwrap() {
            Request::Read { sector: s, bytes, into } if s.0 == sector && is_read => (bytes, into, out),
            Request::Write { sector: s, bytes, from } if s.0 == sector && !is_read => {
                (bytes, from, header + 16)
            }
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(bytes, u64::from(data));
        prop_assert_eq!(bytes_of(segments), (first..first + bytes).collect::<Vec<_>>());
    }

    /// Arbitrary descriptors over arbitrary memory: no panic, and an answer always has a place.
    #[test]
    fn arbitrary_chains_are_harmless(
        descriptors in prop::collection::vec(
            (prop_oneof![0..MEMORY + 64, any::<u64>()], prop_oneof![0..64u32, any::<u32>()], 0..4u16),
            0..40,
        ),
        content in prop::collection::vec(any::<u8>(), 256),
    ) {
        let memory = memory();
        memory.write_slice(&content, GuestAddress(0)).unwrap();
        let list = descriptors.iter().map(|(addr, len, flags)| Descriptor::new(*addr, *len, *flags, 0));
        let mut buffers = Buffers::default();
        if let Ok(parsed) = parse(list, &memory, &mut buffers) {
            prop_assert!(parsed.status.0 < MEMORY);
            if let Ok(Request::Read { bytes, into: data, .. } | Request::Write { bytes, from: data, .. }) =
                parsed.request
            {
                prop_assert_eq!(data.iter().map(|s| u64::from(s.len)).sum::<u64>(), bytes);
                prop_assert!(bytes <= MAX_DATA_BYTES && bytes % 512 == 0);
            }
        }
    }
}
