//! The devices of a sandbox, in a fixed order: disks as in the spec (the guest's vda is the first), then
//! vsock, then rng. The order gives each its address and interrupt.

pub mod exit;
pub mod rng;
pub mod serial;
pub mod state;
pub mod vhost_blk;
pub mod virtio;
pub mod vsock;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::exit::{ExitPort, ResetLine};
use self::rng::Rng;
use self::serial::{Console, SerialState};
use self::vhost_blk::VhostBlk;
use self::vhost_blk::backend::{BackendError, Connecting};
use self::vhost_blk::watch::{Chaperone, Watch};
use self::virtio::VirtioDevice;
use self::virtio::mmio::{MmioTransport, register};
use self::vsock::{Vsock, VsockError};
use crate::bus::{Buses, Overlap};
use crate::events::EventLoop;
use crate::kvm::{KvmError, Vm};
use crate::lifeline;
use crate::lock::lock;
use crate::memory::{GuestRam, layout};
use crate::spec::{ConsoleSink, ConsoleSpec, DevicesSpec, DiskSpec};

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
    /// The console's registers.
    #[error("the console cannot have the registers of the template's")]
    ConsoleState(#[source] io::Error),
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
    /// All of them, in order.
    virtio: Vec<Arc<Mutex<dyn VirtioDevice>>>,
    devices: Attached,
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
    /// The registers of the serial port.
    pub serial: &'a SerialState,
}

impl DeviceSet {
    /// Builds and wires everything; `ready` is called when the guest's agent reports.
    pub fn build(parts: Parts<'_>, ready: Box<dyn FnOnce() + Send>) -> Result<Self, DeviceError> {
        let Parts {
            spec,
            ram,
            vm,
            backends,
            serial,
        } = parts;
        let mut wiring = Wiring {
            buses: Buses::default(),
            virtio: Vec::new(),
            ram,
            vm,
        };
        let console = spec.console.as_ref();
        let console = wiring.add_ports(console, serial)?;
        let mut disks = Vec::with_capacity(spec.disks.len());
        for (disk, backend) in spec.disks.iter().zip(backends) {
            disks.push(wiring.add_disk(disk, backend)?);
        }
        let vsock = spec.vsock.as_ref().map(|vsock| {
            let device = Arc::new(Mutex::new(Vsock::new(vsock, ready)?));
            let transport = wiring.add_virtio(device.clone())?;
            Ok::<_, DeviceError>(Socket {
                cid: vsock.cid,
                device,
                transport,
            })
        });
        let vsock = vsock.transpose()?;
        let rng = wiring.add_virtio(Arc::new(Mutex::new(Rng::default())))?;
        Ok(Self {
            buses: wiring.buses,
            virtio: wiring.virtio,
            devices: Attached {
                disks,
                vsock,
                rng,
                console,
            },
        })
    }

    /// Hands the devices' descriptors to the event loop, and the buses to whoever runs vCPUs.
    pub fn attach(self, events: &mut EventLoop) -> io::Result<(Buses, Attached)> {
        for Disk { watch, .. } in &self.devices.disks {
            let registrar = events.subscribe(watch.clone());
            lock(watch).attach(&registrar)?;
        }
        for device in &self.virtio {
            let registrar = events.subscribe(device.clone());
            lock(device).attach(registrar)?;
        }
        Ok((self.buses, self.devices))
    }
}

/// Devices find their place: each gets its addresses and its interrupt.
struct Wiring<'a> {
    buses: Buses,
    virtio: Vec<Arc<Mutex<dyn VirtioDevice>>>,
    ram: &'a GuestRam,
    vm: &'a Vm,
}

impl Wiring<'_> {
    fn add_ports(
        &mut self,
        console: Option<&ConsoleSpec>,
        serial: &SerialState,
    ) -> Result<Option<Arc<Console<Sink>>>, DeviceError> {
        let pio = &mut self.buses.pio;
        pio.insert(layout::EXIT_PORT, Arc::new(ExitPort))?;
        pio.insert(layout::I8042_PORT, Arc::new(ResetLine))?;
        let Some(console) = console else {
            return Ok(None);
        };
        let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(DeviceError::Descriptor)?;
        self.vm.wire_interrupt(&line, layout::SERIAL_IRQ)?;
        let sink = open_sink(&console.sink)?;
        let device = Console::new(serial, line, sink, console.limit);
        let device = Arc::new(device.map_err(DeviceError::ConsoleState)?);
        pio.insert(layout::SERIAL_PORT, device.clone())?;
        Ok(Some(device))
    }

    fn add_disk(&mut self, spec: &DiskSpec, backend: Connecting) -> Result<Disk, DeviceError> {
        let (backend, stream) = backend.wait()?;
        let watch = Watch::new(&spec.id, stream).map_err(DeviceError::Descriptor)?;
        let window = self.ram.window().clone();
        let device = VhostBlk::new(backend, window, watch.deadline());
        let device = Arc::new(Mutex::new(device));
        Ok(Disk {
            spec: spec.clone(),
            transport: self.add_virtio(device.clone())?,
            device,
            watch: Arc::new(Mutex::new(watch)),
        })
    }

    fn add_virtio(
        &mut self,
        device: Arc<Mutex<dyn VirtioDevice>>,
    ) -> Result<Arc<MmioTransport>, DeviceError> {
        let index = u32::try_from(self.virtio.len()).expect("the spec limits devices");
        let range = layout::virtio_mmio(index);
        let transport = MmioTransport::new(Arc::clone(&device), self.ram.memory().clone())
            .map_err(DeviceError::Descriptor)?;
        let line = transport.interrupt().irqfd();
        self.vm.wire_interrupt(line, layout::virtio_irq(index))?;
        for (queue, doorbell) in transport.doorbells() {
            let place = range.start + register::QUEUE_NOTIFY;
            self.vm.wire_doorbell(doorbell, place, queue)?;
        }
        let transport = Arc::new(transport);
        self.buses.mmio.insert(range, transport.clone())?;
        self.virtio.push(device);
        Ok(transport)
    }
}

/// The devices as whoever ends or saves the sandbox needs them.
#[derive(Debug)]
pub struct Attached {
    disks: Vec<Disk>,
    vsock: Option<Socket>,
    rng: Arc<MmioTransport>,
    console: Option<Arc<Console<Sink>>>,
}

#[derive(Debug)]
struct Disk {
    spec: DiskSpec,
    device: Arc<Mutex<VhostBlk>>,
    transport: Arc<MmioTransport>,
    watch: Arc<Mutex<Watch>>,
}

#[derive(Debug)]
struct Socket {
    cid: u32,
    device: Arc<Mutex<Vsock>>,
    transport: Arc<MmioTransport>,
}

impl Attached {
    /// Ends every conversation with a backend, so that no vCPU thread waits for an answer any more.
    pub fn sever(&self) {
        for disk in &self.disks {
            lock(&disk.watch).sever();
        }
    }

    /// To be held while the main thread itself talks to the backends.
    pub fn chaperone(&self) -> io::Result<Chaperone> {
        let watches = self.disks.iter().map(|disk| Arc::clone(&disk.watch));
        Chaperone::start(watches.collect())
    }

    /// All that is to be seen of the file system from now on is this directory, as its root.
    pub fn moved_into(&self, root: &Path) {
        if let Some(vsock) = &self.vsock {
            lock(&vsock.device).moved_into(root);
        }
    }

    /// See [`Vsock::before_first_command`].
    pub fn before_first_command(&self, then: Box<dyn FnOnce() + Send>) {
        if let Some(vsock) = &self.vsock {
            lock(&vsock.device).before_first_command(then);
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
