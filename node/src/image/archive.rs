//! A tar file as a stream: plain, gzip or zstd, told apart by its first bytes, with a check that its
//! end was really there.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z'];
const BZIP2: &[u8] = b"BZh";

/// A tar header's magic, `ustar`, and where it is (POSIX.1-2017, pax).
const USTAR: &[u8] = b"ustar";
const USTAR_AT: usize = 257;

/// Size of a tar block.
const BLOCK: u64 = 512;

/// Opens the stream inside `file`. `on_bytes` hears how many bytes of the file have been read.
pub(super) fn open(file: File, on_bytes: impl Fn(u64) + 'static) -> io::Result<Box<dyn Read>> {
    let counted = Counted { file, on_bytes };
    let mut buffered = BufReader::with_capacity(256 * 1024, counted);
    let start = buffered.fill_buf()?;
    if start.starts_with(GZIP) {
        return Ok(Box::new(MultiGzDecoder::new(buffered)));
    }
    if start.starts_with(ZSTD) {
        return Ok(Box::new(zstd::stream::read::Decoder::with_buffer(
            buffered,
        )?));
    }
    let magic = start.get(USTAR_AT..USTAR_AT + USTAR.len());
    if magic == Some(USTAR) {
        return Ok(Box::new(buffered));
    }
    let what = match start {
        xz if xz.starts_with(XZ) => "it is compressed with xz; unpack it first (`xz -d`)",
        bzip2 if bzip2.starts_with(BZIP2) => {
            "it is compressed with bzip2; unpack it first (`bzip2 -d`)"
        }
        _ => "it is no tar file, plain or compressed with gzip or zstd",
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}

struct Counted<F> {
    file: File,
    on_bytes: F,
}

impl<F: Fn(u64)> Read for Counted<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        (self.on_bytes)(count as u64);
        Ok(count)
    }
}

/// How many zero bytes came last: an archive ends with zero blocks, a cut-off one most likely not.
/// Compressed archives notice by themselves.
pub(super) struct EndWatch<R> {
    from: R,
    zeros: Rc<Cell<u64>>,
}

impl<R: Read> EndWatch<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            zeros: Rc::default(),
        }
    }

    /// Can be asked while an archive holds the reader.
    pub(super) fn end(&self) -> End {
        End(Rc::clone(&self.zeros))
    }
}

/// Answers whether the last bytes were an end marker.
pub(super) struct End(Rc<Cell<u64>>);

impl End {
    pub(super) fn seen(&self) -> bool {
        self.0.get() >= BLOCK
    }
}

impl<R: Read> Read for EndWatch<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        let bytes = buffer.get(..count).unwrap_or_default();
        let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count();
        let before = if zeros == count { self.zeros.get() } else { 0 };
        self.zeros.set(before.saturating_add(zeros as u64));
        Ok(count)
    }
}
