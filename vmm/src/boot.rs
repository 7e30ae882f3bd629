//! Kernel, initrd, command line and boot tables into guest RAM (Linux x86 boot protocol, 64-bit entry).
//!
//! What must hold at the entry point: long mode, the first GiB identity mapped, `rsi` = zero page. The
//! tables are made by [`tables`] and [`mp_table`], the registers by [`crate::vcpu::state`].

pub mod command_line;
pub mod mp_table;
pub mod tables;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use linux_loader::loader::{self, KernelLoader, elf::Elf};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::layout::{self, Range};
use crate::memory::{GuestMemory, GuestRam};
use crate::spec::KernelSpec;

/// Why a sandbox could not be made ready to boot.
#[derive(Debug, Error)]
pub enum BootError {
    /// A file of the spec cannot be read.
    #[error("{field}: cannot read {}", path.display())]
    File {
        field: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The kernel image is none.
    #[error("kernel.path: {} is not an uncompressed x86-64 ELF kernel that fits the guest's memory", path.display())]
    Kernel {
        path: PathBuf,
        #[source]
        source: loader::Error,
    },
    /// The kernel wants to lie where something else is.
    #[error(
        "kernel.path: {} occupies {start:#x}..{end:#x}, allowed is {:#x}..{limit:#x}",
        path.display(),
        layout::KERNEL
    )]
    Placement {
        path: PathBuf,
        start: u64,
        end: u64,
        limit: u64,
    },
    /// The initrd does not fit.
    #[error(
        "kernel.initrd: {} has {len} bytes, {room} are free above the kernel; raise memory_mib",
        path.display()
    )]
    InitrdSize { path: PathBuf, len: u64, room: u64 },
    /// The kernel would cut the command line.
    #[error("kernel.cmdline: the whole command line has {len} bytes, the kernel takes {max}")]
    CommandLine { len: usize, max: u64 },
    /// A table could not be written.
    #[error("cannot write the {what}")]
    Write {
        what: &'static str,
        #[source]
        source: GuestMemoryError,
    },
}

/// Where the boot CPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Initial instruction pointer.
    pub rip: u64,
}

/// Puts everything in place. `command_line` is complete.
pub fn load(
    ram: &GuestRam,
    kernel: &KernelSpec,
    vcpus: u8,
    command_line: &str,
) -> Result<Entry, BootError> {
    let memory = ram.memory();
    let (entry, kernel_end) = load_kernel(memory, &kernel.image, ram.low_end())?;
    let initrd = match &kernel.initrd {
        Some(path) => Some(load_initrd(
            memory,
            path,
            Range::new(kernel_end, ram.low_end() - kernel_end),
        )?),
        None => None,
    };
    write_command_line(memory, command_line)?;
    tables::write_zero_page(memory, command_line.len(), initrd).map_err(|source| {
        BootError::Write {
            what: "zero page",
            source,
        }
    })?;
    tables::write_gdt(memory).map_err(|source| BootError::Write {
        what: "GDT",
        source,
    })?;
    tables::write_page_tables(memory).map_err(|source| BootError::Write {
        what: "page tables",
        source,
    })?;
    memory
        .write_slice(
            &mp_table::build(vcpus),
            GuestAddress(layout::MP_TABLE.start),
        )
        .map_err(|source| BootError::Write {
            what: "MP table",
            source,
        })?;
    Ok(Entry { rip: entry })
}

/// Copies the kernel's segments; returns entry point and the first free page above.
fn load_kernel(memory: &GuestMemory, path: &Path, limit: u64) -> Result<(u64, u64), BootError> {
    let mut file = open("kernel.path", path)?;
    let lowest = Some(GuestAddress(layout::KERNEL));
    let loaded =
        Elf::load(memory, None, &mut file, lowest).map_err(|source| BootError::Kernel {
            path: path.to_owned(),
            source,
        })?;
    let (start, end) = (loaded.kernel_load.0, loaded.kernel_end);
    // Segments below the entry point (the loader does not check) would overwrite window or tables;
    // the zero page is written after this, so only the entry and the end need a look.
    if start < layout::KERNEL || start >= end || end > limit {
        return Err(BootError::Placement {
            path: path.to_owned(),
            start,
            end,
            limit,
        });
    }
    Ok((start, end.next_multiple_of(layout::PAGE)))
}

/// Copies the initrd to the top of `free`.
fn load_initrd(memory: &GuestMemory, path: &Path, free: Range) -> Result<Range, BootError> {
    let failed = |source| BootError::File {
        field: "kernel.initrd",
        path: path.to_owned(),
        source,
    };
    let mut file = open("kernel.initrd", path)?;
    let len = file.metadata().map_err(failed)?.len();
    let taken = len
        .checked_next_multiple_of(layout::PAGE)
        .filter(|&taken| taken <= free.len);
    let (Some(taken), Ok(count)) = (taken, usize::try_from(len)) else {
        return Err(BootError::InitrdSize {
            path: path.to_owned(),
            len,
            room: free.len,
        });
    };
    let start = free.end() - taken;
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, count)
        .map_err(|error| failed(io::Error::other(error)))?;
    Ok(Range::new(start, len))
}

fn write_command_line(memory: &GuestMemory, line: &str) -> Result<(), BootError> {
    let max = layout::COMMAND_LINE.len - 1;
    if line.len() as u64 > max {
        return Err(BootError::CommandLine {
            len: line.len(),
            max,
        });
    }
    // Fresh guest memory is zero, which ends the text.
    memory
        .write_slice(line.as_bytes(), GuestAddress(layout::COMMAND_LINE.start))
        .map_err(|source| BootError::Write {
            what: "command line",
            source,
        })
}

fn open(field: &'static str, path: &Path) -> Result<File, BootError> {
    File::open(path).map_err(|source| BootError::File {
        field,
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
