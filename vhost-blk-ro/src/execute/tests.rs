use std::cell::Cell;
use std::sync::Arc;

use vm_memory::GuestAddress;

use super::*;
use crate::image::{Image, Source};
use crate::scratch::Template;

struct Bench {
    dir: tempfile::TempDir,
    memory: GuestMemoryMmap,
    context: Context,
}

const AT: GuestAddress = GuestAddress(0x1000);

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("odd"), vec![5; 5000]).unwrap();
        std::fs::write(dir.path().join("even"), vec![6; 8192]).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let context = Context {
            serial: Serial::new("abc").unwrap(),
            write_through: false,
        };
        Self {
            dir,
            memory,
            context,
        }
    }

    fn source(&self, name: &str) -> Source {
        Source::open(&self.dir.path().join(name)).unwrap()
    }

    fn image(&self) -> Disk {
        Disk::Image(Arc::new(Image::new(self.source("odd"))))
    }

    fn layer(&self, flush: Flush) -> Disk {
        let template = Template::new(
            self.source("even"),
            crate::scratch::Place::open(self.dir.path()).unwrap(),
            flush,
            None,
        )
        .unwrap();
        Disk::Layer(template.layer().unwrap())
    }

    fn run(&self, disk: &Disk, request: &Request<'_>) -> Result<u64, Failure> {
        execute(request, disk, &self.memory, &self.context, &mut || {})
    }

    fn bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, AT).unwrap();
        bytes
    }
}

fn segments(len: u32) -> [Segment; 1] {
    [Segment { addr: AT, len }]
}

#[test]
fn the_tail_of_an_odd_image_is_zero() {
    let bench = Bench::new();
    let image = bench.image();
    bench.memory.write_slice(&[0xff; 1024], AT).unwrap();
    let request = Request::Read {
        sector: Sector(8),
        bytes: 1024,
        into: &segments(1024),
    };
    assert_eq!(bench.run(&image, &request).unwrap(), 1024);
    let seen = bench.bytes(1024);
    assert!(seen[..904].iter().all(|b| *b == 5) && seen[904..].iter().all(|b| *b == 0));
    let beyond = Request::Read {
        sector: Sector(9),
        bytes: 1024,
        into: &segments(1024),
    };
    assert!(matches!(
        bench.run(&image, &beyond),
        Err(Failure::OutOfRange { .. })
    ));
}

#[test]
fn the_tail_of_an_odd_template_is_zero_until_it_is_written() {
    let bench = Bench::new();
    let template = Template::new(
        bench.source("odd"),
        crate::scratch::Place::open(bench.dir.path()).unwrap(),
        Flush::Volatile,
        None,
    );
    let layer = Disk::Layer(template.unwrap().layer().unwrap());
    let tail = |byte: u8| {
        bench.memory.write_slice(&[0xff; 1024], AT).unwrap();
        let request = Request::Read {
            sector: Sector(8),
            bytes: 1024,
            into: &segments(1024),
        };
        assert_eq!(bench.run(&layer, &request).unwrap(), 1024);
        let seen = bench.bytes(1024);
        assert!(seen[..512].iter().all(|b| *b == byte));
        assert!(seen[512..904].iter().all(|b| *b == 5) && seen[904..].iter().all(|b| *b == 0));
    };
    tail(5);
    bench.memory.write_slice(&[7; 512], AT).unwrap();
    let write = Request::Write {
        sector: Sector(8),
        bytes: 512,
        from: &segments(512),
    };
    bench.run(&layer, &write).unwrap();
    tail(7);
}

#[test]
fn a_truncated_image_is_an_io_error_not_zeroes() {
    let bench = Bench::new();
    let image = bench.image();
    let path = bench.dir.path().join("odd");
    std::fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(1024)
        .unwrap();
    let request = Request::Read {
        sector: Sector(0),
        bytes: 4096,
        into: &segments(4096),
    };
    let failure = bench.run(&image, &request).unwrap_err();
    assert!(matches!(failure, Failure::Shrunk) && failure.is_ours());
    assert_eq!(failure.status(), Status::IoError);
}

#[test]
fn nothing_writes_to_an_image() {
    let bench = Bench::new();
    let image = bench.image();
    let write = Request::Write {
        sector: Sector(0),
        bytes: 512,
        from: &segments(512),
    };
    assert!(matches!(bench.run(&image, &write), Err(Failure::ReadOnly)));
    let ranges = [Range {
        sector: Sector(0),
        sectors: 1,
        unmap: true,
    }];
    for request in [
        Request::Discard { ranges: &ranges },
        Request::WriteZeroes { ranges: &ranges },
    ] {
        let failure = bench.run(&image, &request).unwrap_err();
        assert_eq!(failure.status(), Status::Unsupported);
    }
    assert_eq!(bench.run(&image, &Request::Flush).unwrap(), 0);
}

#[test]
fn a_layer_takes_every_request() {
    let bench = Bench::new();
    for (flush, write_through) in [(Flush::Volatile, false), (Flush::Durable, true)] {
        let layer = bench.layer(flush);
        let context = Context {
            write_through,
            ..bench.context
        };
        let run =
            |request: &Request<'_>| execute(request, &layer, &bench.memory, &context, &mut || {});
        bench.memory.write_slice(&[9; 1024], AT).unwrap();
        let write = Request::Write {
            sector: Sector(1),
            bytes: 1024,
            from: &segments(1024),
        };
        assert_eq!(run(&write).unwrap(), 0);
        let ranges = [Range {
            sector: Sector(2),
            sectors: 1,
            unmap: false,
        }];
        assert_eq!(run(&Request::WriteZeroes { ranges: &ranges }).unwrap(), 0);
        assert_eq!(run(&Request::Flush).unwrap(), 0);
        let read = Request::Read {
            sector: Sector(0),
            bytes: 2048,
            into: &segments(2048),
        };
        assert_eq!(run(&read).unwrap(), 2048);
        let seen = bench.bytes(2048);
        let sector = |i: usize| seen[i * 512..(i + 1) * 512].to_vec();
        assert_eq!(
            [sector(0), sector(1), sector(2), sector(3)],
            [6, 9, 0, 6].map(|b| vec![b; 512])
        );
    }
}

#[test]
fn one_bad_range_changes_nothing() {
    let bench = Bench::new();
    let layer = bench.layer(Flush::Volatile);
    let good = Range {
        sector: Sector(0),
        sectors: 1,
        unmap: true,
    };
    let bad = Range {
        sector: Sector(15),
        sectors: 2,
        unmap: true,
    };
    let failure = bench
        .run(
            &layer,
            &Request::Discard {
                ranges: &[good, bad],
            },
        )
        .unwrap_err();
    assert!(matches!(
        failure,
        Failure::OutOfRange {
            sector: 15,
            bytes: 1024
        }
    ));
    let read = Request::Read {
        sector: Sector(0),
        bytes: 512,
        into: &segments(512),
    };
    bench.run(&layer, &read).unwrap();
    assert_eq!(bench.bytes(512), [6; 512]);
}

#[test]
fn the_serial_is_cut_to_the_buffer() {
    let bench = Bench::new();
    bench.memory.write_slice(&[0xff; 32], AT).unwrap();
    let request = Request::GetId {
        bytes: 20,
        into: &segments(24),
    };
    assert_eq!(bench.run(&bench.image(), &request).unwrap(), 20);
    assert_eq!(
        bench.bytes(24),
        b"abc\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff"
    );
}

#[test]
fn a_miss_is_announced_once_and_read_anyway() {
    let bench = Bench::new();
    let image = bench.image();
    let Disk::Image(inner) = &image else {
        unreachable!()
    };
    let file = inner.source().file();
    rustix::fs::fsync(file).unwrap();
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    // Some file systems keep everything in memory; then there is no miss to see.
    let evicted = inner
        .read(
            extent(&image),
            &bench.memory,
            Span::whole(&segments(512)),
            Wait::No,
        )
        .is_err();
    let misses = Cell::new(0);
    let mut on_miss = || misses.set(misses.get() + 1);
    let request = Request::Read {
        sector: Sector(0),
        bytes: 4096,
        into: &segments(4096),
    };
    for _ in 0..2 {
        execute(
            &request,
            &image,
            &bench.memory,
            &bench.context,
            &mut on_miss,
        )
        .unwrap();
        assert_eq!(bench.bytes(4096), [5; 4096]);
        assert_eq!(misses.get(), u32::from(evicted));
    }
}

fn extent(disk: &Disk) -> Extent {
    disk.capacity().extent(Sector(0), 512).unwrap()
}
