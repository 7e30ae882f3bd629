//! /dev/kvm and the virtual machine made from it: chips, slots, interrupt and doorbell wiring.
//!
//! Order that KVM insists on: identity map and TSS before the first vCPU (KVM API §4.40, §4.36); the
//! interrupt chips before vCPUs, so that they get in-kernel local APICs (§4.24); the PIT after the
//! interrupt chips (§4.71).
//!
//! The PIT costs a kernel thread per sandbox and a guest does not miss it: it knows the TSC's frequency
//! from KVM's clock and has a timer in its local APIC. Only where that timer lacks its deadline mode does
//! a guest calibrate it against the PIT, and only there it gets one.

pub mod clock;
pub mod cpuid;
pub mod msr;
pub mod state;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::layout;

/// Why there is no virtual machine.
#[derive(Debug, Error)]
pub enum KvmError {
    /// No KVM here.
    #[error("cannot open /dev/kvm; is KVM enabled, and may this user read and write it?")]
    Open(#[source] kvm_ioctls::Error),
    /// Too old or too strange.
    #[error("KVM speaks API version {0}, only 12 is known")]
    Version(i32),
    /// Something that cannot be done without.
    #[error("this host's KVM lacks {0}")]
    Capability(&'static str),
    /// An ioctl failed.
    #[error("KVM cannot {what}")]
    Ioctl {
        what: &'static str,
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// What every host needs to have, by the name a kernel person knows.
const REQUIRED: [(Cap, &str); 13] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
];

/// The host's KVM, known to be good enough.
#[derive(Debug)]
pub struct Hypervisor {
    kvm: Kvm,
}

impl Hypervisor {
    /// Opens /dev/kvm and checks what it can do.
    pub fn open() -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(KvmError::Open)?;
        let version = kvm.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(KvmError::Version(version));
        }
        for (capability, name) in REQUIRED {
            if !kvm.check_extension(capability) {
                return Err(KvmError::Capability(name));
            }
        }
        Ok(Self { kvm })
    }

    /// Makes a virtual machine with its interrupt chips and timer; no memory, no vCPU yet.
    pub fn create_vm(&self) -> Result<Vm, KvmError> {
        let fd = self.create_vm_fd()?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP.start)
            .map_err(ioctl("place its identity map"))?;
        let tss = usize::try_from(layout::KVM_TSS.start).expect("x86-64 addresses are 64 bits");
        fd.set_tss_address(tss).map_err(ioctl("place its TSS"))?;
        fd.create_irq_chip()
            .map_err(ioctl("make the interrupt chips"))?;
        let has_pit = !self.has_tsc_deadline();
        if has_pit {
            let pit = kvm_pit_config {
                flags: KVM_PIT_SPEAKER_DUMMY,
                ..Default::default()
            };
            fd.create_pit2(pit).map_err(ioctl("make the timer chip"))?;
        }
        Ok(Vm { fd, has_pit })
    }

    /// What the host's KVM lets a guest see of its CPU, before topology.
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(ioctl("list CPU features"))
    }

    /// True if the local APIC timer knows TSC deadlines (not part of the CPUID list, KVM API §4.46).
    #[must_use]
    pub fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    /// The MSRs that make up a vCPU's state.
    pub fn state_msrs(&self) -> Result<Vec<u32>, KvmError> {
        let list = self
            .kvm
            .get_msr_index_list()
            .map_err(ioctl("list its MSRs"))?;
        Ok(list.as_slice().to_vec())
    }

    /// KVM_CREATE_VM sleeps, and a signal then means nothing but "again".
    fn create_vm_fd(&self) -> Result<VmFd, KvmError> {
        loop {
            match self.kvm.create_vm() {
                Err(error) if error.errno() == libc::EINTR => {}
                other => return other.map_err(ioctl("make a virtual machine")),
            }
        }
    }
}

/// One virtual machine.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    has_pit: bool,
}

impl Vm {
    /// The descriptor, for memory slots.
    #[must_use]
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// A new vCPU; `index` is also its APIC id.
    pub fn create_vcpu(&self, index: u8) -> Result<VcpuFd, KvmError> {
        self.fd
            .create_vcpu(u64::from(index))
            .map_err(ioctl("make a vCPU"))
    }

    /// Has KVM raise `irq` (a pulse) whenever `line` is written to.
    pub fn wire_interrupt(&self, line: &EventFd, irq: u32) -> Result<(), KvmError> {
        self.fd
            .register_irqfd(line, irq)
            .map_err(ioctl("wire an interrupt"))
    }

    /// Has KVM signal `doorbell` when the guest writes the 32-bit `value` to `address`.
    pub fn wire_doorbell(
        &self,
        doorbell: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(doorbell, &IoEventAddress::Mmio(address), value)
            .map_err(ioctl("wire a doorbell"))
    }
}

pub(crate) fn ioctl(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Ioctl { what, source }
}
