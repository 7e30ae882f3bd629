//! The registers of a vCPU: as they are at the kernel's entry point, and saved and restored whole.
//!
//! Order, where KVM cares (KVM API §4):
//! * CPUID first: it decides which registers and MSRs there are.
//! * Special registers (APIC base) before the local APIC; the local APIC (timer mode) before the MSRs
//!   (TSC deadline, which arms it).
//! * MP state is read first, because reading it settles a pending INIT or SIPI, and written early;
//!   pending events are read and written last, because the others touch them.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_debugregs, kvm_dtable, kvm_fpu, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use thiserror::Error;

use crate::boot::Entry;
use crate::boot::tables::{CODE_SELECTOR, DATA_SELECTOR, GDT_ENTRIES, TSS_SELECTOR};
use crate::memory::layout::{GDT, PAGE_TABLES, ZERO_PAGE};

/// KVM refused to give or take a part of the state.
#[derive(Debug, Error)]
pub enum StateError {
    /// An ioctl failed.
    #[error("cannot {verb} {part}")]
    Part {
        verb: &'static str,
        part: &'static str,
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM stops at the first MSR it does not like.
    #[error("cannot {verb} MSR {index:#x}")]
    Msr { verb: &'static str, index: u32 },
}

/// MSRs moved by one ioctl; KVM takes at most 256.
const MSR_BATCH: usize = 128;

/// Everything KVM knows about one vCPU.
#[derive(Debug)]
pub struct VcpuState {
    cpuid: CpuId,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<kvm_xsave>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: Box<kvm_lapic_state>,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Reads the state of a vCPU that is not running. `msrs` are the indices KVM lists; those that this
    /// vCPU's CPUID does not have are left out.
    pub fn save(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Self, StateError> {
        let get = |part| {
            move |source| StateError::Part {
                verb: "read",
                part,
                source,
            }
        };
        Ok(Self {
            mp_state: vcpu.get_mp_state().map_err(get("the MP state"))?,
            regs: vcpu.get_regs().map_err(get("the general registers"))?,
            sregs: vcpu.get_sregs().map_err(get("the special registers"))?,
            xsave: Box::new(vcpu.get_xsave().map_err(get("the extended state"))?),
            xcrs: vcpu
                .get_xcrs()
                .map_err(get("the extended control registers"))?,
            debug: vcpu.get_debug_regs().map_err(get("the debug registers"))?,
            lapic: Box::new(vcpu.get_lapic().map_err(get("the local APIC"))?),
            msrs: save_msrs(vcpu, msrs)?,
            cpuid: vcpu
                .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
                .map_err(get("the CPUID"))?,
            events: vcpu.get_vcpu_events().map_err(get("the pending events"))?,
        })
    }

    /// Lays the state on a fresh vCPU.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let Self {
            cpuid,
            mp_state,
            regs,
            sregs,
            xsave,
            xcrs,
            debug,
            lapic,
            msrs,
            events,
        } = self;
        let set = |part| {
            move |source| StateError::Part {
                verb: "write",
                part,
                source,
            }
        };
        vcpu.set_cpuid2(cpuid).map_err(set("the CPUID"))?;
        vcpu.set_mp_state(*mp_state).map_err(set("the MP state"))?;
        vcpu.set_regs(regs).map_err(set("the general registers"))?;
        vcpu.set_sregs(sregs)
            .map_err(set("the special registers"))?;
        set_xsave(vcpu, xsave).map_err(set("the extended state"))?;
        vcpu.set_xcrs(xcrs)
            .map_err(set("the extended control registers"))?;
        vcpu.set_debug_regs(debug)
            .map_err(set("the debug registers"))?;
        vcpu.set_lapic(lapic).map_err(set("the local APIC"))?;
        restore_msrs(vcpu, msrs)?;
        vcpu.set_vcpu_events(events)
            .map_err(set("the pending events"))
    }

    /// The general registers.
    #[must_use]
    pub fn regs(&self) -> &kvm_regs {
        &self.regs
    }
}

fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM reads as much as the vCPU's features need. More than `kvm_xsave` is only needed
    // with features that a process has to ask permission for (AMX), and this one never does.
    unsafe { vcpu.set_xsave(xsave) }
}

fn save_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, StateError> {
    let get = |source| StateError::Part {
        verb: "read",
        part: "the MSRs",
        source,
    };
    let mut saved = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(MSR_BATCH)];
        let entries: Vec<_> = batch
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut msrs = Msrs::from_entries(&entries).expect("a batch is below the limit");
        let done = vcpu.get_msrs(&mut msrs).map_err(get)?;
        saved.extend(msrs.as_slice().iter().take(done));
        // The one KVM stopped at does not exist for this vCPU: step over it.
        rest = if done < batch.len() {
            &rest[done + 1..]
        } else {
            &rest[done..]
        };
    }
    Ok(saved)
}

fn restore_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), StateError> {
    for batch in entries.chunks(MSR_BATCH) {
        let msrs = Msrs::from_entries(batch).expect("a batch is below the limit");
        let done = vcpu.set_msrs(&msrs).map_err(|source| StateError::Part {
            verb: "write",
            part: "the MSRs",
            source,
        })?;
        if let Some(refused) = batch.get(done) {
            return Err(StateError::Msr {
                verb: "write",
                index: refused.index,
            });
        }
    }
    Ok(())
}

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
