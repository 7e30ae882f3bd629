//! The block backend as a hostile guest sees it: descriptor chains of every shape through
//! `queue::Drain` onto a real image and a real scratch layer.
//!
//! Checked: every chain that was taken is answered with a valid status in order, unless the session
//! ended; memory that the guest did not offer for writing stays as it was; the image does too.

#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use rundlet_fuzz::{INDIRECT, Input, NEXT, Ring, WRITE, describe_at, poke};
use rustix::fs::{Advice, fadvise};
use tempfile::TempDir;
use vhost_blk_ro::disk::{Disk, Serial};
use vhost_blk_ro::execute::Context;
use vhost_blk_ro::image::{Image, Source};
use vhost_blk_ro::queue::{Drain, Progress, Work};
use vhost_blk_ro::scratch::{Flush, Place, Template};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Two regions that meet, a hole, and one more.
const REGIONS: [(u64, usize); 3] = [(0, 0x9100), (0x9100, 0x6f00), (0x2_0000, 0x4000)];
const RING: u64 = 0x1000;
/// Indirect tables.
const TABLES: u64 = 0x5000;
const HEADERS: u64 = 0x6000;
const BUFFERS: u64 = 0x8000;
/// No descriptor offers this page for writing.
const CANARY: u64 = 0x2_2000;
const CANARY_BYTES: [u8; 4096] = [0xa5; 4096];
const IMAGE_BYTES: usize = 40_000;
const CHAINS: usize = 48;

struct Bench {
    memory: GuestMemoryMmap<()>,
    image: Disk,
    layer: Disk,
    content: Vec<u8>,
    file: File,
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("image");
        let content: Vec<u8> = (0..IMAGE_BYTES).map(|i| (i / 7) as u8).collect();
        std::fs::write(&path, &content).expect("space for an image");
        let file = File::open(&path).expect("the file just written");
        // Only clean pages can be dropped.
        file.sync_all().expect("a disk that works");
        let source = || Source::open(&path).expect("the file just written");
        let place = Place::open(folder.path()).expect("a folder");
        let template = Template::new(source(), place, Flush::Volatile, None)
            .expect("a folder that can hold layers");
        Self {
            memory: GuestMemoryMmap::from_ranges(&REGIONS.map(|(at, len)| (GuestAddress(at), len)))
                .expect("memory"),
            image: Disk::Image(Arc::new(Image::new(source()))),
            layer: Disk::Layer(template.layer().expect("a layer")),
            content,
            file,
            folder,
        }
    }

    fn run(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        let shape = input.u8();
        let size = 1 << (shape & 7);
        let disk = if shape & 8 == 0 {
            &self.image
        } else {
            &self.layer
        };
        let context = Context {
            serial: Serial::new("fuzz").expect("a serial"),
            write_through: shape & 16 != 0,
        };
        let work = Work { disk, context };
        if shape & 64 != 0 {
            // Reads wait for the medium, and look ahead.
            let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
        }
        let ring = Ring::new(&self.memory, RING, size);
        let mut queue = ring.queue(128, shape & 32 != 0);
        poke(&self.memory, CANARY, &CANARY_BYTES);
        let mut driver = Driver {
            memory: &self.memory,
            ring,
            size,
            free: 0,
            header: HEADERS,
            table: TABLES,
        };
        let mut drain = Drain::default();
        let mut alive = true;
        for _ in 0..CHAINS {
            if input.is_empty() || !alive {
                break;
            }
            driver.act(&mut input);
            if input.u8() & 3 != 0 {
                loop {
                    let before = driver.ring.used_index();
                    match drain.batch(&mut queue, &self.memory, &work, None) {
                        Ok(Progress::Drained) => break,
                        Ok(Progress::More) => {
                            assert_ne!(driver.ring.used_index(), before, "no progress");
                        }
                        Err(_) => {
                            alive = false;
                            break;
                        }
                    }
                }
                while let Some((head, len)) = driver.ring.take_used() {
                    assert!(head < u32::from(size) && len > 0, "{head} {len}");
                }
            }
        }
        let mut canary = [0; 4096];
        self.memory
            .read_slice(&mut canary, GuestAddress(CANARY))
            .expect("memory");
        assert!(
            canary == CANARY_BYTES,
            "memory was written that was not offered"
        );
    }

    fn check_image(&self) {
        let now = std::fs::read(self.folder.path().join("image")).expect("the image");
        assert!(now == self.content, "the image changed");
    }
}

struct Driver<'a> {
    memory: &'a GuestMemoryMmap<()>,
    ring: Ring,
    size: u16,
    free: u16,
    header: u64,
    table: u64,
}

impl Driver<'_> {
    fn act(&mut self, input: &mut Input<'_>) {
        match input.u8() {
            250 => self.ring.publish(input.u16()),
            251 => {
                let index = input.u16();
                let (addr, len) = (input.u64(), input.u32());
                let flags = self.harmless(addr, len, input.u16());
                self.ring.describe(index, addr, len, flags, input.u16());
            }
            252 => self.ring.post(input.u16()),
            253 => {
                // Buffers and headers only: a table written here could offer the canary.
                let at = HEADERS + u64::from(input.u16()) % 0x6000;
                poke(self.memory, at, input.bytes(32));
            }
            _ => self.request(input),
        }
    }

    /// A request in its usual form, cut into descriptors at will.
    fn request(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        let kind = match kind {
            0..=240 => u64::from([0_u8, 1, 4, 8, 11, 13, 0, 1][usize::from(kind) % 8]),
            _ => input.mostly(u64::from(kind)),
        };
        let sector = u64::from(input.u8() % 80);
        let sector = input.mostly(sector);
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes()[..4]);
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let at = self.header;
        self.header = HEADERS + (at + 16 - HEADERS) % 0x1000;
        poke(self.memory, at, &header);
        let mut pieces = Vec::new();
        // The header, whole or in two.
        match input.u8() {
            cut @ 200..=215 => {
                let cut = u32::from(cut - 200);
                pieces.push((at, cut, 0));
                pieces.push((at + u64::from(cut), 16 - cut, 0));
            }
            216 => pieces.push((at, input.u32(), 0)),
            _ => pieces.push((at, 16, 0)),
        }
        self.data(kind, input, &mut pieces);
        if input.u8() != 77 {
            pieces.push((BUFFERS - 1, 1, WRITE));
        }
        self.chain(input, &pieces);
    }

    /// The data part: ranges for discard and write-zeroes, else segments.
    fn data(&self, kind: u64, input: &mut Input<'_>, pieces: &mut Vec<(u64, u32, u16)>) {
        if matches!(kind, 11 | 13) {
            let count = u64::from(input.u8() % 4 + 1);
            for range in 0..count {
                let at = BUFFERS + 16 * range;
                let sector = u64::from(input.u8() % 80);
                poke(self.memory, at, &input.mostly(sector).to_le_bytes());
                let sectors = u64::from(input.u8() % 16);
                let sectors = input.mostly(sectors).to_le_bytes();
                poke(self.memory, at + 8, &sectors[..4]);
                let flags = u64::from(input.u8() & 1);
                poke(
                    self.memory,
                    at + 12,
                    &input.mostly(flags).to_le_bytes()[..4],
                );
            }
            let len = u32::try_from(16 * count).expect("small");
            pieces.push((BUFFERS, input.mostly(u64::from(len)) as u32, 0));
            return;
        }
        let flags = if matches!(kind, 0 | 8) { WRITE } else { 0 };
        for _ in 0..input.u8() % 6 {
            let at = BUFFERS + 256 * u64::from(input.u8());
            let len = match input.u8() {
                small @ 0..=31 => u64::from(small) * 512,
                odd => u64::from(odd) * 16,
            };
            let (at, len) = (input.mostly(at), input.mostly(len));
            let flags = if input.u8() == 99 {
                flags ^ WRITE
            } else {
                flags
            };
            pieces.push((at, len as u32, flags));
        }
    }

    /// Puts a chain into the table, or into an indirect one, and makes it available.
    fn chain(&mut self, input: &mut Input<'_>, pieces: &[(u64, u32, u16)]) {
        let indirect = input.u8() & 3 == 1;
        let head = self.free % self.size;
        for (index, &(addr, len, flags)) in (0_u16..).zip(pieces) {
            let more = if usize::from(index) + 1 < pieces.len() {
                NEXT
            } else {
                0
            };
            let flags = self.harmless(addr, len, flags | more);
            let next = index + 1;
            if indirect {
                let at = self.table + 16 * u64::from(index);
                describe_at(self.memory, at, addr, len, flags, next);
            } else {
                let next = (head + next) % self.size;
                self.ring.describe(head + index, addr, len, flags, next);
            }
        }
        let count = u16::try_from(pieces.len()).expect("few");
        if indirect {
            let len = input.mostly(16 * u64::from(count)) as u32;
            let flags = self.harmless(self.table, len, INDIRECT);
            self.ring.describe(head, self.table, len, flags, 0);
            self.table = TABLES + (self.table + 256 - TABLES) % 0xf00;
        }
        self.free = self.free.wrapping_add(if indirect { 1 } else { count });
        self.ring.post(head);
    }

    /// Never offers the canary, nor a ring, table or header, for writing; nor, as a table, memory whose
    /// bytes would be descriptors that nobody checked.
    fn harmless(&self, addr: u64, len: u32, mut flags: u16) -> u16 {
        let end = addr.saturating_add(u64::from(len));
        let touches = |start: u64, stop: u64| addr < stop && end > start;
        if touches(RING, BUFFERS - 1) || touches(CANARY, CANARY + 4096) {
            flags &= !WRITE;
        }
        let a_table = addr >= TABLES && end <= HEADERS && addr.is_multiple_of(16);
        if !a_table && touches(0, REGIONS[2].0 + REGIONS[2].1 as u64) {
            flags &= !INDIRECT;
        }
        flags
    }
}

thread_local! {
    static BENCH: RefCell<(Bench, u64)> = RefCell::new((Bench::new(), 0));
}

fuzz_target!(|data: &[u8]| {
    BENCH.with_borrow_mut(|(bench, runs)| {
        bench.run(data);
        *runs += 1;
        if runs.is_multiple_of(256) {
            bench.check_image();
        }
    });
});
