//! The state of all devices, and laying it on a fresh set of them.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::serial::SerialState;
use super::virtio::StopError;
use super::virtio::mmio::state::{ResumeError, TransportState, is_queue_size};
use super::{Attached, Disk, Socket};
use crate::lock::lock;
use crate::spec::{DiskSpec, MAX_DISKS};

/// A device could not be stopped.
#[derive(Debug, Error)]
#[error("{device}")]
pub struct SaveError {
    device: String,
    #[source]
    source: StopError,
}

/// A device of the template and one of this sandbox are not the same.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// It does not go on.
    #[error("{device} cannot go on")]
    Device {
        device: String,
        #[source]
        source: ResumeError,
    },
    /// The driver has read a configuration that is not this one.
    #[error("disk {id}: its size or its limits are not those it had in the template")]
    Config { id: String },
    /// One has it, the other does not.
    #[error("{0} is there in one of template and clone only")]
    Presence(&'static str),
}

impl RestoreError {
    /// True if another template would help.
    #[must_use]
    pub fn blames_template(&self) -> bool {
        match self {
            Self::Device { source, .. } => !matches!(source, ResumeError::Activate(_)),
            Self::Config { .. } | Self::Presence(_) => true,
        }
    }
}

/// Every device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesState {
    pub console: Option<SerialState>,
    pub disks: Vec<DiskState>,
    pub vsock: Option<VsockState>,
    pub rng: TransportState,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    pub id: String,
    pub read_only: bool,
    /// The largest size of each of its queues.
    pub queue_size: u16,
    pub config: Vec<u8>,
    pub transport: TransportState,
}

/// The socket device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    pub cid: u32,
    /// The driver had connections.
    pub stale: bool,
    /// The host's port of the next connection to the guest.
    pub next_host_port: u32,
    pub transport: TransportState,
}

impl DevicesState {
    /// Whether a set of devices can be made after it; the words say why not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self {
            console: _,
            disks,
            vsock,
            rng,
        } = self;
        if disks.len() > MAX_DISKS {
            return Err(format!("{} disks", disks.len()));
        }
        for disk in disks {
            disk.transport.check()?;
            if !is_queue_size(disk.queue_size) {
                return Err(format!("disk {}: queues of {}", disk.id, disk.queue_size));
            }
        }
        if let Some(vsock) = vsock {
            vsock.transport.check()?;
        }
        rng.check()
    }
}

impl Attached {
    /// Stops every device for good and says how it stands; all vCPUs must be paused. Backends have done
    /// what they were asked for when this returns.
    pub fn save(&self) -> Result<DevicesState, SaveError> {
        let disks = self.disks.iter().map(save_disk);
        Ok(DevicesState {
            disks: disks.collect::<Result<_, _>>()?,
            vsock: self.vsock.as_ref().map(save_socket).transpose()?,
            rng: self.rng.save().map_err(|source| SaveError {
                device: "rng".to_owned(),
                source,
            })?,
            console: self.console.as_ref().map(|console| console.save()),
        })
    }

    /// Lays the state on devices that were just attached. The console has its own already.
    pub fn restore(&self, state: &DevicesState) -> Result<(), RestoreError> {
        let DevicesState {
            console: _,
            disks,
            vsock,
            rng,
        } = state;
        if disks.len() != self.disks.len() {
            return Err(RestoreError::Presence("a disk"));
        }
        for (disk, state) in self.disks.iter().zip(disks) {
            restore_disk(disk, state)?;
        }
        match (&self.vsock, vsock) {
            (Some(socket), Some(state)) => restore_socket(socket, state)?,
            (None, None) => {}
            _ => return Err(RestoreError::Presence("vsock")),
        }
        self.rng.restore(rng).map_err(cannot_go_on("rng"))
    }

    /// Tells every device and every driver to look at its queues. To be called when the vCPUs have their
    /// state, before they run.
    pub fn wake(&self) {
        for disk in &self.disks {
            disk.transport.wake();
        }
        if let Some(socket) = &self.vsock {
            socket.transport.wake();
        }
        self.rng.wake();
        if let Some(console) = &self.console {
            console.wake();
        }
    }
}

fn save_disk(disk: &Disk) -> Result<DiskState, SaveError> {
    let DiskSpec {
        id,
        socket: _,
        read_only,
        queues: _,
        queue_size,
    } = &disk.spec;
    let transport = disk.transport.save().map_err(|source| SaveError {
        device: format!("disk {id}"),
        source,
    })?;
    Ok(DiskState {
        id: id.clone(),
        read_only: *read_only,
        queue_size: *queue_size,
        config: lock(&disk.device).config().to_vec(),
        transport,
    })
}

fn restore_disk(disk: &Disk, state: &DiskState) -> Result<(), RestoreError> {
    let DiskState {
        id,
        read_only: _,
        queue_size: _,
        config,
        transport,
    } = state;
    if lock(&disk.device).config() != config {
        return Err(RestoreError::Config { id: id.clone() });
    }
    let restored = disk.transport.restore(transport);
    restored.map_err(cannot_go_on(&format!("disk {id}")))
}

fn save_socket(socket: &Socket) -> Result<VsockState, SaveError> {
    let device = lock(&socket.device);
    let (stale, next_host_port) = (device.has_connections(), device.next_host_port());
    drop(device);
    let transport = socket.transport.save().map_err(|source| SaveError {
        device: "vsock".to_owned(),
        source,
    })?;
    Ok(VsockState {
        cid: socket.cid,
        stale,
        next_host_port,
        transport,
    })
}

fn restore_socket(socket: &Socket, state: &VsockState) -> Result<(), RestoreError> {
    let VsockState {
        cid: _,
        stale,
        next_host_port,
        transport,
    } = state;
    lock(&socket.device).resume(*stale, *next_host_port);
    let restored = socket.transport.restore(transport);
    restored.map_err(cannot_go_on("vsock"))
}

fn cannot_go_on(device: &str) -> impl Fn(ResumeError) -> RestoreError {
    move |source| RestoreError::Device {
        device: device.to_owned(),
        source,
    }
}
