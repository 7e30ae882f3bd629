//! The devices of a sandbox, in a fixed order: disks as in the spec (the guest's vda is the first), then
//! vsock, then rng. The order gives each its address and interrupt.

pub mod exit;
pub mod rng;
pub mod serial;
pub mod vhost_blk;
pub mod virtio;
pub mod vsock;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::exit::{ExitPort, ResetLine};
use self::rng::Rng;
use self::serial::Console;
use self::vhost_blk::VhostBlk;
use self::vhost_blk::backend::{BackendError, Connecting};
use self::vhost_blk::watch::Watch;
use self::virtio::VirtioDevice;
use self::virtio::mmio::{MmioTransport, register};
use self::vsock::{Vsock, VsockError};
use crate::bus::{Buses, Overlap};
use crate::events::EventLoop;
use crate::kvm::{KvmError, Vm};
use crate::lifeline;
use crate::lock::lock;
use crate::memory::{GuestRam, layout};
use crate::spec::{ConsoleSink, ConsoleSpec, DevicesSpec};

/// Why the devices could not be put together.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// A disk's backend.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The socket device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The console's file.
    #[error("console.path: cannot create {}", path.display())]
    ConsolePath {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The console's descriptor.
    #[error("console.fd: cannot use descriptor {fd}")]
    ConsoleFd {
        fd: i32,
        #[source]
        source: io::Error,
    },
    /// A descriptor of our own.
    #[error("cannot make the event descriptors of a device")]
    Descriptor(#[source] io::Error),
    /// KVM did not take the wiring.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Two devices at one place.
    #[error(transparent)]
    Overlap(#[from] Overlap),
}

/// How many virtio devices a spec makes.
#[must_use]
pub fn virtio_count(spec: &DevicesSpec) -> u32 {
    let disks = u32::try_from(spec.disks.len()).expect("the spec limits disks");
    disks + u32::from(spec.vsock.is_some()) + 1
}

/// All devices, wired to the virtual machine, not yet to the event loop.
#[derive(Debug)]
pub struct DeviceSet {
    buses: Buses,
    virtio: Vec<Arc<Mutex<dyn VirtioDevice>>>,
    watches: Vec<Arc<Mutex<Watch>>>,
    console: Option<Arc<Console<Sink>>>,
}

/// Where the console's output goes.
type Sink = Box<dyn io::Write + Send>;

/// What the devices are built from.
#[derive(Debug)]
pub struct Parts<'a> {
    pub spec: &'a DevicesSpec,
    pub ram: &'a GuestRam,
    pub vm: &'a Vm,
    /// One for each disk of the spec, in its order.
    pub backends: Vec<Connecting>,
}

impl DeviceSet {
    /// Builds and wires everything; `ready` is called when the guest's agent reports.
    pub fn build(parts: Parts<'_>, ready: Box<dyn FnOnce() + Send>) -> Result<Self, DeviceError> {
        let Parts {
            spec,
            ram,
            vm,
            backends,
        } = parts;
        let mut set = Self {
            buses: Buses::default(),
            virtio: Vec::new(),
            watches: Vec::new(),
            console: None,
        };
        set.add_ports(spec.console.as_ref(), vm)?;
        for (disk, backend) in spec.disks.iter().zip(backends) {
            let (backend, stream) = backend.wait()?;
            let watch = Watch::new(&disk.id, stream).map_err(DeviceError::Descriptor)?;
            let device = VhostBlk::new(backend, ram.window().clone(), watch.deadline());
            set.watches.push(Arc::new(Mutex::new(watch)));
            set.add_virtio(Arc::new(Mutex::new(device)), ram, vm)?;
        }
        if let Some(vsock) = &spec.vsock {
            set.add_virtio(Arc::new(Mutex::new(Vsock::new(vsock, ready)?)), ram, vm)?;
        }
        set.add_virtio(Arc::new(Mutex::new(Rng::default())), ram, vm)?;
        Ok(set)
    }

    fn add_ports(&mut self, console: Option<&ConsoleSpec>, vm: &Vm) -> Result<(), DeviceError> {
        self.buses
            .pio
            .insert(layout::EXIT_PORT, Arc::new(ExitPort))?;
        self.buses
            .pio
            .insert(layout::I8042_PORT, Arc::new(ResetLine))?;
        if let Some(console) = console {
            let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(DeviceError::Descriptor)?;
            vm.wire_interrupt(&line, layout::SERIAL_IRQ)?;
            let device = Arc::new(Console::new(line, open_sink(&console.sink)?, console.limit));
            self.buses.pio.insert(layout::SERIAL_PORT, device.clone())?;
            self.console = Some(device);
        }
        Ok(())
    }

    fn add_virtio(
        &mut self,
        device: Arc<Mutex<dyn VirtioDevice>>,
        ram: &GuestRam,
        vm: &Vm,
    ) -> Result<(), DeviceError> {
        let index = u32::try_from(self.virtio.len()).expect("the spec limits devices");
        let range = layout::virtio_mmio(index);
        let transport = MmioTransport::new(Arc::clone(&device), ram.memory().clone())
            .map_err(DeviceError::Descriptor)?;
        vm.wire_interrupt(transport.interrupt().irqfd(), layout::virtio_irq(index))?;
        for (queue, doorbell) in transport.doorbells() {
            vm.wire_doorbell(doorbell, range.start + register::QUEUE_NOTIFY, queue)?;
        }
        self.buses.mmio.insert(range, Arc::new(transport))?;
        self.virtio.push(device);
        Ok(())
    }

    /// Hands the devices' descriptors to the event loop, and the buses to whoever runs vCPUs.
    pub fn attach(self, events: &mut EventLoop) -> io::Result<(Buses, Attached)> {
        for watch in &self.watches {
            let registrar = events.subscribe(watch.clone());
            lock(watch).attach(&registrar)?;
        }
        for device in &self.virtio {
            let registrar = events.subscribe(device.clone());
            lock(device).attach(registrar)?;
        }
        Ok((
            self.buses,
            Attached {
                watches: self.watches,
                console: self.console,
            },
        ))
    }
}

/// What is left to do with devices at the end.
#[derive(Debug)]
pub struct Attached {
    watches: Vec<Arc<Mutex<Watch>>>,
    console: Option<Arc<Console<Sink>>>,
}

impl Attached {
    /// Ends every conversation with a backend, so that no vCPU thread waits for an answer any more.
    pub fn sever(&self) {
        for watch in &self.watches {
            lock(watch).sever();
        }
    }

    /// Writes out what the console has buffered.
    pub fn flush(&self) {
        if let Some(console) = &self.console {
            console.flush();
        }
    }
}

fn open_sink(sink: &ConsoleSink) -> Result<Sink, DeviceError> {
    match sink {
        ConsoleSink::Nowhere => Ok(Box::new(io::sink())),
        ConsoleSink::Path(path) => {
            let failed = |source| DeviceError::ConsolePath {
                path: path.clone(),
                source,
            };
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            // On a FIFO this fails without a reader, instead of waiting for one.
            options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
            Ok(Box::new(options.open(path).map_err(failed)?))
        }
        ConsoleSink::Fd(fd) => {
            let fd = *fd;
            let failed = |source| DeviceError::ConsoleFd { fd, source };
            let file = File::from(lifeline::inherited(fd).map_err(failed)?);
            serial::non_blocking(&file).map_err(failed)?;
            Ok(Box::new(file))
        }
    }
}
