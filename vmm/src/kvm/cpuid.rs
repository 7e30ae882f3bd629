//! The CPU a guest sees: what KVM supports on this host, with our topology and nothing else changed.
//!
//! Topology: one package, one thread a core, APIC id = vCPU index. Leaves 0x4000_00xx (KVM's own
//! features: clock, steal time, …) stay as KVM gives them.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1, EBX: logical processors in bits 16..24, initial APIC id in bits 24..32.
const LEAF1_COUNT_SHIFT: u32 = 16;
const LEAF1_APIC_SHIFT: u32 = 24;
/// Leaf 1, ECX.
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor in the package.
const LEAF1_EDX_HTT: u32 = 1 << 28;
/// Leaf 0xb and 0x1f, ECX bits 8..16: what a level is.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;
/// Cache levels below this belong to one core.
const SHARED_CACHE_LEVEL: u32 = 3;

/// One vCPU's view of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// This vCPU.
    pub index: u8,
    /// All vCPUs.
    pub vcpus: u8,
    /// The APIC timer has TSC-deadline mode.
    pub tsc_deadline: bool,
}

/// Fits the host's list to one vCPU, in place; idempotent, so one list serves all vCPUs in turn.
pub fn apply(cpuid: &mut CpuId, topology: Topology) {
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => leaf_1(entry, topology),
            4 => leaf_4(entry, topology),
            // No performance counters: guests without them have fewer MSRs and a shorter boot.
            0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0xb | 0x1f => leaf_extended_topology(entry, topology),
            0x8000_0008 => leaf_amd_sizes(entry, topology),
            0x8000_001d => leaf_4_sharing(entry, topology),
            0x8000_001e => leaf_amd_topology(entry, topology),
            _ => {}
        }
    }
}

fn leaf_1(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    let (index, count) = (u32::from(topology.index), u32::from(topology.vcpus));
    entry.ebx &= 0xffff;
    entry.ebx |= count << LEAF1_COUNT_SHIFT | index << LEAF1_APIC_SHIFT;
    entry.ecx |= LEAF1_ECX_HYPERVISOR;
    set(
        &mut entry.ecx,
        LEAF1_ECX_TSC_DEADLINE,
        topology.tsc_deadline,
    );
    set(&mut entry.edx, LEAF1_EDX_HTT, topology.vcpus > 1);
}

/// Deterministic cache parameters: EAX bits 14..26 sharing threads - 1, bits 26..32 cores - 1.
fn leaf_4(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    leaf_4_sharing(entry, topology);
    if entry.eax & 0x1f != 0 {
        let cores = u32::from(topology.vcpus).next_power_of_two();
        entry.eax = entry.eax & !(0x3f << 26) | (cores - 1) << 26;
    }
}

fn leaf_4_sharing(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    let (kind, level) = (entry.eax & 0x1f, entry.eax >> 5 & 0x7);
    if kind != 0 {
        let shared = level >= SHARED_CACHE_LEVEL;
        let sharing = if shared {
            u32::from(topology.vcpus).next_power_of_two()
        } else {
            1
        };
        entry.eax = entry.eax & !(0xfff << 14) | (sharing - 1) << 14;
    }
}

/// Levels: one thread a core, all cores in the package, then nothing.
fn leaf_extended_topology(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    let count = u32::from(topology.vcpus);
    let (shift, here, level) = match entry.index {
        0 => (0, 1, LEVEL_THREAD),
        1 => (
            count.next_power_of_two().trailing_zeros(),
            count,
            LEVEL_CORE,
        ),
        _ => (0, 0, 0),
    };
    entry.eax = shift;
    entry.ebx = here;
    entry.ecx = entry.index & 0xff | level << 8;
    entry.edx = u32::from(topology.index);
}

/// ECX bits 0..8: threads - 1; bits 12..16: width of the core id.
fn leaf_amd_sizes(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    let count = u32::from(topology.vcpus);
    let width = count.next_power_of_two().trailing_zeros();
    entry.ecx = entry.ecx & !0xf0ff | (count - 1) | width << 12;
}

/// EAX: APIC id; EBX: core id, one thread each; ECX: node 0 of 1.
fn leaf_amd_topology(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    entry.eax = u32::from(topology.index);
    entry.ebx = u32::from(topology.index);
    entry.ecx = 0;
}

fn set(word: &mut u32, bit: u32, on: bool) {
    *word = if on { *word | bit } else { *word & !bit };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        let all = u32::MAX;
        kvm_cpuid_entry2 {
            function,
            index,
            eax: all,
            ebx: all,
            ecx: all,
            edx: all,
            ..Default::default()
        }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|e| (e.function, e.index) == (function, index))
            .unwrap()
    }

    #[test]
    fn every_vcpu_finds_itself_and_the_others() {
        let leaves = [
            (1, 0),
            (0xb, 0),
            (0xb, 1),
            (0xb, 2),
            (0x8000_0008, 0),
            (0x8000_001e, 0),
        ];
        let entries: Vec<_> = leaves.iter().map(|&(f, i)| entry(f, i)).collect();
        let mut cpuid = CpuId::from_entries(&entries).unwrap();
        for index in 0..3 {
            apply(
                &mut cpuid,
                Topology {
                    index,
                    vcpus: 3,
                    tsc_deadline: true,
                },
            );
            let index = u32::from(index);
            let one = find(&cpuid, 1, 0);
            assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (index, 3));
            assert_ne!(one.ecx & LEAF1_ECX_HYPERVISOR, 0);
            assert_ne!(one.ecx & LEAF1_ECX_TSC_DEADLINE, 0);
            assert_ne!(one.edx & LEAF1_EDX_HTT, 0);
            let (thread, core) = (find(&cpuid, 0xb, 0), find(&cpuid, 0xb, 1));
            assert_eq!(
                (thread.eax, thread.ebx, thread.ecx, thread.edx),
                (0, 1, 0x100, index)
            );
            assert_eq!(
                (core.eax, core.ebx, core.ecx, core.edx),
                (2, 3, 0x201, index)
            );
            assert_eq!(find(&cpuid, 0xb, 2).ebx, 0);
            assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx & 0xf0ff, 0x2002);
            assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, index);
        }
    }

    #[test]
    fn a_single_vcpu_is_no_multiprocessor_and_deadline_needs_the_host() {
        let mut cpuid = CpuId::from_entries(&[entry(1, 0), entry(0xa, 0)]).unwrap();
        apply(
            &mut cpuid,
            Topology {
                index: 0,
                vcpus: 1,
                tsc_deadline: false,
            },
        );
        let one = find(&cpuid, 1, 0);
        assert_eq!(
            (one.edx & LEAF1_EDX_HTT, one.ecx & LEAF1_ECX_TSC_DEADLINE),
            (0, 0)
        );
        assert_eq!(find(&cpuid, 0xa, 0).eax, 0);
    }
}
