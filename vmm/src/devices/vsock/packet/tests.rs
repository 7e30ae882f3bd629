use proptest::prelude::*;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::*;
use crate::devices::vsock::support::{Arena, header, pattern};

/// VIRTQ_DESC_F_WRITE.
const WRITE: u16 = 2;

fn some_header() -> Header {
    Header {
        src_cid: 0x0102_0304_0506_0708,
        dst_cid: 0x1112_1314_1516_1718,
        src_port: 0x2122_2324,
        dst_port: 0x3132_3334,
        len: 0x4142_4344,
        kind: 0x5152,
        op: 0x6162,
        flags: 0x7172_7374,
        buf_alloc: 0x8182_8384,
        fwd_cnt: 0x9192_9394,
    }
}

#[test]
fn the_header_is_as_in_the_standard() {
    let bytes = some_header().encode();
    let expected = [
        0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01, // src_cid
        0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, // dst_cid
        0x24, 0x23, 0x22, 0x21, 0x34, 0x33, 0x32, 0x31, // ports
        0x44, 0x43, 0x42, 0x41, 0x52, 0x51, 0x62, 0x61, // len, type, op
        0x74, 0x73, 0x72, 0x71, 0x84, 0x83, 0x82, 0x81, // flags, buf_alloc
        0x94, 0x93, 0x92, 0x91, // fwd_cnt
    ];
    assert_eq!(bytes, expected);
    assert_eq!(Header::decode(&expected), some_header());
}

#[test]
fn operations_have_their_numbers() {
    let known: Vec<u16> = (0..=u16::MAX)
        .filter(|op| Op::from_wire(*op).is_some())
        .collect();
    assert_eq!(known, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(Op::from_wire(5), Some(Op::Rw));
}

#[test]
fn a_short_chain_is_refused() {
    let arena = Arena::new();
    for len in [0, 1, 43] {
        let chain = [Descriptor::new(0x1000, len, 0, 0)];
        let error = TxPacket::parse(&arena.memory, chain.into_iter()).unwrap_err();
        assert!(matches!(error, PacketError::TooShort(_)), "{error}");
    }
    let nothing = TxPacket::parse(&arena.memory, std::iter::empty()).unwrap_err();
    assert!(matches!(nothing, PacketError::TooShort(0)));
    for len in [0, 43, 44] {
        let chain = [Descriptor::new(0x1000, len, WRITE, 0)];
        assert!(RxBuffer::parse(&arena.memory, chain.into_iter()).is_err());
    }
    let chain = [Descriptor::new(0x1000, 45, WRITE, 0)];
    assert!(RxBuffer::parse(&arena.memory, chain.into_iter()).is_ok());
}

#[test]
fn a_length_beyond_the_chain_is_refused_with_its_header() {
    let arena = Arena::new();
    for len in [11, 64 * 1024 + 1, u32::MAX] {
        let header = Header {
            len,
            ..header(Op::Rw, 1, 2)
        };
        let chain = arena.chain(&header, &[0; 10], &[]);
        match TxPacket::parse(&arena.memory, chain.into_iter()) {
            Err(PacketError::PayloadBeyondChain {
                header: found,
                available: 10,
            }) => assert_eq!(found, header),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_packet_of_more_than_64_kib_is_refused() {
    let arena = Arena::new();
    let header = Header {
        len: 64 * 1024 + 1,
        ..header(Op::Rw, 1, 2)
    };
    let chain = arena.chain(&header, &vec![0; 64 * 1024 + 1], &[]);
    assert!(TxPacket::parse(&arena.memory, chain.into_iter()).is_err());
}

#[test]
fn addresses_outside_memory_are_refused() {
    let arena = Arena::new();
    for (address, len) in [
        (0x10_0000, 100),
        (0x10_0000 - 50, 100),
        (u64::MAX, 100),
        (u64::MAX - 50, 51),
        (0, u32::MAX),
    ] {
        let chain = [Descriptor::new(address, len, 0, 0)];
        let result = TxPacket::parse(&arena.memory, chain.into_iter());
        // 4 GiB from address 0 is cut to what a packet may have.
        assert_eq!(result.is_err(), address != 0, "{address:#x}");
        let chain = [Descriptor::new(address, len, WRITE, 0)];
        let result = RxBuffer::parse(&arena.memory, chain.into_iter());
        assert_eq!(result.is_err(), address != 0, "{address:#x}");
    }
}

#[test]
fn an_endless_chain_ends() {
    let arena = Arena::new();
    let nothing = std::iter::repeat(Descriptor::new(0x1000, 0, 0, 0));
    let error = TxPacket::parse(&arena.memory, nothing).unwrap_err();
    assert!(
        matches!(error, PacketError::Chain(BytesError::TooManyDescriptors)),
        "{error}"
    );
    let readable_only = std::iter::repeat(Descriptor::new(0x1000, 8, 0, 0));
    assert!(RxBuffer::parse(&arena.memory, readable_only).is_err());
}

#[test]
fn descriptors_of_the_wrong_direction_do_not_count() {
    let arena = Arena::new();
    let header = Header {
        len: 4,
        ..header(Op::Rw, 1, 2)
    };
    let mut chain = arena.chain(&header, b"data", &[44]);
    chain.insert(1, Descriptor::new(0x2000, 100, WRITE, 0));
    let error = TxPacket::parse(&arena.memory, chain.into_iter()).unwrap_err();
    assert!(matches!(
        error,
        PacketError::PayloadBeyondChain { available: 0, .. }
    ));
}

/// Has three bytes for every call.
struct Trickle;

impl ReadVolatile for Trickle {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        buffer.subslice(0, 3)?.copy_from(b"abc");
        Ok(3)
    }
}

#[test]
fn a_short_read_ends_there() {
    let arena = Arena::new();
    let (buffer, _) = arena.room(20, &[HEADER_LEN, 10]);
    // Going on with the next piece would leave a hole in this one.
    assert_eq!(buffer.payload(20).read_from(&mut Trickle).unwrap(), 3);
}

proptest! {
    #[test]
    fn any_cut_is_the_same_packet(
        len in 0_usize..5000,
        extra in 0_usize..100,
        cuts in prop::collection::vec(0_usize..400, 0..40),
    ) {
        let arena = Arena::new();
        let header = Header { len: u32::try_from(len).unwrap(), ..header(Op::Rw, 7, 9) };
        let payload = pattern(0, len + extra);
        let packet = arena.packet(&header, &payload, &cuts);
        prop_assert_eq!(packet.header, header);
        let mut found = vec![0; len + extra];
        prop_assert_eq!(packet.payload.copy_to(&mut found), len);
        prop_assert_eq!(&found[..len], &payload[..len]);
    }

    #[test]
    fn any_room_takes_the_same_packet(
        room in 1_usize..5000,
        limit in 0_usize..6000,
        cuts in prop::collection::vec(0_usize..400, 0..40),
    ) {
        let arena = Arena::new();
        let (buffer, list) = arena.room(room, &cuts);
        let data = pattern(5, 6000);
        let part = buffer.payload(limit);
        let len = part.read_from(&mut data.as_slice()).unwrap();
        prop_assert_eq!(len, room.min(limit));
        let header = Header { len: u32::try_from(len).unwrap(), ..header(Op::Rw, 7, 9) };
        let used = buffer.finish(&header);
        let (found, payload) = arena.read_room(&list, used);
        prop_assert_eq!(found, header);
        prop_assert_eq!(payload, &data[..len]);
    }

    #[test]
    fn bytes_split_anywhere(
        len in 0_usize..500,
        at in 0_usize..600,
        cuts in prop::collection::vec(0_usize..60, 0..20),
    ) {
        let arena = Arena::new();
        let header = Header { len: u32::try_from(len).unwrap(), ..Header::default() };
        let payload = pattern(1, len);
        let bytes = arena.packet(&header, &payload, &cuts).payload;
        let (mut first, mut rest) = (Vec::new(), Vec::new());
        bytes.first(at).write_to(&mut first).unwrap();
        bytes.after(at).write_to(&mut rest).unwrap();
        prop_assert_eq!(&first[..], &payload[..at.min(len)]);
        prop_assert_eq!(&rest[..], &payload[at.min(len)..]);
    }
}
