//! Guest memory that a vCPU finds mapped before it runs.

use std::io;

use kvm_bindings::kvm_pre_fault_memory;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl_iowr_nr;

use crate::memory::layout::Range;
use crate::template::touched::Touched;

ioctl_iowr_nr!(
    KVM_PRE_FAULT_MEMORY,
    kvm_bindings::KVMIO,
    0xd5,
    kvm_pre_fault_memory
);

/// [`prefault`] of all of them.
pub fn all(vcpu: &VcpuFd, touched: &Touched) -> io::Result<()> {
    let mut runs = touched.runs().iter();
    runs.try_for_each(|run| prefault(vcpu, run.range))
}

/// Has KVM map `range` for the guest, as far as reading goes, as if it had touched it (KVM API §4.143). An error is the
/// kernel's word that it cannot (it is older than 6.11, or has no second level of page tables); the guest then
/// touches the pages itself.
pub fn prefault(vcpu: &VcpuFd, range: Range) -> io::Result<()> {
    let mut left = kvm_pre_fault_memory {
        gpa: range.start,
        size: range.len,
        ..Default::default()
    };
    while left.size > 0 {
        // SAFETY: the kernel reads and writes this structure and nothing else of ours; it fills page tables of
        // the guest from memory that is registered with its VM.
        let done = unsafe {
            vmm_sys_util::ioctl::ioctl_with_mut_ref(vcpu, KVM_PRE_FAULT_MEMORY(), &mut left)
        };
        if done == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        let again = matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN));
        if !again {
            return Err(error);
        }
    }
    Ok(())
}
