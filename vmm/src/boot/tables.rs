//! Zero page with e820, GDT and page tables.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use crate::memory::GuestMemory;
use crate::memory::layout::{
    COMMAND_LINE, GDT, HIGH_MEMORY, LEGACY_HOLE, MP_TABLE, PAGE, PAGE_TABLES, Range, ZERO_PAGE,
};

/// `boot_params.hdr.boot_flag`.
const BOOT_FLAG: u16 = 0xaa55;
/// `boot_params.hdr.header`, "HdrS".
const HEADER: u32 = 0x5372_6448;
/// `boot_params.hdr.type_of_loader`: no registered boot loader.
const UNKNOWN_LOADER: u8 = 0xff;
/// e820 type of RAM.
const E820_RAM: u32 = 1;
/// e820 type of what is neither RAM nor free for devices.
const E820_RESERVED: u32 = 2;

/// Code segment: 64-bit, ring 0, present, execute and read.
const CODE64: u64 = 0x00af_9b00_0000_ffff;
/// Data segment: ring 0, present, read and write, 4 GiB.
const DATA: u64 = 0x00cf_9300_0000_ffff;
/// Task state segment, busy, limit 0xffff: Intel refuses entry without one.
const TSS: u64 = 0x008f_8b00_0000_ffff;

/// The boot CPU's GDT; selectors are 8 times the index (boot protocol: __BOOT_CS 0x10, __BOOT_DS 0x18).
pub const GDT_ENTRIES: [u64; 5] = [0, 0, CODE64, DATA, TSS];
/// Selector of the 64-bit code segment.
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segment.
pub const DATA_SELECTOR: u16 = 0x18;
/// Selector of the task state segment.
pub const TSS_SELECTOR: u16 = 0x20;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;

/// The memory map the guest is told: RAM pieces as they are, the PC's legacy hole cut out. Adjacent
/// pieces are one entry: that the window is shared is told on the command line.
#[must_use]
pub fn e820(memory: &GuestMemory) -> Vec<(Range, u32)> {
    let mut map = vec![
        (Range::new(0, MP_TABLE.start), E820_RAM),
        (
            Range::new(MP_TABLE.start, HIGH_MEMORY - MP_TABLE.start),
            E820_RESERVED,
        ),
    ];
    for region in memory.iter() {
        let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
        let start = start.max(LEGACY_HOLE.end());
        match map.last_mut() {
            Some((last, E820_RAM)) if last.end() == start => last.len += end - start,
            _ => map.push((Range::new(start, end - start), E820_RAM)),
        }
    }
    map
}

/// Writes `struct boot_params` for a kernel entered at its 64-bit entry point.
pub fn write_zero_page(
    memory: &GuestMemory,
    command_line_len: usize,
    initrd: Option<Range>,
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params::default();
    params.hdr.type_of_loader = UNKNOWN_LOADER;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER;
    params.hdr.cmd_line_ptr = low(COMMAND_LINE.start);
    params.hdr.cmdline_size = low(command_line_len as u64);
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = low(initrd.start);
        params.hdr.ramdisk_size = low(initrd.len);
    }
    for (slot, (range, kind)) in params.e820_table.iter_mut().zip(e820(memory)) {
        *slot = boot_e820_entry {
            addr: range.start,
            size: range.len,
            r#type: kind,
        };
        params.e820_entries += 1;
    }
    memory.write_obj(params, GuestAddress(ZERO_PAGE.start))
}

/// Writes the GDT.
pub fn write_gdt(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    for (address, entry) in (GDT.start..).step_by(8).zip(GDT_ENTRIES) {
        memory.write_obj(entry, GuestAddress(address))?;
    }
    Ok(())
}

/// Maps the first GiB to itself. The kernel makes its own tables before it needs more.
pub fn write_page_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    let [pml4, pdpt, directory] = [0, 1, 2].map(|page| PAGE_TABLES.start + page * PAGE);
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    let mut entries = Vec::with_capacity(4096);
    for index in 0..512_u64 {
        let entry = (index * LARGE_PAGE_SIZE) | PRESENT_WRITABLE | LARGE_PAGE;
        entries.extend_from_slice(&entry.to_le_bytes());
    }
    memory.write_slice(&entries, GuestAddress(directory))
}

/// Addresses below 4 GiB fit the 32-bit header fields: low RAM and the tables are there by layout.
fn low(address: u64) -> u32 {
    u32::try_from(address).expect("boot data lies in low RAM")
}
