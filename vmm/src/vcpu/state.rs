//! The state of a vCPU, saved and restored whole.
//!
//! Order, where KVM cares (KVM API §4):
//! * CPUID first: it decides which registers and MSRs there are.
//! * Special registers (APIC base) before the local APIC; the local APIC (timer mode) before the MSRs
//!   (TSC deadline, which arms it).
//! * MP state is read first, because reading it settles a pending INIT or SIPI, and written early;
//!   pending events are read and written last, because the others touch them.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use thiserror::Error;

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
    /// The guest has measured its clock and would go by it.
    #[error("its TSC ran at {saved} kHz, here it runs at {here} kHz")]
    Frequency { saved: u32, here: u32 },
    /// More CPUID leaves than KVM takes.
    #[error("it has more CPUID leaves than KVM takes")]
    TooManyLeaves,
}

// The template format holds these as KVM lays them out.
const _: () = assert!(size_of::<kvm_regs>() == 144 && size_of::<kvm_sregs>() == 312);
const _: () = assert!(size_of::<kvm_xsave>() == 4096 && size_of::<kvm_xcrs>() == 392);
const _: () = assert!(size_of::<kvm_lapic_state>() == 1024 && size_of::<kvm_debugregs>() == 128);
const _: () = assert!(size_of::<kvm_vcpu_events>() == 64 && size_of::<kvm_mp_state>() == 4);
const _: () = assert!(size_of::<kvm_msr_entry>() == 16 && size_of::<kvm_cpuid_entry2>() == 40);

/// A guest's clock may run this much fast or slow on another host, in parts per million: what clock
/// discipline corrects without a jump, and what measuring the same TSC twice may differ by.
const FREQUENCY_PPM: u64 = 250;

/// The time stamp counter, and the deadline of the local APIC's timer (Intel SDM 4).
const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// IA32_DEBUGCTL.
const MSR_DEBUGCTL: u32 = 0x1d9;
/// The timer's LVT entry; of its bits 16..24: mask, and mode in the next two (Intel SDM 3, 12.5.1).
const APIC_LVTT: usize = 0x320;
const LVTT_MODE_AND_MASK: i8 = 0b111;
const LVTT_DEADLINE: i8 = 0b100;

/// MSRs moved by one ioctl; KVM takes at most 256.
const MSR_BATCH: usize = 128;

/// Everything KVM knows about one vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    tsc_khz: u32,
    cpuid: Vec<kvm_cpuid_entry2>,
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
        let mut state = Self {
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
            tsc_khz: vcpu.get_tsc_khz().map_err(get("the TSC's frequency"))?,
            cpuid: vcpu
                .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
                .map_err(get("the CPUID"))?
                .as_slice()
                .to_vec(),
            events: vcpu.get_vcpu_events().map_err(get("the pending events"))?,
        };
        rearm_deadline(&mut state.msrs, &state.lapic);
        Ok(state)
    }

    /// Lays the state on a fresh vCPU.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let Self {
            tsc_khz,
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
        check_frequency(vcpu, *tsc_khz)?;
        let cpuid = CpuId::from_entries(cpuid).map_err(|_| StateError::TooManyLeaves)?;
        vcpu.set_cpuid2(&cpuid).map_err(set("the CPUID"))?;
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

    /// A made-up vCPU: no field is zero that one could forget.
    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        let mut xsave = Box::<kvm_xsave>::default();
        xsave.region[0] = 0x37f;
        Self {
            tsc_khz: 3_000_000,
            cpuid: vec![kvm_cpuid_entry2 {
                function: 1,
                eax: 0x0080_0f12,
                ..Default::default()
            }],
            mp_state: kvm_mp_state { mp_state: 3 },
            regs: kvm_regs {
                rip: 0xffff_ffff_8100_0000,
                rflags: 2,
                ..Default::default()
            },
            sregs: kvm_sregs {
                cr3: 0x9000,
                apic_base: 0xfee0_0900,
                ..Default::default()
            },
            xsave,
            xcrs: kvm_xcrs {
                nr_xcrs: 1,
                ..Default::default()
            },
            debug: kvm_debugregs {
                dr7: 0x400,
                ..Default::default()
            },
            lapic: Box::new(kvm_lapic_state { regs: [5; 1024] }),
            msrs: vec![kvm_msr_entry {
                index: MSR_TSC,
                data: 77,
                ..Default::default()
            }],
            events: kvm_vcpu_events {
                flags: 8,
                ..Default::default()
            },
        }
    }

    /// How fast its time stamp counter runs.
    #[must_use]
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// The general registers.
    #[must_use]
    pub fn regs(&self) -> &kvm_regs {
        &self.regs
    }
}

fn check_frequency(vcpu: &VcpuFd, saved: u32) -> Result<(), StateError> {
    let here = vcpu.get_tsc_khz().map_err(|source| StateError::Part {
        verb: "read",
        part: "the TSC's frequency",
        source,
    })?;
    if u64::from(saved.abs_diff(here)) * 1_000_000 > u64::from(saved) * FREQUENCY_PPM {
        return Err(StateError::Frequency { saved, here });
    }
    Ok(())
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
        // A debug control of zero is that of a fresh vCPU, and KVM without LBR virtualisation puts a line
        // into the host's log for each that is set.
        let needless = |msr: &&kvm_msr_entry| msr.index == MSR_DEBUGCTL && msr.data == 0;
        let found = msrs.as_slice().iter().take(done);
        saved.extend(found.filter(|msr| !needless(msr)));
        // The one KVM stopped at does not exist for this vCPU: step over it.
        rest = if done < batch.len() {
            &rest[done + 1..]
        } else {
            &rest[done..]
        };
    }
    Ok(saved)
}

/// A timer in deadline mode whose deadline reads as zero has fired, and its interrupt may be on its way.
/// Let it fire again: an idle guest takes one interrupt too many, but none gets lost.
fn rearm_deadline(msrs: &mut [kvm_msr_entry], lapic: &kvm_lapic_state) {
    let register = lapic.regs.get(APIC_LVTT..APIC_LVTT + 4).unwrap_or_default();
    let [_, _, mode, ..] = *register else { return };
    let now = msrs.iter().find(|msr| msr.index == MSR_TSC);
    let now = now.map(|msr| msr.data);
    let deadline = msrs.iter_mut().find(|msr| msr.index == MSR_TSC_DEADLINE);
    if let (Some(now), Some(deadline)) = (now, deadline)
        && mode & LVTT_MODE_AND_MASK == LVTT_DEADLINE
        && deadline.data == 0
    {
        deadline.data = now;
    }
}

fn restore_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), StateError> {
    let set = |source| StateError::Part {
        verb: "write",
        part: "the MSRs",
        source,
    };
    let mut rest = entries;
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(MSR_BATCH)];
        let msrs = Msrs::from_entries(batch).expect("a batch is below the limit");
        let done = vcpu.set_msrs(&msrs).map_err(set)?;
        rest = match batch.get(done) {
            None => &rest[done..],
            // Of some KVM tells the value, but takes none, not even that one.
            Some(refused) if save_msrs(vcpu, &[refused.index])? == [*refused] => &rest[done + 1..],
            Some(refused) => {
                return Err(StateError::Msr {
                    verb: "write",
                    index: refused.index,
                });
            }
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadline_after(lvtt: [i8; 4], deadline: u64) -> u64 {
        let mut lapic = kvm_lapic_state { regs: [0; 1024] };
        lapic.regs[APIC_LVTT..APIC_LVTT + 4].copy_from_slice(&lvtt);
        let mut msrs =
            [(MSR_TSC, 77), (MSR_TSC_DEADLINE, deadline)].map(|(index, data)| kvm_msr_entry {
                index,
                data,
                ..Default::default()
            });
        rearm_deadline(&mut msrs, &lapic);
        msrs[1].data
    }

    #[test]
    fn only_a_fired_deadline_timer_is_armed_again() {
        assert_eq!(deadline_after([0, 0, 0b100, 0], 0), 77);
        assert_eq!(deadline_after([0, 0, 0b100, 0], 5), 5);
        assert_eq!(deadline_after([0, 0, 0b101, 0], 0), 0, "masked");
        assert_eq!(deadline_after([0, 0, 0b010, 0], 0), 0, "periodic");
    }
}
