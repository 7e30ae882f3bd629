//! A guest's two clocks, read and set together.
//!
//! A guest that goes by KVM's clock checks it against the time stamp counter twice a second and distrusts
//! the counter for ever when they drift apart by a fraction of a millisecond; one that goes by the counter
//! has KVM's clock in its own books. So a clone's clocks must be at one and the same instant again.

use kvm_bindings::{Msrs, kvm_clock_data, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::{KvmError, Vm, ioctl};

/// IA32_TIME_STAMP_COUNTER (Intel SDM 4).
const MSR_TSC: u32 = 0x10;

/// One instant of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The boot CPU's time stamp counter.
    pub ticks: u64,
    /// KVM's clock, from which the guest's monotonic time comes.
    pub nanoseconds: u64,
}

impl Moment {
    /// Now. The counter is read before and after the clock; the clock's reading lies in between.
    pub fn now(vm: &Vm, boot_cpu: &VcpuFd) -> Result<Self, KvmError> {
        let before = ticks(boot_cpu)?;
        let clock = vm.fd.get_clock().map_err(ioctl("read the clock"))?;
        let after = ticks(boot_cpu)?;
        Ok(Self {
            ticks: before.wrapping_add(after.wrapping_sub(before) / 2),
            nanoseconds: clock.clock,
        })
    }

    /// Sets KVM's clock to what it is when the counter, which was set to a time after this moment's and has
    /// gone on since, shows what it shows now.
    pub fn resume(&self, vm: &Vm, boot_cpu: &VcpuFd, khz: u32) -> Result<(), KvmError> {
        let passed = ticks(boot_cpu)?.wrapping_sub(self.ticks);
        // Only the time of it: with its flags KVM would add what has passed on the host (KVM API §4.30).
        let clock = kvm_clock_data {
            clock: self.nanoseconds.wrapping_add(to_nanoseconds(passed, khz)),
            ..Default::default()
        };
        vm.fd.set_clock(&clock).map_err(ioctl("set the clock"))
    }
}

/// A difference of ticks may be slightly negative: which clock was read first is not promised.
fn to_nanoseconds(ticks: u64, khz: u32) -> u64 {
    let ticks = i128::from(ticks.cast_signed());
    let nanoseconds = ticks * 1_000_000 / i128::from(khz.max(1));
    i64::try_from(nanoseconds).unwrap_or(0).cast_unsigned()
}

fn ticks(vcpu: &VcpuFd) -> Result<u64, KvmError> {
    let entry = kvm_msr_entry {
        index: MSR_TSC,
        ..Default::default()
    };
    let mut msrs = Msrs::from_entries(&[entry]).expect("one entry is below any limit");
    let what = "read the time stamp counter";
    match vcpu.get_msrs(&mut msrs).map_err(ioctl(what))? {
        1 => Ok(msrs.as_slice().iter().map(|msr| msr.data).sum()),
        _ => Err(KvmError::Capability("a time stamp counter for guests")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::Hypervisor;

    #[test]
    fn ticks_are_time_in_both_directions() {
        assert_eq!(to_nanoseconds(3_000_000, 3_000_000), 1_000_000);
        assert_eq!(
            to_nanoseconds(3_u64.wrapping_neg(), 1_000_000),
            3_u64.wrapping_neg()
        );
        assert_eq!(to_nanoseconds(u64::MAX / 2, 0), 0, "out of any range");
        assert_eq!(to_nanoseconds(1 << 62, 2_000_000), 1 << 61);
    }

    #[test]
    fn both_clocks_go_on_together() {
        let Ok(hypervisor) = Hypervisor::open() else {
            eprintln!("skipped: both_clocks_go_on_together: this machine has no /dev/kvm");
            return;
        };
        let vm = hypervisor.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let khz = vcpu.get_tsc_khz().unwrap();
        let was = Moment::now(&vm, &vcpu).unwrap();
        let later = Moment {
            nanoseconds: 3_600_000_000_000,
            ..was
        };
        later.resume(&vm, &vcpu, khz).unwrap();
        let now = Moment::now(&vm, &vcpu).unwrap();
        let by_ticks = to_nanoseconds(now.ticks - was.ticks, khz);
        let by_clock = now.nanoseconds - later.nanoseconds;
        // A second between two readings of nearly the same moment is not a matter of a busy machine's
        // scheduling, but of clocks that were set apart.
        assert!(
            by_ticks.abs_diff(by_clock) < 1_000_000_000,
            "{by_ticks} {by_clock}"
        );
    }
}
