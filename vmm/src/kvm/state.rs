//! The state of a virtual machine apart from its vCPUs: the interrupt chips, the timer chip if it has one,
//! and the clock.

use std::fmt;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::clock::Moment;
use super::{KvmError, Vm, ioctl};

// The template format holds these as KVM lays them out.
const _: () = assert!(size_of::<kvm_irqchip>() == 520 && size_of::<kvm_pit_state2>() == 112);

/// Everything KVM knows about a machine that no vCPU has.
#[derive(Serialize, Deserialize)]
pub struct VmState {
    pics: [kvm_irqchip; 2],
    ioapic: kvm_irqchip,
    pit: Option<kvm_pit_state2>,
    moment: Moment,
}

impl fmt::Debug for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmState")
            .field("pit", &self.pit)
            .field("moment", &self.moment)
            .finish_non_exhaustive()
    }
}

impl VmState {
    /// The state of a machine that was never used.
    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        let chip = |chip_id| kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        Self {
            pics: [chip(KVM_IRQCHIP_PIC_MASTER), chip(KVM_IRQCHIP_PIC_SLAVE)],
            ioapic: chip(KVM_IRQCHIP_IOAPIC),
            pit: None,
            moment: Moment {
                ticks: 3_000_000_000,
                nanoseconds: 1_000_000_000,
            },
        }
    }
}

impl Vm {
    /// Reads the state; no vCPU may be running, and at `moment` none was.
    pub fn save(&self, moment: Moment) -> Result<VmState, KvmError> {
        let pit = self.has_pit.then(|| self.fd.get_pit2());
        Ok(VmState {
            pics: [
                self.save_chip(KVM_IRQCHIP_PIC_MASTER)?,
                self.save_chip(KVM_IRQCHIP_PIC_SLAVE)?,
            ],
            ioapic: self.save_chip(KVM_IRQCHIP_IOAPIC)?,
            pit: pit.transpose().map_err(ioctl("read the timer chip"))?,
            moment,
        })
    }

    /// Lays the state on a fresh machine whose vCPUs have theirs: the chips hand pending interrupts to the
    /// local APICs. The clock goes with the boot CPU's counter, which runs at `khz`.
    pub fn restore(&self, state: &VmState, boot_cpu: &VcpuFd, khz: u32) -> Result<(), KvmError> {
        let VmState {
            pics,
            ioapic,
            pit,
            moment,
        } = state;
        for chip in pics.iter().chain([ioapic]) {
            self.fd
                .set_irqchip(chip)
                .map_err(ioctl("set an interrupt chip"))?;
        }
        if let Some(pit) = pit {
            self.fd.set_pit2(pit).map_err(ioctl("set the timer chip"))?;
        }
        moment.resume(self, boot_cpu, khz)
    }

    fn save_chip(&self, chip_id: u32) -> Result<kvm_irqchip, KvmError> {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        self.fd
            .get_irqchip(&mut chip)
            .map_err(ioctl("read an interrupt chip"))?;
        Ok(chip)
    }
}
