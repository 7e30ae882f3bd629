//! The registers of a vCPU at the kernel's entry point (Linux x86 boot protocol, 64-bit entry).

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::state::StateError;
use crate::boot::Entry;
use crate::boot::tables::{CODE_SELECTOR, DATA_SELECTOR, GDT_ENTRIES, TSS_SELECTOR};
use crate::memory::layout::{GDT, PAGE_TABLES, ZERO_PAGE};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS with every flag clear; bit 1 is always set.
const RFLAGS: u64 = 2;
/// Power-on values of FCW and MXCSR.
const FPU_CONTROL: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;
/// LVT entries of the local APIC and their delivery modes (bits 8..11).
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const DELIVERY_NMI: u32 = 0b100 << 8;
const DELIVERY_EXT_INT: u32 = 0b111 << 8;

/// Sets the boot CPU to the kernel's 64-bit entry point (Linux x86 boot protocol).
pub fn set_boot_registers(vcpu: &VcpuFd, entry: Entry) -> Result<(), StateError> {
    let set = |part| {
        move |source| StateError::Part {
            verb: "write",
            part,
            source,
        }
    };
    let regs = kvm_regs {
        rip: entry.rip,
        rsi: ZERO_PAGE.start,
        rflags: RFLAGS,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(set("the general registers"))?;
    let fpu = kvm_fpu {
        fcw: FPU_CONTROL,
        mxcsr: MXCSR,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu).map_err(set("the FPU"))?;

    let mut sregs = vcpu.get_sregs().map_err(|source| StateError::Part {
        verb: "read",
        part: "the special registers",
        source,
    })?;
    sregs.cs = segment(CODE_SELECTOR);
    for data in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *data = segment(DATA_SELECTOR);
    }
    sregs.tr = segment(TSS_SELECTOR);
    let limit = u16::try_from(GDT_ENTRIES.len() * 8 - 1).expect("a few entries");
    sregs.gdt = kvm_dtable {
        base: GDT.start,
        limit,
        ..Default::default()
    };
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = PAGE_TABLES.start;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs).map_err(set("the special registers"))
}

/// Sets the local APIC pins as firmware leaves them on every CPU: LINT0 takes the old interrupt
/// controller, LINT1 the NMI.
pub fn set_boot_lapic(vcpu: &VcpuFd) -> Result<(), StateError> {
    let part = "the local APIC";
    let mut lapic = vcpu.get_lapic().map_err(|source| StateError::Part {
        verb: "read",
        part,
        source,
    })?;
    for (offset, mode) in [(APIC_LVT0, DELIVERY_EXT_INT), (APIC_LVT1, DELIVERY_NMI)] {
        // The registers are an array of `char`; only bits 8..16 of a word are changed.
        let [_, second, ..] = mode.to_le_bytes();
        if let Some(byte) = lapic.regs.get_mut(offset + 1) {
            *byte = (*byte & !0x7) | i8::try_from(second).expect("three bits");
        }
    }
    vcpu.set_lapic(&lapic).map_err(|source| StateError::Part {
        verb: "write",
        part,
        source,
    })
}

/// Unpacks a GDT entry into what the CPU would have loaded.
fn segment(selector: u16) -> kvm_segment {
    let entry = GDT_ENTRIES
        .get(usize::from(selector / 8))
        .copied()
        .unwrap_or(0);
    let bits = |shift: u32, width: u32| (entry >> shift) & ((1 << width) - 1);
    let flag = |shift: u32| u8::from(bits(shift, 1) == 1);
    let granular = flag(55) == 1;
    let limit = bits(0, 16) | bits(48, 4) << 16;
    let limit = if granular { limit << 12 | 0xfff } else { limit };
    kvm_segment {
        base: bits(16, 24) | bits(56, 8) << 24,
        limit: u32::try_from(limit).expect("20 bits, or 32 when granular"),
        selector,
        type_: u8::try_from(bits(40, 4)).expect("four bits"),
        s: flag(44),
        dpl: u8::try_from(bits(45, 2)).expect("two bits"),
        present: flag(47),
        avl: flag(52),
        l: flag(53),
        db: flag(54),
        g: u8::from(granular),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_unpack() {
        let code = segment(CODE_SELECTOR);
        assert_eq!((code.base, code.limit, code.type_), (0, u32::MAX, 0xb));
        assert_eq!(
            (code.l, code.db, code.s, code.present, code.g),
            (1, 0, 1, 1, 1)
        );
        let data = segment(DATA_SELECTOR);
        assert_eq!(
            (data.l, data.db, data.type_, data.limit),
            (0, 1, 3, u32::MAX)
        );
        let tss = segment(TSS_SELECTOR);
        assert_eq!((tss.s, tss.type_, tss.present), (0, 0xb, 1));
    }
}
