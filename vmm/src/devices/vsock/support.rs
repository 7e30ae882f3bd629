//! Guest memory for tests, with packets cut into descriptors at will.

use std::sync::LazyLock;

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::packet::{HEADER_LEN, HOST_CID, Header, Op, RxBuffer, TYPE_STREAM, TxPacket};
use crate::memory::GuestMemory;

pub(super) const GUEST_CID: u64 = 3;

/// Untouched bytes between two descriptors.
const GAP: u64 = 3;
/// Where the room for packets to the guest starts; packets from it are below.
const ROOM: u64 = 0x8_0000;

/// 1 MiB of guest memory in two regions that meet inside a packet.
#[derive(Debug)]
pub(super) struct Arena {
    pub(super) memory: GuestMemory,
}

impl Arena {
    pub(super) fn new() -> Self {
        let split = 0x1020;
        let regions = [
            (GuestAddress(0), split),
            (GuestAddress(0x1020), 0x10_0000 - split),
        ];
        Self {
            memory: GuestMemory::from_ranges(&regions).unwrap(),
        }
    }

    /// Descriptors of the given lengths; `total` bytes, the last one takes the rest.
    fn descriptors(start: u64, total: usize, cuts: &[usize], flags: u32) -> Vec<Descriptor> {
        let mut address = start;
        let mut left = total;
        let mut list = Vec::new();
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let len = cut.min(left);
            let next = u16::try_from(VRING_DESC_F_NEXT | flags).unwrap();
            list.push(Descriptor::new(
                address,
                u32::try_from(len).unwrap(),
                next,
                0,
            ));
            address += len as u64 + GAP;
            left -= len;
        }
        list
    }

    /// Writes a packet, cut at these lengths; the descriptors of its chain.
    pub(super) fn chain(&self, header: &Header, payload: &[u8], cuts: &[usize]) -> Vec<Descriptor> {
        let mut bytes = header.encode().to_vec();
        bytes.extend(payload);
        let list = Self::descriptors(0x1000, bytes.len(), cuts, 0);
        let mut rest = bytes.as_slice();
        for descriptor in &list {
            let (now, later) = rest.split_at(descriptor.len() as usize);
            self.memory.write_slice(now, descriptor.addr()).unwrap();
            rest = later;
        }
        list
    }

    /// A packet from the guest, as parsed.
    pub(super) fn packet(&self, header: &Header, payload: &[u8], cuts: &[usize]) -> TxPacket<'_> {
        let chain = self.chain(header, payload, cuts);
        TxPacket::parse(&self.memory, chain.into_iter()).unwrap()
    }

    /// Room for a packet with `payload` bytes to the guest.
    pub(super) fn room(&self, payload: usize, cuts: &[usize]) -> (RxBuffer<'_>, Vec<Descriptor>) {
        let list = Self::descriptors(ROOM, HEADER_LEN + payload, cuts, VRING_DESC_F_WRITE);
        let room = RxBuffer::parse(&self.memory, list.iter().copied()).unwrap();
        (room, list)
    }

    /// Reads back what was put into that room.
    pub(super) fn read_room(&self, list: &[Descriptor], used: u32) -> (Header, Vec<u8>) {
        let mut bytes = Vec::new();
        for descriptor in list {
            let mut part = vec![0; descriptor.len() as usize];
            self.memory
                .read_slice(&mut part, descriptor.addr())
                .unwrap();
            bytes.extend(part);
        }
        bytes.truncate(used as usize);
        let payload = bytes.split_off(HEADER_LEN);
        let header = Header::decode(bytes.first_chunk().unwrap());
        assert_eq!(header.len as usize, payload.len());
        (header, payload)
    }
}

/// A header as the guest would write it.
pub(super) fn header(op: Op, host: u32, guest: u32) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        kind: TYPE_STREAM,
        op: op.to_wire(),
        buf_alloc: 64 * 1024,
        ..Header::default()
    }
}

/// Bytes that differ from their neighbours near and far, from position `at` of an endless stream: it
/// repeats after a prime number of them.
pub(super) fn pattern(at: u64, len: usize) -> Vec<u8> {
    const PERIOD: usize = 65_521;
    static ONE_PERIOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mixed = (0..PERIOD as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        mixed.map(|[first, ..]| first).collect()
    });
    let mut at = usize::try_from(at).unwrap() % PERIOD;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let end = PERIOD.min(at + len - bytes.len());
        bytes.extend_from_slice(&ONE_PERIOD[at..end]);
        at = 0;
    }
    bytes
}
