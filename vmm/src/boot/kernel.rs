//! The kernel image: an uncompressed ELF file (ELF-64, "Program Header"), its segments at their physical
//! addresses.
//!
//! Segments the kernel only reads or patches are mapped from the file, privately: until the guest writes
//! to a page, the host's page cache is its only copy, shared by all sandboxes. Segments it is going to
//! write are copied, which saves their pages a second fault.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFDATA2LSB, ELFMAG, EM_X86_64, Elf64_Ehdr, Elf64_Phdr, PF_W, PT_LOAD,
};
use thiserror::Error;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError};

use crate::memory::layout::{KERNEL, PAGE, Range};
use crate::memory::{GuestRam, MemoryError};

/// A kernel has a handful of segments.
const MAX_SEGMENTS: u16 = 64;
/// `e_ident[EI_CLASS]` of 64-bit files; the bindings lack it.
const ELFCLASS64: u8 = 2;

/// What keeps a file from being this guest's kernel.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Reading it failed, or it ends early.
    #[error("it cannot be read, or is cut short")]
    Read(#[source] io::Error),
    /// Something else.
    #[error("it is not an uncompressed ELF file for x86-64; vmlinux is one, bzImage is not")]
    NotElf,
    /// Nothing to load.
    #[error("it has no segments to load")]
    Empty,
    /// Segments lie where something else is.
    #[error("it wants {start:#x}..{end:#x}, the guest has {KERNEL:#x}..{limit:#x} for it")]
    Placement { start: u64, end: u64, limit: u64 },
    /// Numbers that contradict each other.
    #[error("segment {0} is larger in the file than in memory")]
    Segment(usize),
    /// Entry point outside the image.
    #[error("its entry point {0:#x} lies outside its segments")]
    EntryPoint(u64),
    /// Guest memory could not take it.
    #[error("it cannot be mapped into the guest")]
    Map(#[source] MemoryError),
    /// Guest memory could not take it.
    #[error("it cannot be copied into the guest")]
    Copy(#[source] GuestMemoryError),
}

/// A loaded kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its 64-bit entry point.
    pub entry: u64,
    /// The first free page above it.
    pub end: u64,
}

/// Puts the kernel into `ram`.
pub fn load(ram: &GuestRam, file: &mut File) -> Result<Image, ImageError> {
    let header: Elf64_Ehdr = read(file, 0)?;
    check_header(&header)?;
    let segments = segments(file, &header)?;
    check_file(&segments, file.metadata().map_err(ImageError::Read)?.len())?;
    let Image { entry, end } = check_placement(&segments, header.e_entry, ram.low_end())?;
    for segment in &segments {
        place(ram, file, segment)?;
    }
    Ok(Image { entry, end })
}

fn check_header(header: &Elf64_Ehdr) -> Result<(), ImageError> {
    let identity = &header.e_ident;
    let good = identity.starts_with(ELFMAG)
        && identity.get(EI_CLASS) == Some(&ELFCLASS64)
        && identity.get(EI_DATA) == Some(&ELFDATA2LSB)
        && header.e_machine == EM_X86_64
        && usize::from(header.e_phentsize) == size_of::<Elf64_Phdr>();
    if good {
        Ok(())
    } else {
        Err(ImageError::NotElf)
    }
}

/// The segments that occupy memory.
fn segments(file: &File, header: &Elf64_Ehdr) -> Result<Vec<Elf64_Phdr>, ImageError> {
    let mut segments = Vec::new();
    for index in 0..header.e_phnum.min(MAX_SEGMENTS) {
        let offset = u64::from(index) * size_of::<Elf64_Phdr>() as u64;
        let at = header
            .e_phoff
            .checked_add(offset)
            .ok_or(ImageError::NotElf)?;
        let segment: Elf64_Phdr = read(file, at)?;
        if segment.p_type == PT_LOAD && segment.p_memsz > 0 {
            segments.push(segment);
        }
    }
    Ok(segments)
}

/// A mapped page that the file does not reach would be a bus error later.
fn check_file(segments: &[Elf64_Phdr], file_len: u64) -> Result<(), ImageError> {
    let whole = Range::new(0, file_len);
    let cut = |segment: &Elf64_Phdr| !whole.contains(segment.p_offset, segment.p_filesz);
    if segments.iter().any(cut) {
        return Err(ImageError::Read(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(())
}

/// Everything must lie between the kernel's place and the end of low RAM, whatever the numbers say.
fn check_placement(segments: &[Elf64_Phdr], entry: u64, limit: u64) -> Result<Image, ImageError> {
    let room = Range::new(KERNEL, limit - KERNEL);
    let mut end = KERNEL;
    let mut has_entry = false;
    for (index, segment) in segments.iter().enumerate() {
        let (start, len) = (segment.p_paddr, segment.p_memsz);
        if !room.contains(start, len) {
            let end = start.saturating_add(len);
            return Err(ImageError::Placement { start, end, limit });
        }
        if segment.p_filesz > len {
            return Err(ImageError::Segment(index));
        }
        end = end.max(start + len);
        has_entry |= Range::new(start, len).contains(entry, 1);
    }
    match (segments, has_entry) {
        ([], _) => Err(ImageError::Empty),
        (_, false) => Err(ImageError::EntryPoint(entry)),
        (_, true) => Ok(Image {
            entry,
            end: end.next_multiple_of(PAGE),
        }),
    }
}

/// Maps or copies one segment. What the file does not have stays zero, as fresh memory is.
fn place(ram: &GuestRam, file: &mut File, segment: &Elf64_Phdr) -> Result<(), ImageError> {
    let (offset, address, len) = (segment.p_offset, segment.p_paddr, segment.p_filesz);
    let aligned = offset.is_multiple_of(PAGE) && address.is_multiple_of(PAGE);
    // The last page of a segment may hold the beginning of the next one: only whole pages are mapped.
    let mapped = if aligned && segment.p_flags & PF_W == 0 {
        len & !(PAGE - 1)
    } else {
        0
    };
    if mapped > 0 {
        ram.map_file(Range::new(address, mapped), file, offset)
            .map_err(ImageError::Map)?;
    }
    let rest = usize::try_from(len - mapped).map_err(|_| ImageError::NotElf)?;
    let from = offset.checked_add(mapped).ok_or(ImageError::NotElf)?;
    file.seek(SeekFrom::Start(from)).map_err(ImageError::Read)?;
    ram.memory()
        .read_exact_volatile_from(GuestAddress(address + mapped), file, rest)
        .map_err(ImageError::Copy)
}

fn read<T: ByteValued + Default>(file: &File, at: u64) -> Result<T, ImageError> {
    let mut value = T::default();
    file.read_exact_at(value.as_mut_slice(), at)
        .map_err(ImageError::Read)?;
    Ok(value)
}
