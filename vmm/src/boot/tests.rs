use std::io::Write;

use linux_loader::loader::bootparam::boot_params;

use super::*;
use crate::memory::layout::{COMMAND_LINE, GIB, KERNEL, MIB, PAGE, ZERO_PAGE};
use crate::spec::MemorySpec;

/// An ELF file of one segment: `bytes` at `address`, entered at its start.
fn elf(address: u64, bytes: &[u8], memory_size: u64) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&2_u16.to_le_bytes()); // executable
    file.extend_from_slice(&62_u16.to_le_bytes()); // x86-64
    file.extend_from_slice(&1_u32.to_le_bytes());
    for word in [address, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes()); // entry, program headers, sections
    }
    file.extend_from_slice(&0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    for word in [1_u32, 7] {
        file.extend_from_slice(&word.to_le_bytes()); // load, all rights
    }
    let len = bytes.len() as u64;
    for word in [120, address, address, len, memory_size, 4096] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(bytes);
    file
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn ram(mib: u32) -> GuestRam {
    GuestRam::allocate(&MemorySpec { mib, window_mib: 2 }).unwrap()
}

fn kernel_spec(kernel: &tempfile::NamedTempFile) -> KernelSpec {
    KernelSpec {
        image: kernel.path().to_owned(),
        initrd: None,
        cmdline: String::new(),
    }
}

#[test]
fn everything_lies_where_the_kernel_looks_for_it() {
    let kernel = file(&elf(KERNEL, b"kernel code", 2 * MIB));
    let initrd = file(&[0x5a; 5000]);
    let spec = KernelSpec {
        initrd: Some(initrd.path().to_owned()),
        ..kernel_spec(&kernel)
    };
    let ram = ram(64);
    let entry = load(&ram, &spec, 2, "console=ttyS0 x=y").unwrap();
    assert_eq!(entry, Entry { rip: KERNEL });

    let memory = ram.memory();
    let text = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    };
    assert_eq!(text(KERNEL, 11), b"kernel code");
    assert_eq!(text(COMMAND_LINE.start, 18), b"console=ttyS0 x=y\0");
    let params: boot_params = memory.read_obj(GuestAddress(ZERO_PAGE.start)).unwrap();
    let header = params.hdr;
    assert_eq!({ header.header }, 0x5372_6448);
    assert_eq!(u64::from(header.cmd_line_ptr), COMMAND_LINE.start);
    assert_eq!({ header.cmdline_size }, 17);
    let start = u64::from(header.ramdisk_image);
    assert_eq!((start, header.ramdisk_size), (64 * MIB - 2 * PAGE, 5000));
    assert_eq!(text(start, 5001), [&[0x5a; 5000][..], &[0]].concat());
    assert_eq!(text(layout::MP_TABLE.start, 4), b"_MP_");
}

#[test]
fn the_memory_map_is_all_ram_but_the_legacy_hole() {
    let small = tables::e820(ram(64).memory());
    let expected = [
        (Range::new(0, 0x9_fc00), 1),
        (Range::new(0x9_fc00, 0x10_0000 - 0x9_fc00), 2),
        (Range::new(MIB, 63 * MIB), 1),
    ];
    assert_eq!(small, expected);
    let large = tables::e820(ram(4096).memory());
    assert_eq!(large[2], (Range::new(MIB, 3 * GIB - MIB), 1));
    assert_eq!(large[3], (Range::new(4 * GIB, GIB), 1));
    assert_eq!(large.len(), 4);
}

#[test]
fn page_tables_map_the_first_gib_to_itself() {
    let ram = ram(64);
    tables::write_page_tables(ram.memory()).unwrap();
    let walk = |address: u64| {
        let mut table = layout::PAGE_TABLES.start;
        for shift in [39, 30, 21] {
            let slot = table + 8 * (address >> shift & 0x1ff);
            let entry: u64 = ram.memory().read_obj(GuestAddress(slot)).unwrap();
            if entry & 1 == 0 {
                return None;
            }
            table = entry & !0xfff;
        }
        Some(table + (address & 0x1f_ffff))
    };
    for address in [0, 0x7000, KERNEL + 5, GIB - 1] {
        assert_eq!(walk(address), Some(address));
    }
    assert_eq!(walk(GIB), None);
}

#[test]
fn files_that_cannot_be_booted_are_refused_by_field() {
    let message = |kernel: &[u8], initrd: Option<&[u8]>| {
        let (kernel, initrd) = (file(kernel), initrd.map(file));
        let path = initrd.as_ref().map(|initrd| initrd.path().to_owned());
        let spec = KernelSpec {
            initrd: path,
            ..kernel_spec(&kernel)
        };
        let error = load(&ram(64), &spec, 1, "").unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", cause.unwrap_or_default())
    };
    let good = elf(KERNEL, b"x", 1);
    let cases: [(&[u8], &str); 7] = [
        (
            b"not an ELF file at all, but long enough to have had the header of one",
            "not an uncompressed",
        ),
        (b"", "cut short"),
        (&good[..100], "cut short"),
        (&elf(MIB, b"x", 1), "it wants 0x100000..0x100001"),
        (&elf(64 * MIB, b"x", 1), "it wants"),
        (&elf(KERNEL, b"x", GIB), "it wants"),
        (&elf(KERNEL, b"x", u64::MAX), "it wants"),
    ];
    for (file, expected) in cases {
        let error = message(file, None);
        assert!(
            error.starts_with("kernel.path: ") && error.contains(expected),
            "{error}"
        );
    }
    let large = vec![0; usize::try_from(49 * MIB).unwrap()];
    let error = message(&good, Some(&large));
    assert!(
        error.starts_with("kernel.initrd: ") && error.contains("raise memory_mib"),
        "{error}"
    );

    let kernel = file(&good);
    let mut spec = kernel_spec(&kernel);
    spec.initrd = Some("/nonexistent/initrd".into());
    let error = load(&ram(64), &spec, 1, "").unwrap_err();
    assert!(matches!(
        error,
        BootError::File {
            field: "kernel.initrd",
            ..
        }
    ));
    spec.image = "/nonexistent/vmlinux".into();
    let error = load(&ram(64), &spec, 1, "").unwrap_err();
    assert_eq!(
        error.to_string(),
        "kernel.path: cannot read /nonexistent/vmlinux"
    );
}

#[test]
fn a_command_line_that_the_kernel_would_cut_is_refused() {
    let kernel = file(&elf(KERNEL, b"x", 1));
    let fits = "x".repeat(2047);
    assert!(load(&ram(64), &kernel_spec(&kernel), 1, &fits).is_ok());
    let error = load(&ram(64), &kernel_spec(&kernel), 1, &(fits + "x")).unwrap_err();
    assert!(error.to_string().starts_with("kernel.cmdline: "), "{error}");
}

/// Two pages and a bit are mapped and copied, and both look the same.
#[test]
fn read_only_segments_come_from_the_file() {
    let code: Vec<u8> = (0..=255).cycle().take(2 * 4096 + 100).collect();
    for flags in [5_u32, 7] {
        let mut image = elf(KERNEL, b"", 3 * PAGE);
        image[68..72].copy_from_slice(&flags.to_le_bytes());
        image[72..80].copy_from_slice(&PAGE.to_le_bytes());
        image[96..104].copy_from_slice(&(code.len() as u64).to_le_bytes());
        image.resize(4096, 0xee);
        image.extend_from_slice(&code);
        image.extend_from_slice(&[0xee; 8192]);
        let kernel = file(&image);
        let guest = ram(64);
        load(&guest, &kernel_spec(&kernel), 1, "").unwrap();
        let mut loaded = vec![0; 3 * 4096];
        guest
            .memory()
            .read_slice(&mut loaded, GuestAddress(KERNEL))
            .unwrap();
        assert_eq!(loaded[..code.len()], code);
        assert!(
            loaded[code.len()..].iter().all(|&byte| byte == 0),
            "flags {flags}"
        );

        // A file that was cut would only show later, as a bus error.
        let cut = file(&image[..2 * 4096]);
        let error = load(&ram(64), &kernel_spec(&cut), 1, "").unwrap_err();
        let BootError::Kernel { source, .. } = error else {
            panic!("{error}")
        };
        assert!(matches!(source, kernel::ImageError::Read(_)), "{source}");
    }
}
