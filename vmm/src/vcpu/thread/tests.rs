//! On a real /dev/kvm, with a guest of a few instructions.

use std::path::Path;
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::boot::{Entry, tables};
use crate::bus::Buses;
use crate::devices::exit::ExitPort;
use crate::jail::seccomp::{self, Duty};
use crate::kvm::cpuid::{self, Topology};
use crate::kvm::{Hypervisor, Vm, msr};
use crate::memory::{GuestRam, layout};
use crate::outcome::Outcome;
use crate::spec::MemorySpec;
use crate::vcpu::entry;

const CODE: u64 = layout::KERNEL;
const COUNTER: GuestAddress = GuestAddress(0x20_0000);
const STOP: GuestAddress = GuestAddress(0x20_0008);

/// Counts at `COUNTER` until `STOP` is not zero, then powers off through the exit port.
const COUNT_UNTIL_STOPPED: [u8; 27] = [
    0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, // inc qword [0x200000]
    0x80, 0x3c, 0x25, 0x08, 0x00, 0x20, 0x00, 0x00, // cmp byte [0x200008], 0
    0x74, 0xee, // je start
    0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
    0x31, 0xc0, // xor eax, eax
    0xef, // out dx, eax
    0xeb, 0xfe, // jmp self
];
/// An invalid instruction without anybody to handle it.
const TRIPLE_FAULT: [u8; 2] = [0x0f, 0x0b];

const SPEC: MemorySpec = MemorySpec {
    mib: 64,
    window_mib: 1,
};

struct Guest {
    ram: GuestRam,
    _vm: Vm,
    hypervisor: Hypervisor,
    exit: ExitSlot,
    vcpus: Vcpus,
}

/// None, with a line that says so, where there is no KVM.
fn hypervisor(test: &str) -> Option<Hypervisor> {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("skipped: {test}: this machine has no /dev/kvm");
        return None;
    }
    Some(Hypervisor::open().unwrap())
}

/// A guest made by `prepare`, which gets its boot vCPU.
fn start(
    hypervisor: Hypervisor,
    count: u8,
    code: &[u8],
    prepare: impl FnOnce(&kvm_ioctls::VcpuFd),
) -> Guest {
    let ram = GuestRam::allocate(&SPEC).unwrap();
    let vm = hypervisor.create_vm().unwrap();
    ram.register(vm.fd()).unwrap();
    tables::write_gdt(ram.memory()).unwrap();
    tables::write_page_tables(ram.memory()).unwrap();
    ram.memory().write_slice(code, GuestAddress(CODE)).unwrap();
    let mut buses = Buses::default();
    buses
        .pio
        .insert(layout::EXIT_PORT, Arc::new(ExitPort))
        .unwrap();
    let buses = Arc::new(buses);
    let mut features = hypervisor.supported_cpuid().unwrap();
    let tsc_deadline = hypervisor.has_tsc_deadline();
    let mut prepare = Some(prepare);
    let vcpus = (0..count).map(|index| {
        let fd = vm.create_vcpu(index).unwrap();
        cpuid::apply(
            &mut features,
            Topology {
                index,
                vcpus: count,
                tsc_deadline,
            },
        );
        fd.set_cpuid2(&features).unwrap();
        entry::set_boot_lapic(&fd).unwrap();
        msr::set_boot_values(&fd).unwrap();
        if let Some(prepare) = prepare.take() {
            prepare(&fd);
        }
        Vcpu::new(fd, index, Arc::clone(&buses))
    });
    let exit = ExitSlot::new().unwrap();
    let filter = Filter::compile(seccomp::vcpu(Duty::Capture)).unwrap();
    let vcpus = Vcpus::start(vcpus.collect(), &exit, &filter).unwrap();
    vcpus.begin().unwrap();
    Guest {
        ram,
        _vm: vm,
        hypervisor,
        exit,
        vcpus,
    }
}

fn at_entry(fd: &kvm_ioctls::VcpuFd) {
    entry::set_boot_registers(fd, Entry { rip: CODE }).unwrap();
}

impl Guest {
    fn counter(&self) -> u64 {
        self.ram.memory().read_obj(COUNTER).unwrap()
    }

    fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{what} did not happen"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn outcome(&self) -> Outcome {
        self.wait("the end", |guest| guest.exit.wake().read().is_ok());
        self.exit.take().unwrap()
    }

    fn wait_for_count(&self, above: u64) {
        self.wait("counting", |guest| guest.counter() > above);
    }
}

#[test]
fn a_paused_guest_stands_still_and_a_resumed_one_goes_on() {
    let Some(hypervisor) = hypervisor("a_paused_guest_stands_still") else {
        return;
    };
    let mut guest = start(hypervisor, 1, &COUNT_UNTIL_STOPPED, at_entry);
    for _ in 0..3 {
        guest.wait_for_count(guest.counter());
        guest.vcpus.pause().unwrap();
        guest.vcpus.pause().unwrap();
        assert!(guest.vcpus.paused());
        let before = guest.counter();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(guest.counter(), before);
        guest.vcpus.resume().unwrap();
        guest.vcpus.resume().unwrap();
        guest.wait_for_count(before);
    }
    guest.ram.memory().write_obj(1_u8, STOP).unwrap();
    assert_eq!(guest.outcome(), Outcome::PowerOff);
    assert!(matches!(
        guest.vcpus.pause(),
        Err(ThreadError::Ended { index: 0 })
    ));
}

#[test]
fn pages_can_be_mapped_while_the_guest_runs_and_while_it_does_not() {
    let Some(hypervisor) = hypervisor("pages_can_be_mapped") else {
        return;
    };
    let mut guest = start(hypervisor, 2, &COUNT_UNTIL_STOPPED, at_entry);
    guest.wait_for_count(10);
    let touched = Arc::new(Touched::of(&guest.ram, &SPEC).unwrap());
    assert!(!touched.runs().is_empty());
    guest.vcpus.map(&touched);
    guest.wait_for_count(guest.counter());
    // Its answer is to this question, not to the one before.
    guest.vcpus.pause().unwrap();
    guest.vcpus.map(&touched);
    guest.vcpus.resume().unwrap();
    guest.wait_for_count(guest.counter());
    guest.ram.memory().write_obj(1_u8, STOP).unwrap();
    assert_eq!(guest.outcome(), Outcome::PowerOff);
    guest.vcpus.map(&touched);
}

#[test]
fn saved_state_goes_on_in_another_machine() {
    let Some(first) = hypervisor("saved_state_goes_on_in_another_machine") else {
        return;
    };
    let mut guest = start(first, 1, &COUNT_UNTIL_STOPPED, at_entry);
    guest.wait_for_count(10);
    let msrs = guest.hypervisor.state_msrs().unwrap();
    assert!(matches!(
        guest.vcpus.save(msrs.clone()),
        Err(ThreadError::NotPaused { index: 0 })
    ));
    guest.vcpus.pause().unwrap();
    let states = guest.vcpus.save(msrs).unwrap();
    let rip = states[0].regs().rip;
    assert!((CODE..CODE + 27).contains(&rip), "{rip:#x}");
    drop(guest);

    let again = hypervisor("").unwrap();
    let restored = start(again, 1, &COUNT_UNTIL_STOPPED, |fd| {
        states[0].restore(fd).unwrap();
    });
    restored.wait_for_count(10);
    restored.ram.memory().write_obj(1_u8, STOP).unwrap();
    assert_eq!(restored.outcome(), Outcome::PowerOff);
}

#[test]
fn processors_that_wait_to_be_woken_can_be_paused_and_dropped() {
    let Some(hypervisor) = hypervisor("processors_that_wait_to_be_woken") else {
        return;
    };
    let mut guest = start(hypervisor, 3, &COUNT_UNTIL_STOPPED, at_entry);
    guest.vcpus.pause().unwrap();
    assert_eq!(guest.vcpus.save(Vec::new()).unwrap().len(), 3);
    guest.vcpus.resume().unwrap();
    guest.wait_for_count(guest.counter());
    let begin = Instant::now();
    drop(guest);
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "took {:?}",
        begin.elapsed()
    );
}

#[test]
fn a_triple_fault_is_a_crash() {
    let Some(hypervisor) = hypervisor("a_triple_fault_is_a_crash") else {
        return;
    };
    let guest = start(hypervisor, 1, &TRIPLE_FAULT, at_entry);
    assert!(matches!(guest.outcome(), Outcome::Crash(_)));
}
