//! One vCPU: KVM_RUN, decode the exit, hand it to the bus. Nothing else.

#![allow(unsafe_code)]

pub mod entry;
pub mod exit_slot;
pub mod prefault;
pub mod state;
pub mod thread;

use std::ops::ControlFlow;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Buses;
use crate::outcome::Outcome;

/// A vCPU with the devices it can reach.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    index: u8,
    buses: Arc<Buses>,
}

/// What one round of the guest came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Enter the guest again.
    Continue,
    /// Kicked: the guest is stopped at an instruction boundary, no access is half done.
    Interrupted,
    /// The sandbox is over.
    End(Outcome),
}

impl Vcpu {
    /// Puts a configured vCPU and the buses together.
    #[must_use]
    pub fn new(fd: VcpuFd, index: u8, buses: Arc<Buses>) -> Self {
        Self { fd, index, buses }
    }

    /// Which vCPU this is.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }

    /// The descriptor, for state.
    #[must_use]
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Runs the guest until it needs us. KVM completes the access that the previous round answered
    /// before it looks at the kick (KVM API §5, `immediate_exit`), which is what makes
    /// [`Step::Interrupted`] a clean place to stop.
    pub fn step(&mut self) -> Step {
        match self.fd.run() {
            Ok(exit) => handle_exit(exit, &self.buses, self.index),
            Err(error) if error.errno() == libc::EINTR => {
                self.fd.set_kvm_immediate_exit(0);
                Step::Interrupted
            }
            // A signal during a page fault of the host side: nothing happened.
            Err(error) if error.errno() == libc::EAGAIN => Step::Continue,
            Err(error) => Step::End(Outcome::Error(format!(
                "KVM_RUN of vCPU {} failed: {error}",
                self.index
            ))),
        }
    }

    /// The byte that makes KVM_RUN return at once.
    fn immediate_exit(&mut self) -> NonNull<AtomicU8> {
        let byte = &raw mut self.fd.get_kvm_run().immediate_exit;
        // SAFETY: a field's address is not null.
        unsafe { NonNull::new_unchecked(byte.cast()) }
    }
}

/// What an exit means. Free of KVM, so that tests can make up exits.
pub(crate) fn handle_exit(exit: VcpuExit<'_>, buses: &Buses, index: u8) -> Step {
    let crash = |what: &str| Step::End(Outcome::Crash(format!("vCPU {index}: {what}")));
    match exit {
        VcpuExit::IoIn(port, data) => {
            buses.pio.read(u64::from(port), data);
            Step::Continue
        }
        VcpuExit::IoOut(port, data) => ended(buses.pio.write(u64::from(port), data)),
        VcpuExit::MmioRead(address, data) => {
            buses.mmio.read(address, data);
            Step::Continue
        }
        VcpuExit::MmioWrite(address, data) => ended(buses.mmio.write(address, data)),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => Step::Continue,
        VcpuExit::Shutdown => crash("triple fault"),
        VcpuExit::InternalError => crash("KVM cannot run what the guest asks for (internal error)"),
        VcpuExit::FailEntry(reason, cpu) => crash(&format!(
            "hardware refused to enter the guest (reason {reason:#x}, CPU {cpu})"
        )),
        other => crash(&format!("unexpected exit {other:?}")),
    }
}

fn ended(flow: ControlFlow<Outcome>) -> Step {
    match flow {
        ControlFlow::Continue(()) => Step::Continue,
        ControlFlow::Break(outcome) => Step::End(outcome),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::memory::layout::Range;

    struct Doorbell;

    impl BusDevice for Doorbell {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn write(&self, _: u64, data: &[u8]) -> ControlFlow<Outcome> {
            match data {
                [0] => ControlFlow::Continue(()),
                _ => ControlFlow::Break(Outcome::PowerOff),
            }
        }
    }

    #[test]
    fn exits_reach_their_bus() {
        let mut buses = Buses::default();
        buses
            .pio
            .insert(Range::new(0x10, 8), Arc::new(Doorbell))
            .unwrap();
        buses
            .mmio
            .insert(Range::new(0x1_0000, 8), Arc::new(Doorbell))
            .unwrap();
        let mut data = [[0; 2]; 3];
        let [port, mapped, empty] = &mut data;
        let reads = [
            VcpuExit::IoIn(0x13, port),
            VcpuExit::MmioRead(0x1_0005, mapped),
            VcpuExit::MmioRead(0x13, empty),
        ];
        for read in reads {
            assert_eq!(handle_exit(read, &buses, 0), Step::Continue);
        }
        assert_eq!(data, [[3, 3], [5, 5], [0xff, 0xff]]);
        let run = |exit| handle_exit(exit, &buses, 0);
        assert_eq!(run(VcpuExit::IoOut(0x10, &[0])), Step::Continue);
        assert_eq!(
            run(VcpuExit::IoOut(0x10, &[1])),
            Step::End(Outcome::PowerOff)
        );
        assert_eq!(
            run(VcpuExit::MmioWrite(0x1_0000, &[1])),
            Step::End(Outcome::PowerOff)
        );
    }

    #[test]
    fn what_no_cpu_survives_is_a_crash_and_not_a_panic() {
        let buses = Buses::default();
        for exit in [
            VcpuExit::Shutdown,
            VcpuExit::InternalError,
            VcpuExit::Hlt,
            VcpuExit::Unknown,
        ] {
            assert!(matches!(
                handle_exit(exit, &buses, 3),
                Step::End(Outcome::Crash(_))
            ));
        }
    }
}
