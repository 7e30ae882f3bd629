//! The control side of a session: what the front end may set, and what it gets back (vhost-user
//! protocol, "Front-end message types"). The wire format is the vhost crate's.
//!
//! Must hold: everything here comes from another process and may be hostile. An error ends this
//! session; nothing a message says can touch another one.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::memory::{MemoryTable, Trust};
use super::ring::SharedRing;
use super::{Options, config};
use crate::disk::Disk;

const TRANSPORT: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// State of the conversation with one front end.
#[derive(Debug)]
pub(super) struct Control {
    disk: Arc<Disk>,
    rings: Vec<SharedRing>,
    trust: Trust,
    resumes: bool,
    table: Option<MemoryTable>,
    owned: bool,
    acked: u64,
    /// A ring was started once: from then on a non-zero base is our own number coming back.
    started: bool,
}

impl Control {
    pub(super) fn new(disk: Arc<Disk>, rings: Vec<SharedRing>, options: &Options) -> Self {
        Self {
            disk,
            rings,
            trust: options.trust,
            resumes: options.resumes,
            table: None,
            owned: false,
            acked: 0,
            started: false,
        }
    }

    fn queues(&self) -> u16 {
        u16::try_from(self.rings.len()).unwrap_or(u16::MAX)
    }

    fn features(&self) -> u64 {
        config::features(&self.disk, self.queues()) | TRANSPORT
    }

    fn ring(&self, index: u32) -> Result<&SharedRing> {
        usize::try_from(index)
            .ok()
            .and_then(|i| self.rings.get(i))
            .ok_or(Error::InvalidParam)
    }

    fn reset(&mut self) -> Result<()> {
        for ring in &self.rings {
            ring.set_enabled(false).map_err(host)?;
            ring.stop().map_err(host)?;
        }
        self.acked = 0;
        Ok(())
    }
}

fn host(error: io::Error) -> Error {
    Error::ReqHandlerError(error)
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::ReqHandlerError(io::Error::other(why.to_string()))
}

/// For messages of features that this device never offers.
fn not_offered<T>() -> Result<T> {
    Err(Error::InvalidOperation(
        "message of a feature that was not offered",
    ))
}

impl VhostUserBackendReqHandlerMut for Control {
    fn set_owner(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.owned, true) {
            return Err(Error::InvalidOperation("session already has an owner"));
        }
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.owned = false;
        self.reset()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset()
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.features();
        if unknown != 0 {
            return Err(refused(format!(
                "feature bits {unknown:#x} were not offered"
            )));
        }
        self.acked = features;
        for ring in &self.rings {
            let mut inner = ring.lock();
            inner
                .queue
                .set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
            inner.write_through = config::is_write_through(features);
            drop(inner);
            // Without protocol features there is no SET_VRING_ENABLE: rings start enabled.
            if features & TRANSPORT == 0 {
                ring.set_enabled(true).map_err(host)?;
            }
        }
        Ok(())
    }

    fn set_mem_table(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        let table = MemoryTable::map(regions, files, self.trust).map_err(|error| {
            let source = std::error::Error::source(&error).map(|s| format!(": {s}"));
            refused(format!("{error}{}", source.unwrap_or_default()))
        })?;
        for ring in &self.rings {
            ring.set_memory(table.memory());
        }
        self.table = Some(table);
        Ok(())
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        let mut ring = self.ring(index)?.lock();
        ring.checked = false;
        ring.queue
            .try_set_size(size)
            .map_err(|_| refused(format!("queue size {num}")))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let table = self
            .table
            .as_ref()
            .ok_or_else(|| refused("ring addresses before memory"))?;
        let find = |address| {
            let guest = table.translate(address).map(vm_memory::GuestAddress);
            guest.ok_or_else(|| refused(format!("ring address {address:#x} is not in the memory")))
        };
        let (descriptor, available, used) = (find(descriptor)?, find(available)?, find(used)?);
        self.ring(index)?
            .set_addresses(descriptor, available, used)
            .map_err(host)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        if base != 0 && !self.started && !self.resumes {
            return Err(refused(
                "the ring was in use before this connection, but a scratch layer is gone with the \
                 connection it was made for; only a socket for clones, with \"resumes\": true, takes \
                 a guest in the middle of its life",
            ));
        }
        self.ring(index)?.lock().queue.set_next_avail(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let next = self.ring(index)?.stop().map_err(host)?;
        Ok(VhostUserVringState::new(index, u32::from(next)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let kick = fd.ok_or_else(|| refused("a ring without kick (polling) is not supported"))?;
        self.ring(u32::from(index))?.set_kick(kick).map_err(host)?;
        self.started = true;
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?.set_call(fd).map_err(host)
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        // An error ends the session, which the front end sees without a further event.
        self.ring(u32::from(index)).map(|_| ())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.queues()))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.set_enabled(enable).map_err(host)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        Ok(config::read(&self.disk, self.queues(), offset, size))
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _buf: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        // The only writable field needs VIRTIO_BLK_F_CONFIG_WCE.
        not_offered()
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        not_offered()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        not_offered()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        not_offered()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        not_offered()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        not_offered()
    }

    fn add_mem_region(&mut self, _: &VhostUserSingleMemoryRegion, _fd: File) -> Result<()> {
        not_offered()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        not_offered()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        not_offered()
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        not_offered()
    }
}
