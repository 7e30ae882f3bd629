//! The state of a virtual machine apart from its vCPUs: the interrupt chips, the timer chip if it has one,
//! and the clock.

use std::fmt;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use serde::{Deserialize, Serialize};

use super::{KvmError, Vm, ioctl};

// The template format holds these as KVM lays them out.
const _: () = assert!(size_of::<kvm_irqchip>() == 520 && size_of::<kvm_pit_state2>() == 112);
const _: () = assert!(size_of::<kvm_clock_data>() == 48);

/// Everything KVM knows about a machine that no vCPU has.
#[derive(Serialize, Deserialize)]
pub struct VmState {
    pics: [kvm_irqchip; 2],
    ioapic: kvm_irqchip,
    pit: Option<kvm_pit_state2>,
    clock: kvm_clock_data,
}

impl fmt::Debug for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmState")
            .field("pit", &self.pit)
            .field("clock", &self.clock)
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
            clock: kvm_clock_data {
                clock: 1_000_000_000,
                ..Default::default()
            },
        }
    }
}

impl Vm {
    /// Reads the state; no vCPU may be running.
    pub fn save(&self) -> Result<VmState, KvmError> {
        let pit = self.has_pit.then(|| self.fd.get_pit2());
        Ok(VmState {
            pics: [
                self.save_chip(KVM_IRQCHIP_PIC_MASTER)?,
                self.save_chip(KVM_IRQCHIP_PIC_SLAVE)?,
            ],
            ioapic: self.save_chip(KVM_IRQCHIP_IOAPIC)?,
            pit: pit.transpose().map_err(ioctl("read the timer chip"))?,
            clock: self.fd.get_clock().map_err(ioctl("read the clock"))?,
        })
    }

    /// Lays the state on a fresh machine whose vCPUs have theirs: the chips hand pending interrupts to the
    /// local APICs. The guest's monotonic time goes on from here.
    pub fn restore(&self, state: &VmState) -> Result<(), KvmError> {
        let VmState {
            pics,
            ioapic,
            pit,
            clock,
        } = state;
        for chip in pics.iter().chain([ioapic]) {
            self.fd
                .set_irqchip(chip)
                .map_err(ioctl("set an interrupt chip"))?;
        }
        if let Some(pit) = pit {
            self.fd.set_pit2(pit).map_err(ioctl("set the timer chip"))?;
        }
        // Only the time of it: with its flags KVM would add what has passed since (KVM API §4.30).
        let clock = kvm_clock_data {
            clock: clock.clock,
            ..Default::default()
        };
        self.fd.set_clock(&clock).map_err(ioctl("set the clock"))
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
