//! Kernel, initrd, command line and boot tables into guest RAM (Linux x86 boot protocol, 64-bit entry).
//!
//! What must hold at the entry point: long mode, the first GiB identity mapped, `rsi` = zero page. The
//! tables are made by [`tables`] and [`mp_table`], the registers by [`crate::vcpu::state`].

pub mod command_line;
pub mod kernel;
pub mod mp_table;
pub mod tables;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

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
    #[error("kernel.path: {} cannot be booted", path.display())]
    Kernel {
        path: PathBuf,
        #[source]
        source: kernel::ImageError,
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
    let image = load_kernel(ram, &kernel.image)?;
    let free = Range::new(image.end, ram.low_end() - image.end);
    let initrd = kernel
        .initrd
        .as_deref()
        .map(|path| load_initrd(ram, path, free))
        .transpose()?;
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
    Ok(Entry { rip: image.entry })
}

fn load_kernel(ram: &GuestRam, path: &Path) -> Result<kernel::Image, BootError> {
    let mut file = open("kernel.path", path)?;
    kernel::load(ram, &mut file).map_err(|source| BootError::Kernel {
        path: path.to_owned(),
        source,
    })
}

/// Maps the initrd at the top of `free`. The guest reads it once, from the host's page cache, and then
/// uses the pages as memory of its own.
fn load_initrd(ram: &GuestRam, path: &Path, free: Range) -> Result<Range, BootError> {
    let failed = |source| BootError::File {
        field: "kernel.initrd",
        path: path.to_owned(),
        source,
    };
    let file = open("kernel.initrd", path)?;
    let len = file.metadata().map_err(failed)?.len();
    let taken = len
        .checked_next_multiple_of(layout::PAGE)
        .filter(|&taken| taken <= free.len);
    let Some(taken) = taken else {
        return Err(BootError::InitrdSize {
            path: path.to_owned(),
            len,
            room: free.len,
        });
    };
    let start = free.end() - taken;
    if taken > 0 {
        ram.map_file(Range::new(start, taken), &file, 0)
            .map_err(|error| failed(io::Error::other(error)))?;
    }
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
