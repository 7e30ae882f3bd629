//! The two recipes that make a sandbox, from a spec and from a template, and its life after that.

mod error;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VcpuFd;

pub use self::error::SandboxError;
use crate::boot::{self, Entry, command_line};
use crate::bus::Buses;
use crate::control::Control;
use crate::devices::serial::SerialState;
use crate::devices::vhost_blk::backend::{BackendError, Connecting};
use crate::devices::{Attached, DeviceSet, Parts, virtio_count};
use crate::events::EventLoop;
use crate::jail::{self, Filters, JailError, JailSpec};
use crate::kvm::cpuid::{self, Topology};
use crate::kvm::{Hypervisor, KvmError, Vm, msr};
use crate::lifeline::Lifeline;
use crate::lock::lock;
use crate::memory::GuestRam;
use crate::outcome::Outcome;
use crate::spec::{CloneSpec, DevicesSpec, SandboxSpec};
use crate::template::Template;
use crate::template::capture::Subject;
use crate::template::state::State;
use crate::template::touched::Touched;
use crate::timeline::Timeline;
use crate::vcpu::exit_slot::ExitSlot;
use crate::vcpu::thread::{ThreadError, Vcpus};
use crate::vcpu::{Vcpu, entry, prefault};
use crate::wire::emit;

/// How the sandbox is tied to the outside, apart from its devices.
#[derive(Debug)]
pub struct Ties {
    /// A pipe whose end is ours, too.
    pub lifeline: Option<OwnedFd>,
    /// Where to make the control socket.
    pub control: Option<PathBuf>,
    /// What system calls are left to it; with a control socket, those of a capture, too.
    pub filters: Filters,
}

/// A sandbox whose vCPUs are running.
#[derive(Debug)]
pub struct Running {
    vcpus: Arc<Mutex<Vcpus>>,
    events: EventLoop,
    devices: Arc<Attached>,
    vm: Arc<Vm>,
    ram: GuestRam,
}

/// Cold boot.
pub fn boot(spec: &SandboxSpec, ties: &Ties, timeline: &Timeline) -> Result<Running, SandboxError> {
    let backends = call_backends(&spec.devices)?;
    let hypervisor = Hypervisor::open()?;
    let vm = hypervisor.create_vm()?;
    timeline.mark("vm");
    let ram = GuestRam::allocate(&spec.memory)?;
    ram.register(vm.fd())?;
    timeline.mark("memory");
    let words = command_line::build(spec, ram.window().range, virtio_count(&spec.devices));
    let start = boot::load(&ram, &spec.kernel, spec.vcpus, &words)?;
    timeline.mark("kernel");
    let parts = Parts {
        spec: &spec.devices,
        ram: &ram,
        vm: &vm,
        backends,
        serial: &SerialState::default(),
    };
    let devices = DeviceSet::build(parts, announce_ready(timeline))?;
    let mut events = EventLoop::new().map_err(SandboxError::Events)?;
    let (buses, devices) = devices.attach(&mut events).map_err(SandboxError::Events)?;
    timeline.mark("devices");
    let fds = build_vcpus(&hypervisor, &vm, spec.vcpus, start)?;
    timeline.mark("vcpus");
    let subject = Subject {
        hypervisor: Arc::new(hypervisor),
        vm: Arc::new(vm),
        ram,
        memory: spec.memory,
        devices: Arc::new(devices),
    };
    let outside = Outside {
        ties,
        jail: spec.jail.as_ref(),
    };
    let running = run(subject, (fds, buses), outside, events)?;
    timeline.mark("running");
    Ok(running)
}

/// A clone of a template: as a boot, but that memory, devices and vCPUs have a past.
pub fn restore(
    template: &Template,
    spec: &CloneSpec,
    ties: &Ties,
    timeline: &Timeline,
) -> Result<Running, SandboxError> {
    template.check_binding(&spec.binding)?;
    let outside = Outside {
        ties,
        jail: spec.jail.as_ref(),
    };
    let spec = template.devices(spec)?;
    let state = template.state();
    let backends = call_backends(&spec)?;
    let hypervisor = template.hypervisor();
    let vm = hypervisor.create_vm()?;
    timeline.mark("vm");
    if outside.ties.control.is_some() {
        // It may be asked what it has touched.
        template.forget_cached();
    }
    let ram = template.ram()?;
    ram.register(vm.fd())?;
    timeline.mark("memory");
    let parts = Parts {
        spec: &spec,
        ram: &ram,
        vm: &vm,
        backends,
        serial: &state.devices.console.clone().unwrap_or_default(),
    };
    let devices = DeviceSet::build(parts, Box::new(|| {}))?;
    let mut events = EventLoop::new().map_err(SandboxError::Events)?;
    let (buses, devices) = devices.attach(&mut events).map_err(SandboxError::Events)?;
    let chaperone = devices.chaperone().map_err(SandboxError::Events)?;
    devices.restore(&state.devices)?;
    drop(chaperone);
    timeline.mark("devices");
    let fds = restore_vcpus(&vm, state)?;
    devices.wake();
    timeline.mark("vcpus");
    touch(&ram, fds.first(), template.touched());
    timeline.mark("touched");
    let subject = Subject {
        hypervisor: Arc::clone(hypervisor),
        vm: Arc::new(vm),
        ram,
        memory: state.memory.into(),
        devices: Arc::new(devices),
    };
    let running = run(subject, (fds, buses), outside, events)?;
    touch_for_command(&running, template.first_command());
    timeline.mark("running");
    Ok(running)
}

/// What ties a sandbox to the outside, and what keeps it from there.
#[derive(Clone, Copy)]
struct Outside<'a> {
    ties: &'a Ties,
    jail: Option<&'a JailSpec>,
}

/// Ties it to the outside, puts up the walls, and lets the vCPUs go.
fn run(
    subject: Subject,
    (fds, buses): (Vec<VcpuFd>, Buses),
    Outside { ties, jail }: Outside<'_>,
    mut events: EventLoop,
) -> Result<Running, SandboxError> {
    tie_lifeline(ties, &mut events)?;
    let exit = ExitSlot::watched_by(&mut events).map_err(SandboxError::Events)?;
    let (devices, vm) = (Arc::clone(&subject.devices), Arc::clone(&subject.vm));
    let ram = subject.ram.clone();
    jail::close(jail)?;
    if let Some(jail) = jail {
        devices.moved_into(&jail.root);
    }
    let vcpus = start_vcpus(fds, buses, &exit, ties)?;
    tie_control(ties, &vcpus, subject, &mut events)?;
    ties.filters.main.load().map_err(JailError::from)?;
    lock(&vcpus).begin()?;
    Ok(Running {
        vcpus,
        events,
        devices,
        vm,
        ram,
    })
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

/// Talks to every disk's backend in the background.
fn call_backends(spec: &DevicesSpec) -> Result<Vec<Connecting>, BackendError> {
    spec.disks.iter().map(Connecting::start).collect()
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
    start: Entry,
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
        entry::set_boot_lapic(&vcpu)?;
        msr::set_boot_values(&vcpu)?;
        if index == 0 {
            entry::set_boot_registers(&vcpu, start)?;
        }
        built.push(vcpu);
    }
    Ok(built)
}

/// Every vCPU, and then what they have in common, as it was in the template.
fn restore_vcpus(vm: &Vm, state: &State) -> Result<Vec<VcpuFd>, SandboxError> {
    let mut restored = Vec::with_capacity(state.vcpus.len());
    for (index, state) in (0..).zip(&state.vcpus) {
        let vcpu = vm.create_vcpu(index)?;
        state.restore(&vcpu)?;
        restored.push(vcpu);
    }
    if let (Some(boot_cpu), Some(saved)) = (restored.first(), state.vcpus.first()) {
        vm.restore(&state.vm, boot_cpu, saved.tsc_khz())?;
    }
    Ok(restored)
}

/// Has at hand what every clone touches first. Each page would be an exit otherwise, those that are written two.
/// What cannot be had so the guest gets as it goes.
fn touch(ram: &GuestRam, vcpu: Option<&VcpuFd>, touched: &Touched) {
    populate(ram, touched);
    let mapped = vcpu.map(|vcpu| prefault::all(vcpu, touched));
    if let Some(Err(error)) = mapped {
        log::debug!("pages that are touched are not at hand: {error}");
    }
}

fn populate(ram: &GuestRam, touched: &Touched) {
    for run in touched.runs().iter().filter(|run| run.written) {
        if let Err(error) = ram.populate(run.range) {
            log::debug!("pages that are written are not at hand: {error}");
            break;
        }
    }
}

/// As [`touch`], for what a clone's first command touches, when that is about to come.
fn touch_for_command(running: &Running, touched: &Arc<Touched>) {
    if touched.runs().is_empty() {
        return;
    }
    // The devices, which keep this, are kept by the vCPUs.
    let (ram, vcpus) = (running.ram.clone(), Arc::downgrade(&running.vcpus));
    let touched = Arc::clone(touched);
    running.devices.before_first_command(Box::new(move || {
        populate(&ram, &touched);
        if let Some(vcpus) = vcpus.upgrade() {
            lock(&vcpus).map(&touched);
        }
    }));
}

fn start_vcpus(
    fds: Vec<VcpuFd>,
    buses: Buses,
    exit: &ExitSlot,
    ties: &Ties,
) -> Result<Arc<Mutex<Vcpus>>, ThreadError> {
    let buses = Arc::new(buses);
    let vcpus = (0..)
        .zip(fds)
        .map(|(index, fd)| Vcpu::new(fd, index, Arc::clone(&buses)));
    let vcpus = Vcpus::start(vcpus.collect(), exit, &ties.filters.vcpu)?;
    Ok(Arc::new(Mutex::new(vcpus)))
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
    subject: Subject,
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
    let control = control.with_capture(subject);
    let control = Arc::new(Mutex::new(control));
    let registrar = events.subscribe(control.clone());
    lock(&control).attach(registrar).map_err(failed)
}
