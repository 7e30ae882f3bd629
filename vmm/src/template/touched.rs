//! The file `touched`: the pages that a clone touches from its first instruction until it has been renewed; and
//! `first-command`: those that its first command touches beyond them.
//!
//! Made by a trial clone of a new template, at the end of its renewal and of a command. Of a page that was written the process has
//! a copy (/proc/PID/pagemap tells); one that was only read is in the page cache, from which the trial dropped
//! the file before it began. With them a clone has those pages before it runs ([`crate::sandbox::restore`]), and before
//! its first command does, where each would be an exit of its own. They are hints: a template without them is whole.
//! Described in `docs/template-format.md`.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::format;
use crate::memory::layout::{PAGE, Range};
use crate::memory::{GuestRam, Kind, regions};
use crate::spec::MemorySpec;

const MAGIC: [u8; 8] = *b"RNDTCHD\x1a";
const VERSION: u32 = 1;
/// Magic, version, number of runs, checksum of the template's header.
const HEADER: usize = 24;
/// First page and number of pages; of the latter the highest bit is [`WRITTEN`].
const RUN: usize = 8;
const WRITTEN: u32 = 1 << 31;
/// A checksum of all before it.
const TRAILER: usize = 8;
const MAX_RUNS: usize = 1 << 16;
/// More pages than a clone touches in its first moments: the page cache could not be dropped, and tells nothing.
const MAX_READ: u64 = 8192;

/// Bits of an entry of /proc/PID/pagemap: present, swapped, a file's page or shared memory.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// Pages that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Guest-physical, whole pages.
    pub range: Range,
    /// Each of them was written.
    pub written: bool,
}

/// The pages, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched(Vec<Run>);

impl Touched {
    /// The runs, ascending and apart.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.0
    }

    /// How many pages there are, and how many of them were written.
    #[must_use]
    pub fn count(&self) -> (u64, u64) {
        let pages = |runs: &mut dyn Iterator<Item = &Run>| -> u64 {
            runs.map(|run| run.range.len / PAGE).sum()
        };
        (
            pages(&mut self.0.iter()),
            pages(&mut self.0.iter().filter(|run| run.written)),
        )
    }

    /// What a clone, whose memory lies over a file that was not in the page cache, has touched until now.
    pub fn of(ram: &GuestRam, spec: &MemorySpec) -> io::Result<Self> {
        let pagemap = File::open("/proc/self/pagemap")?;
        let mut found = Self::default();
        for (range, kind) in regions(spec) {
            if kind == Kind::Private {
                found.look_at(ram, range, &pagemap)?;
            }
        }
        let (all, written) = found.count();
        if all - written > MAX_READ {
            log::warn!("the template's pages stay in the page cache: which are read is not known");
            found.0.retain(|run| run.written);
        }
        Ok(found)
    }

    fn look_at(&mut self, ram: &GuestRam, range: Range, pagemap: &File) -> io::Result<()> {
        let (first, resident) = ram.resident(range)?;
        let mut entries = vec![0; resident.len() * 8];
        pagemap.read_exact_at(&mut entries, first / PAGE * 8)?;
        for ((at, resident), entry) in (range.start..)
            .step_by(4096)
            .zip(resident)
            .zip(entries.as_chunks().0)
        {
            let entry = u64::from_le_bytes(*entry);
            let written = entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0;
            if written || resident {
                self.add(at, written);
            }
        }
        Ok(())
    }

    /// What of these pages is not among those of `before`, or was only read then and has been written since.
    #[must_use]
    pub fn beyond(&self, before: &Self) -> Self {
        let before: HashMap<u64, bool> = before.pages().collect();
        let mut new = Self::default();
        for (at, written) in self.pages() {
            match before.get(&at) {
                None => new.add(at, written),
                Some(false) if written => new.add(at, true),
                Some(_) => {}
            }
        }
        new
    }

    /// Address of each page, and whether it was written.
    fn pages(&self) -> impl Iterator<Item = (u64, bool)> {
        self.0.iter().flat_map(|run| {
            let pages = (run.range.start..run.range.end()).step_by(4096);
            pages.map(|at| (at, run.written))
        })
    }

    fn add(&mut self, at: u64, written: bool) {
        match self.0.last_mut() {
            Some(last) if last.range.end() == at && last.written == written => {
                last.range.len += PAGE;
            }
            _ => self.0.push(Run {
                range: Range::new(at, PAGE),
                written,
            }),
        }
    }

    /// The file, for the template whose header has this checksum.
    fn encode(&self, template: u64) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend(VERSION.to_le_bytes());
        let count = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        file.extend(count.to_le_bytes());
        file.extend(template.to_le_bytes());
        for Run { range, written } in &self.0 {
            let number = |bytes: u64| u32::try_from(bytes / PAGE).unwrap_or(WRITTEN - 1);
            let flag = if *written { WRITTEN } else { 0 };
            file.extend(number(range.start).to_le_bytes());
            file.extend((number(range.len) | flag).to_le_bytes());
        }
        file.extend(format::sum(&file).to_le_bytes());
        file
    }

    /// Understands the file; the words say what is wrong with it.
    fn parse(file: &[u8], template: u64, spec: &MemorySpec) -> Result<Self, String> {
        let damaged = |what: &str| Err(what.to_owned());
        let Some((body, [sum])) = file
            .split_last_chunk::<TRAILER>()
            .map(|(body, sum)| (body, [u64::from_le_bytes(*sum)]))
        else {
            return damaged("it is too short");
        };
        let (Some(header), Some(runs)) = (body.first_chunk::<HEADER>(), body.get(HEADER..)) else {
            return damaged("it is too short");
        };
        let [.., a, b, c, d, e, f, g, h] = *header;
        if format::sum(body) != sum {
            return damaged("its checksum is wrong");
        }
        if header.get(..8) != Some(&MAGIC[..]) || header.get(8..12) != Some(&VERSION.to_le_bytes())
        {
            return damaged("it does not begin as it should");
        }
        if u64::from_le_bytes([a, b, c, d, e, f, g, h]) != template {
            return damaged("it is of another template");
        }
        let count = u32::try_from(runs.len() / RUN).unwrap_or(u32::MAX);
        if !runs.len().is_multiple_of(RUN) || header.get(12..16) != Some(&count.to_le_bytes()) {
            return damaged("its length is wrong");
        }
        let mut touched = Self::default();
        for run in runs.as_chunks::<RUN>().0 {
            let [a, b, c, d, e, f, g, h] = *run;
            let start = u64::from(u32::from_le_bytes([a, b, c, d])) * PAGE;
            let len = u32::from_le_bytes([e, f, g, h]);
            let range = Range::new(start, u64::from(len & !WRITTEN) * PAGE);
            let inside = regions(spec).iter().any(|(piece, kind)| {
                *kind == Kind::Private && piece.contains(range.start, range.len)
            });
            let before = touched.0.last().map_or(0, |last| last.range.end());
            if range.len == 0 || range.start < before || !inside {
                return damaged("its pages are not those of the memory");
            }
            touched.0.push(Run {
                range,
                written: len & WRITTEN != 0,
            });
        }
        Ok(touched)
    }

    /// Writes the file, which must not be there yet.
    pub fn write(&self, path: &Path, template: u64) -> io::Result<()> {
        if self.0.len() > MAX_RUNS {
            return Err(io::Error::other("the pages lie too far apart"));
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(path)?;
        file.write_all(&self.encode(template))?;
        file.sync_all()
    }

    /// Reads the file; without one nothing is known to be touched.
    pub fn read(path: &Path, template: u64, spec: &MemorySpec) -> Result<Self, String> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(format!("it cannot be read: {error}")),
        };
        let longest = HEADER + MAX_RUNS * RUN + TRAILER;
        let mut bytes = Vec::new();
        file.take(longest as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("it cannot be read: {error}"))?;
        if bytes.len() > longest {
            return Err("it is too long".to_owned());
        }
        Self::parse(&bytes, template, spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: MemorySpec = MemorySpec {
        mib: 128,
        window_mib: 2,
    };

    fn sample() -> Touched {
        let mut touched = Touched::default();
        for (page, written) in [(1, false), (2, false), (3, true), (5, true), (4000, false)] {
            touched.add(page * PAGE, written);
        }
        touched
    }

    #[test]
    fn pages_become_runs_and_come_back() {
        let touched = sample();
        assert_eq!(touched.runs().len(), 4);
        assert_eq!(touched.count(), (5, 2));
        assert_eq!(
            Touched::parse(&touched.encode(7), 7, &SPEC),
            Ok(touched.clone())
        );
        assert!(
            Touched::parse(&touched.encode(7), 8, &SPEC)
                .unwrap_err()
                .contains("another")
        );
    }

    #[test]
    fn what_is_beyond_is_what_is_new() {
        let before = sample();
        let mut after = Touched::default();
        for (page, written) in [
            (1, true),
            (2, false),
            (3, true),
            (4, false),
            (5, true),
            (4000, false),
            (4001, true),
        ] {
            after.add(page * PAGE, written);
        }
        let mut expected = Touched::default();
        for (page, written) in [(1, true), (4, false), (4001, true)] {
            expected.add(page * PAGE, written);
        }
        assert_eq!(after.beyond(&before), expected);
        assert_eq!(before.beyond(&before), Touched::default());
    }

    #[test]
    fn no_byte_can_change_and_none_be_missing() {
        let file = sample().encode(7);
        for at in 0..file.len() {
            let mut other = file.clone();
            other[at] ^= 1;
            assert!(Touched::parse(&other, 7, &SPEC).is_err(), "byte {at}");
            assert!(
                Touched::parse(&file[..at], 7, &SPEC).is_err(),
                "length {at}"
            );
        }
    }

    #[test]
    fn pages_outside_private_memory_are_refused() {
        for page in [2048, 2559, 128 * 256, 1 << 30] {
            let mut touched = Touched::default();
            touched.add(page * PAGE, true);
            let error = Touched::parse(&touched.encode(7), 7, &SPEC).unwrap_err();
            assert!(error.contains("not those of the memory"), "{page}");
        }
    }

    #[test]
    fn a_missing_file_is_an_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("touched");
        assert_eq!(Touched::read(&path, 7, &SPEC), Ok(Touched::default()));
        sample().write(&path, 7).unwrap();
        assert_eq!(Touched::read(&path, 7, &SPEC), Ok(sample()));
        assert!(sample().write(&path, 7).is_err(), "files are written once");
    }
}
