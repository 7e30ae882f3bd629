//! The recipe that makes a sandbox from a spec, and its life after that.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VcpuFd;
use thiserror::Error;

use crate::boot::{self, BootError, Entry, command_line};
use crate::bus::Buses;
use crate::control::Control;
use crate::devices::vhost_blk::backend::{BackendError, Connecting};
use crate::devices::{Attached, DeviceError, DeviceSet, Parts, virtio_count};
use crate::events::EventLoop;
use crate::kvm::cpuid::{self, Topology};
use crate::kvm::{Hypervisor, KvmError, Vm, msr};
use crate::lifeline::Lifeline;
use crate::lock::lock;
use crate::memory::{GuestRam, MemoryError};
use crate::outcome::{Outcome, with_causes};
use crate::spec::{CloneSpec, SandboxSpec};
use crate::template::{Template, TemplateError};
use crate::timeline::Timeline;
use crate::vcpu::Vcpu;
use crate::vcpu::exit_slot::ExitSlot;
use crate::vcpu::state::{self, StateError};
use crate::vcpu::thread::{ThreadError, Vcpus};
use crate::wire::emit;

/// Why a sandbox did not come to run.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The template does not fit, or is not whole.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A disk's backend.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initrd or tables.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A vCPU's registers.
    #[error(transparent)]
    State(#[from] StateError),
    /// A vCPU's thread.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// The control socket.
    #[error("--control: cannot listen on {}", path.display())]
    Control {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The lifeline.
    #[error("--lifeline: cannot watch it")]
    Lifeline(#[source] io::Error),
    /// The event loop.
    #[error("cannot set up the event loop")]
    Events(#[source] io::Error),
}

impl SandboxError {
    /// What it means for the process; nothing if the spec or the command line is to blame.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Template(error) => Some(error.outcome()),
            error if error.blames_spec() => None,
            error => Some(Outcome::Error(with_causes(error))),
        }
    }

    /// True if another spec (or command line) would help: a file it names cannot be used.
    #[must_use]
    pub fn blames_spec(&self) -> bool {
        match self {
            Self::Boot(error) => !matches!(error, BootError::Write { .. }),
            Self::Device(error) => {
                matches!(
                    error,
                    DeviceError::ConsolePath { .. } | DeviceError::ConsoleFd { .. }
                )
            }
            Self::Control { .. } | Self::Lifeline(_) => true,
            _ => false,
        }
    }
}

/// How the sandbox is tied to the outside, apart from its devices.
#[derive(Debug, Default)]
pub struct Ties {
    /// A pipe whose end is ours, too.
    pub lifeline: Option<OwnedFd>,
    /// Where to make the control socket.
    pub control: Option<PathBuf>,
}

/// A sandbox whose vCPUs are running.
#[derive(Debug)]
pub struct Running {
    vcpus: Arc<Mutex<Vcpus>>,
    events: EventLoop,
    devices: Attached,
    vm: Vm,
    ram: GuestRam,
}

/// Cold boot.
pub fn boot(spec: &SandboxSpec, ties: &Ties, timeline: &Timeline) -> Result<Running, SandboxError> {
    let backends = spec
        .devices
        .disks
        .iter()
        .map(Connecting::start)
        .collect::<Result<Vec<_>, _>>()?;
    let hypervisor = Hypervisor::open()?;
    let vm = hypervisor.create_vm()?;
    timeline.mark("vm");
    let ram = GuestRam::allocate(&spec.memory)?;
    ram.register(vm.fd())?;
    timeline.mark("memory");
    let words = command_line::build(spec, ram.window().range, virtio_count(&spec.devices));
    let entry = boot::load(&ram, &spec.kernel, spec.vcpus, &words)?;
    timeline.mark("kernel");
    let parts = Parts {
        spec: &spec.devices,
        ram: &ram,
        vm: &vm,
        backends,
    };
    let devices = DeviceSet::build(parts, announce_ready(timeline))?;
    let mut events = EventLoop::new().map_err(SandboxError::Events)?;
    let (buses, devices) = devices.attach(&mut events).map_err(SandboxError::Events)?;
    timeline.mark("devices");
    let fds = build_vcpus(&hypervisor, &vm, spec.vcpus, entry)?;
    timeline.mark("vcpus");
    tie_lifeline(ties, &mut events)?;
    let exit = ExitSlot::watched_by(&mut events).map_err(SandboxError::Events)?;
    let vcpus = start_vcpus(fds, buses, &exit)?;
    tie_control(ties, &vcpus, &mut events)?;
    timeline.mark("running");
    Ok(Running {
        vcpus,
        events,
        devices,
        vm,
        ram,
    })
}

/// A clone of a template.
pub fn restore(
    _template: &Template,
    _spec: &CloneSpec,
    _ties: &Ties,
    _timeline: &Timeline,
) -> Result<Running, SandboxError> {
    todo!()
}

impl Running {
    /// Serves the sandbox until it ends; nothing of it is left afterwards.
    #[must_use]
    pub fn run(self) -> Outcome {
        let Self {
            vcpus,
            mut events,
            devices,
            vm,
            ram,
        } = self;
        let outcome = events
            .run()
            .unwrap_or_else(|error| Outcome::Error(format!("waiting for events failed: {error}")));
        // A vCPU thread may wait for a backend; it must come back to be told that it is over.
        devices.sever();
        drop(events);
        drop(vcpus);
        devices.flush();
        drop((vm, ram));
        outcome
    }

    /// The vCPUs, for whoever pauses and saves them.
    #[must_use]
    pub fn vcpus(&self) -> &Arc<Mutex<Vcpus>> {
        &self.vcpus
    }
}

/// The agent's first call ends the timeline.
fn announce_ready(timeline: &Timeline) -> Box<dyn FnOnce() + Send> {
    let timeline = timeline.clone();
    Box::new(move || {
        timeline.mark("agent_ready");
        emit(&timeline.event());
        log::info!("the guest's agent is ready");
    })
}

/// Every vCPU with its CPUID; the first one at the kernel's entry point, the others waiting to be woken by
/// it, as after power-on.
fn build_vcpus(
    hypervisor: &Hypervisor,
    vm: &Vm,
    vcpus: u8,
    entry: Entry,
) -> Result<Vec<VcpuFd>, SandboxError> {
    let mut cpuid = hypervisor.supported_cpuid()?;
    let tsc_deadline = hypervisor.has_tsc_deadline();
    let mut built = Vec::with_capacity(usize::from(vcpus));
    for index in 0..vcpus {
        let vcpu = vm.create_vcpu(index)?;
        cpuid::apply(
            &mut cpuid,
            Topology {
                index,
                vcpus,
                tsc_deadline,
            },
        );
        vcpu.set_cpuid2(&cpuid).map_err(|source| KvmError::Ioctl {
            what: "set the CPUID",
            source,
        })?;
        state::set_boot_lapic(&vcpu)?;
        msr::set_boot_values(&vcpu)?;
        if index == 0 {
            state::set_boot_registers(&vcpu, entry)?;
        }
        built.push(vcpu);
    }
    Ok(built)
}

fn start_vcpus(
    fds: Vec<VcpuFd>,
    buses: Buses,
    exit: &ExitSlot,
) -> Result<Arc<Mutex<Vcpus>>, ThreadError> {
    let buses = Arc::new(buses);
    let vcpus = (0..)
        .zip(fds)
        .map(|(index, fd)| Vcpu::new(fd, index, Arc::clone(&buses)));
    Ok(Arc::new(Mutex::new(Vcpus::start(vcpus.collect(), exit)?)))
}

fn tie_lifeline(ties: &Ties, events: &mut EventLoop) -> Result<(), SandboxError> {
    let pipe = ties.lifeline.as_ref().map(AsFd::as_fd);
    let lifeline = Lifeline::new(pipe).map_err(SandboxError::Lifeline)?;
    let lifeline = Arc::new(Mutex::new(lifeline));
    let registrar = events.subscribe(lifeline.clone());
    lock(&lifeline)
        .attach(&registrar)
        .map_err(SandboxError::Lifeline)
}

fn tie_control(
    ties: &Ties,
    vcpus: &Arc<Mutex<Vcpus>>,
    events: &mut EventLoop,
) -> Result<(), SandboxError> {
    let Some(path) = &ties.control else {
        return Ok(());
    };
    let failed = |source| SandboxError::Control {
        path: path.clone(),
        source,
    };
    let control = Control::bind(path, Arc::clone(vcpus)).map_err(failed)?;
    let control = Arc::new(Mutex::new(control));
    let registrar = events.subscribe(control.clone());
    lock(&control).attach(registrar).map_err(failed)
}
