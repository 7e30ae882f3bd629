//! Model specific registers that firmware would have set before a kernel starts.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{KvmError, ioctl};

/// IA32_MISC_ENABLE, bit 0: fast string operations.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// IA32_MTRR_DEF_TYPE: MTRRs on (bit 11), everything write-back (6).
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// Sets them.
pub fn set_boot_values(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entries = [MISC_ENABLE, MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries).expect("two entries are below any limit");
    let done = vcpu.set_msrs(&msrs).map_err(ioctl("set the boot MSRs"))?;
    if done == entries.len() {
        return Ok(());
    }
    // KVM stops at the first MSR it does not take and says how many went well.
    Err(KvmError::Ioctl {
        what: "set the boot MSRs",
        source: kvm_ioctls::Error::new(libc::EINVAL),
    })
}
