//! Every guest-physical constant, in one place; an overlap does not compile.
//!
//! ```text
//! 0x0000_0500  GDT            0x0000_7000  zero page        0x0000_9000  page tables (3 pages)
//! 0x0002_0000  command line   0x0009_fc00  MP table         0x0010_0000  RAM again
//! 0x0080_0000  I/O window     0x0100_0000  kernel           … initrd at the top of low RAM
//! 0xc000_0000  end of low RAM 0xd000_0000  virtio-mmio      0xfec0_0000  IOAPIC, LAPIC, KVM's own
//! 0x1_0000_0000  the rest of RAM
//! ```

/// One KiB.
pub const KIB: u64 = 1 << 10;
/// One MiB.
pub const MIB: u64 = 1 << 20;
/// One GiB.
pub const GIB: u64 = 1 << 30;
/// The page size of guest and host.
pub const PAGE: u64 = 4 * KIB;

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Length in bytes, never zero.
    pub len: u64,
}

impl Range {
    /// A range by start and length.
    #[must_use]
    pub const fn new(start: u64, len: u64) -> Self {
        Self { start, len }
    }

    /// The first address after it.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start + self.len
    }

    /// True if `[address, address + len)` lies inside, for any numbers a guest may come up with.
    #[must_use]
    pub const fn contains(self, address: u64, len: u64) -> bool {
        match address.checked_add(len) {
            Some(end) => address >= self.start && end <= self.end(),
            None => false,
        }
    }

    const fn is_before(self, next: Self) -> bool {
        self.end() <= next.start
    }
}

/// Global descriptor table of the boot CPU.
pub const GDT: Range = Range::new(0x500, 0x100);
/// `struct boot_params` (Linux x86 boot protocol, "64-bit boot protocol").
pub const ZERO_PAGE: Range = Range::new(0x7000, PAGE);
/// One page each of PML4, PDPT and PD: the first GiB, identity mapped by 2 MiB pages.
pub const PAGE_TABLES: Range = Range::new(0x9000, 3 * PAGE);
/// The kernel command line, with its terminating zero. Linux takes 2048 bytes on x86.
pub const COMMAND_LINE: Range = Range::new(0x2_0000, 2048);
/// MP floating pointer and table: the last KiB of base memory, where kernels look (MP spec 1.4 §4).
pub const MP_TABLE: Range = Range::new(0x9_fc00, KIB);
/// What a PC keeps for video memory and ROMs: not RAM to the guest.
pub const LEGACY_HOLE: Range = Range::new(0xa_0000, 0x6_0000);
/// First address of RAM above the legacy hole.
pub const HIGH_MEMORY: u64 = MIB;
/// The I/O window; its length is the spec's, at most this.
pub const WINDOW: Range = Range::new(8 * MIB, 8 * MIB);
/// Where the kernel image begins (CONFIG_PHYSICAL_START).
pub const KERNEL: u64 = 16 * MIB;
/// Low RAM ends here at the latest; devices live above.
pub const LOW_RAM_LIMIT: u64 = 3 * GIB;
/// Registers of the virtio-mmio devices.
pub const VIRTIO_MMIO: Range = Range::new(0xd000_0000, MAX_VIRTIO_DEVICES * VIRTIO_MMIO_STRIDE);
/// Distance between two devices.
pub const VIRTIO_MMIO_STRIDE: u64 = PAGE;
/// How many virtio-mmio devices there may be.
pub const MAX_VIRTIO_DEVICES: u64 = 16;
/// The IOAPIC that KVM emulates.
pub const IOAPIC: Range = Range::new(0xfec0_0000, PAGE);
/// The local APIC page.
pub const LAPIC: Range = Range::new(0xfee0_0000, PAGE);
/// KVM's identity map page and TSS (KVM API §4.40 and §4.36; needed on Intel): below 4 GiB, in no slot.
pub const KVM_IDENTITY_MAP: Range = Range::new(0xfffb_c000, PAGE);
/// See [`KVM_IDENTITY_MAP`].
pub const KVM_TSS: Range = Range::new(0xfffb_d000, 3 * PAGE);
/// RAM that does not fit below [`LOW_RAM_LIMIT`] goes on here.
pub const HIGH_RAM: u64 = 4 * GIB;

/// COM1 (I/O port).
pub const SERIAL_PORT: Range = Range::new(0x3f8, 8);
/// COM1's interrupt.
pub const SERIAL_IRQ: u32 = 4;
/// The keyboard controller's command port, of which only the reset line exists.
pub const I8042_PORT: Range = Range::new(0x64, 1);
/// The exit port: 32-bit writes end the sandbox.
pub const EXIT_PORT: Range = Range::new(0x600, 4);

const ORDER: [Range; 13] = [
    GDT,
    ZERO_PAGE,
    PAGE_TABLES,
    COMMAND_LINE,
    MP_TABLE,
    LEGACY_HOLE,
    WINDOW,
    Range::new(KERNEL, LOW_RAM_LIMIT - KERNEL),
    VIRTIO_MMIO,
    IOAPIC,
    LAPIC,
    KVM_IDENTITY_MAP,
    KVM_TSS,
];

const _: () = {
    let mut i = 1;
    while i < ORDER.len() {
        assert!(
            ORDER[i - 1].is_before(ORDER[i]),
            "guest-physical ranges overlap"
        );
        i += 1;
    }
    assert!(KVM_TSS.end() <= HIGH_RAM);
    assert!(LEGACY_HOLE.end() == HIGH_MEMORY);
    assert!(MP_TABLE.end() == LEGACY_HOLE.start);
};

/// Registers of the `index`th virtio device.
#[must_use]
pub fn virtio_mmio(index: u32) -> Range {
    let start = VIRTIO_MMIO.start + u64::from(index) * VIRTIO_MMIO_STRIDE;
    Range::new(start, VIRTIO_MMIO_STRIDE)
}

/// Interrupt of the `index`th virtio device: 5, 6, 7, then from 9 on, since 8 is the clock's.
#[must_use]
pub fn virtio_irq(index: u32) -> u32 {
    if index < 3 { 5 + index } else { 6 + index }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_devices_have_distinct_pins_of_the_ioapic() {
        let irqs: Vec<u32> = (0..16).map(virtio_irq).collect();
        assert_eq!(irqs[..5], [5, 6, 7, 9, 10]);
        assert!(irqs.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(
            irqs.iter()
                .all(|&irq| irq < 24 && ![0, 1, 2, 3, 4, 8].contains(&irq))
        );
        assert_eq!(virtio_mmio(15).end(), VIRTIO_MMIO.end());
    }

    #[test]
    fn containment_survives_hostile_numbers() {
        let window = Range::new(WINDOW.start, 2 * MIB);
        assert!(window.contains(window.start, 0));
        assert!(window.contains(window.start, window.len));
        assert!(!window.contains(window.start, window.len + 1));
        assert!(!window.contains(window.start - 1, 1));
        assert!(!window.contains(u64::MAX, 1));
        assert!(!window.contains(window.start, u64::MAX));
    }
}
