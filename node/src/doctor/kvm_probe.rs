//! The smallest guest: a loop of two instructions and a HLT, in flat 32-bit protected mode at
//! privilege level 0 without paging. What a round of it takes tells a processor from an interpreter.
//!
//! Here is the node's only unsafe block: KVM is handed memory (KVM API 4.35) that has to outlive the
//! machine.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

/// `loop: dec ecx; jnz loop; hlt`. ECX comes from us.
const CODE: &[u8] = &[0x49, 0x75, 0xfd, 0xf4];

/// Where the code is; memory is this page and the one before it.
const CODE_AT: u64 = 0x1000;
const MEMORY: usize = 0x2000;

/// The loop is run with more and more rounds, until it takes long enough to measure. The first run's
/// time is taken off the last one's: what entering and leaving the guest costs drops out.
const FIRST: u32 = 64;
const GROWTH: u32 = 4;
const LAST: u32 = FIRST * GROWTH * GROWTH * GROWTH * GROWTH * GROWTH * GROWTH;

/// Long enough. An interpreter at 5 us a round is through with all runs after 25 ms.
const ENOUGH: Duration = Duration::from_millis(2);

/// Each number of rounds is run this often and the best counts: a neighbour may have had the processor.
const TIMES: u32 = 3;

/// The result.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) round_ns: f64,
    pub(super) took: Duration,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("KVM refuses to {0}")]
    Setup(&'static str, #[source] kvm_ioctls::Error),
    #[error("cannot make guest memory")]
    Memory,
    #[error("the guest loop ended wrongly: {0}")]
    Run(String),
}

/// Makes the guest, runs it, takes it down.
pub(super) fn measure() -> Result<Measured, ProbeError> {
    let began = Instant::now();
    let memory = GuestRegionMmap::from_range(GuestAddress(0), MEMORY, None)
        .map_err(|_| ProbeError::Memory)?;
    let code_at = MemoryRegionAddress(CODE_AT);
    memory
        .write_slice(CODE, code_at)
        .map_err(|_| ProbeError::Memory)?;
    let kvm = Kvm::new().map_err(|error| ProbeError::Setup("open", error))?;
    let vm = kvm
        .create_vm()
        .map_err(|error| ProbeError::Setup("create a VM", error))?;
    give_memory(&vm, &memory)?;
    let mut vcpu = vm
        .create_vcpu(0)
        .map_err(|error| ProbeError::Setup("create a vCPU", error))?;
    enter_protected_mode(&vcpu)?;
    // Faults memory and code in.
    run(&mut vcpu, 1)?;
    let first = best(&mut vcpu, FIRST)?;
    let (mut rounds, mut last) = (FIRST, first);
    while rounds == FIRST || (rounds < LAST && last < ENOUGH) {
        rounds *= GROWTH;
        last = best(&mut vcpu, rounds)?;
    }
    let difference = last.saturating_sub(first);
    // The machine is gone before its memory.
    drop((vcpu, vm));
    Ok(Measured {
        round_ns: difference.as_secs_f64() * 1e9 / f64::from(rounds - FIRST),
        took: began.elapsed(),
    })
}

fn give_memory(vm: &VmFd, memory: &GuestRegionMmap) -> Result<(), ProbeError> {
    let address = memory
        .get_host_address(MemoryRegionAddress(0))
        .map_err(|_| ProbeError::Memory)?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: memory.len(),
        userspace_addr: address as u64,
    };
    // SAFETY: the address and size are those of a mapping that `measure` owns and drops after the
    // machine, nothing else in this process uses it while the machine runs, and there is one slot only,
    // so it overlaps none.
    unsafe { vm.set_user_memory_region(region) }
        .map_err(|error| ProbeError::Setup("take guest memory", error))
}

/// Flat segments; nothing loads a descriptor, so there is no table of them.
fn enter_protected_mode(vcpu: &VcpuFd) -> Result<(), ProbeError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(|error| ProbeError::Setup("read registers", error))?;
    let data = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: 16,
        type_: 3,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    sregs.cs = kvm_segment {
        selector: 8,
        type_: 11,
        ..data
    };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    // CR0.PE
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs)
        .map_err(|error| ProbeError::Setup("set registers", error))
}

fn best(vcpu: &mut VcpuFd, rounds: u32) -> Result<Duration, ProbeError> {
    let mut best = Duration::MAX;
    for _ in 0..TIMES {
        best = best.min(run(vcpu, rounds)?);
    }
    Ok(best)
}

fn run(vcpu: &mut VcpuFd, rounds: u32) -> Result<Duration, ProbeError> {
    let mut regs = vcpu
        .get_regs()
        .map_err(|error| ProbeError::Setup("read registers", error))?;
    regs.rip = CODE_AT;
    regs.rcx = rounds.into();
    // Bit 1 is always set, everything else off: no interrupts.
    regs.rflags = 2;
    vcpu.set_regs(&regs)
        .map_err(|error| ProbeError::Setup("set registers", error))?;
    let began = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => break,
            Ok(VcpuExit::Intr) => {}
            Ok(other) => return Err(ProbeError::Run(format!("{other:?}"))),
            Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => {}
            Err(error) => return Err(ProbeError::Run(error.to_string())),
        }
    }
    let took = began.elapsed();
    let left = vcpu
        .get_regs()
        .map_err(|error| ProbeError::Setup("read registers", error))?;
    if left.rcx & 0xffff_ffff != 0 {
        return Err(ProbeError::Run(format!("{} rounds were left", left.rcx)));
    }
    Ok(took)
}
