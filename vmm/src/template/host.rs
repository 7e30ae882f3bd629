//! What a template is bound to: this program, and the CPU that KVM shows it.
//!
//! A running kernel has chosen its code by the CPU's features and relies on registers that another model
//! may not have; and the state is laid out as this very build of the program lays it out.

use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read};

use thiserror::Error;
use twox_hash::XxHash3_64;

use super::pages::PIECE;
use crate::kvm::cpuid::{self, Topology};
use crate::kvm::{Hypervisor, KvmError};

/// Why it is not known what is here.
#[derive(Debug, Error)]
pub enum HostError {
    /// KVM does not say.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The program's file.
    #[error("cannot read this program's own file, /proc/self/exe")]
    Program(#[source] io::Error),
}

/// The identity of program and CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Checksum of the program's file.
    pub build: u64,
    /// CPUID leaf 0, as text.
    pub vendor: [u8; 12],
    /// CPUID leaf 1, EAX: family, model, stepping.
    pub signature: u32,
    /// Checksum of all that KVM lets a guest see of the CPU.
    pub features: u64,
}

impl Host {
    /// What is here.
    pub fn here(hypervisor: &Hypervisor) -> Result<Self, HostError> {
        let mut cpuid = hypervisor.supported_cpuid()?;
        // The list has traces of the core that made it; a guest's topology takes their place.
        let one = Topology {
            index: 0,
            vcpus: 1,
            tsc_deadline: hypervisor.has_tsc_deadline(),
        };
        cpuid::apply(&mut cpuid, one);
        let mut here = Self {
            build: program_sum().map_err(HostError::Program)?,
            vendor: [0; 12],
            signature: 0,
            features: 0,
        };
        let mut features = XxHash3_64::default();
        for leaf in cpuid.as_slice() {
            let registers = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx];
            for number in [leaf.function, leaf.index].iter().chain(&registers) {
                features.write(&number.to_le_bytes());
            }
            match leaf.function {
                0 => {
                    let text = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
                    here.vendor.copy_from_slice(text.as_flattened());
                }
                1 => here.signature = leaf.eax,
                _ => {}
            }
        }
        here.features = features.finish();
        Ok(here)
    }

    /// What keeps a template made on `self` from being used on `here`, in words.
    #[must_use]
    pub fn differs_from(&self, here: &Self) -> Option<String> {
        if self.build != here.build {
            return Some("it was made by another build of rundlet-vmm".to_owned());
        }
        let (made, have) = (self.model(), here.model());
        if made != have {
            return Some(format!("it was made on a CPU {made}, this one is {have}"));
        }
        let same = self.features == here.features;
        (!same)
            .then(|| "the CPU features that KVM offers are not those it was made with".to_owned())
    }

    /// Family and model as every tool counts them (Intel SDM, CPUID leaf 1; AMD APM 3, Fn0000_0001).
    fn model(&self) -> String {
        let part = |shift: u32, bits: u32| self.signature >> shift & ((1 << bits) - 1);
        let (family, extended) = (part(8, 4), part(20, 8));
        let family = if family == 0xf {
            family + extended
        } else {
            family
        };
        let model = part(16, 4) << 4 | part(4, 4);
        let vendor = self.vendor.escape_ascii();
        format!(
            "{vendor} family {family} model {model} stepping {}",
            part(0, 4)
        )
    }
}

fn program_sum() -> io::Result<u64> {
    let mut file = File::open("/proc/self/exe")?;
    let mut hasher = XxHash3_64::default();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => hasher.write(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Host = Host {
        build: 1,
        vendor: *b"AuthenticAMD",
        signature: 0x0080_0f12,
        features: 7,
    };

    #[test]
    fn each_difference_has_its_sentence() {
        assert_eq!(HERE.differs_from(&HERE), None);
        let say = |template: Host| template.differs_from(&HERE).unwrap();
        assert!(say(Host { build: 2, ..HERE }).contains("another build"));
        let older = Host {
            signature: 0x0080_0f11,
            ..HERE
        };
        assert_eq!(
            say(older),
            "it was made on a CPU AuthenticAMD family 23 model 1 stepping 1, \
             this one is AuthenticAMD family 23 model 1 stepping 2"
        );
        let intel = Host {
            vendor: *b"GenuineIntel",
            signature: 0x0009_06ea,
            ..HERE
        };
        assert!(say(intel).contains("GenuineIntel family 6 model 158 stepping 10"));
        assert!(
            say(Host {
                features: 8,
                ..HERE
            })
            .contains("features")
        );
    }

    #[test]
    fn this_machine_is_always_the_same() {
        let Ok(hypervisor) = Hypervisor::open() else {
            eprintln!("skipped: this_machine_is_always_the_same: this machine has no /dev/kvm");
            return;
        };
        let here = Host::here(&hypervisor).unwrap();
        for _ in 0..20 {
            assert_eq!(Host::here(&hypervisor).unwrap(), here);
        }
        assert!(here.vendor.is_ascii() && here.signature != 0);
    }
}
