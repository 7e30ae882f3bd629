//! A vhost-user front end and virtio driver in one process, written from the specification and not
//! from the daemon: own split ring over a memfd, protocol messages by the vhost crate.
//!
//! Used by the integration tests and by the benchmark; either uses only part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::error::Error;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

pub const F_RO: u64 = 1 << 5;
pub const F_FLUSH: u64 = 1 << 9;
pub const F_MQ: u64 = 1 << 12;
pub const F_DISCARD: u64 = 1 << 13;
pub const F_INDIRECT: u64 = 1 << 28;
pub const F_EVENT_IDX: u64 = 1 << 29;

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;
pub const T_DISCARD: u32 = 11;
pub const T_WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Where the memory lies in the "front end's" address space; any number will do.
const USER_BASE: u64 = 0x7000_0000_0000;
/// Room for each queue's three parts.
const QUEUE_AREA: u64 = 0x8000;
/// How long any request may take before a test calls it lost.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How to connect.
#[derive(Clone, Debug)]
pub struct Setup {
    pub queues: usize,
    pub queue_size: u16,
    pub memory_bytes: u64,
    /// Feature bits not to acknowledge.
    pub without: u64,
    pub sealed: bool,
    /// Where the first queue resumes, as after a reconnect.
    pub base: u16,
}

impl Default for Setup {
    fn default() -> Self {
        let (queues, queue_size, memory_bytes) = (1, 128, 2 << 20);
        Self {
            queues,
            queue_size,
            memory_bytes,
            without: 0,
            sealed: true,
            base: 0,
        }
    }
}

/// The driver's half of one split ring.
pub struct Ring {
    base: u64,
    size: u16,
    avail: u16,
    seen: u16,
    event_idx: bool,
    events: Epoll,
    pub kick: EventFd,
    pub call: EventFd,
}

impl Ring {
    fn desc(&self) -> u64 {
        self.base
    }
    fn avail_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }
    fn used_ring(&self) -> u64 {
        (self.avail_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }
}

pub struct Device {
    pub frontend: Frontend,
    pub memory: GuestMemoryMmap,
    pub file: File,
    pub rings: Vec<Ring>,
    pub features: u64,
    pub setup: Setup,
}

/// Guest memory in a memfd.
pub fn shared_memory(bytes: u64, sealed: bool) -> Result<(File, GuestMemoryMmap)> {
    let file = File::from(memfd_create(
        "guest",
        MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC,
    )?);
    file.set_len(bytes)?;
    if sealed {
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    }
    let range = (
        GuestAddress(0),
        usize::try_from(bytes)?,
        Some(FileOffset::new(file.try_clone()?, 0)),
    );
    Ok((file, GuestMemoryMmap::from_ranges_with_files([range])?))
}

impl Device {
    pub fn connect(socket: &Path, setup: &Setup) -> Result<Self> {
        let (file, memory) = shared_memory(setup.memory_bytes, setup.sealed)?;
        Self::connect_with(socket, setup, file, memory)
    }

    /// With memory that an earlier connection used.
    pub fn connect_with(
        socket: &Path,
        setup: &Setup,
        file: File,
        memory: GuestMemoryMmap,
    ) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut frontend = Frontend::from_stream(stream, setup.queues as u64);
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        let features = offered & !setup.without;
        let protocol = frontend.get_protocol_features()?;
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK;
        frontend.set_protocol_features(protocol & wanted)?;
        frontend.set_features(features)?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let mut device = Self {
            frontend,
            memory,
            file,
            rings: Vec::new(),
            features,
            setup: setup.clone(),
        };
        device.share_memory()?;
        for index in 0..setup.queues {
            device.start_queue(index, if index == 0 { setup.base } else { 0 })?;
        }
        Ok(device)
    }

    fn share_memory(&mut self) -> Result<()> {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: self.setup.memory_bytes,
            userspace_addr: USER_BASE,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        Ok(self.frontend.set_mem_table(&[region])?)
    }

    pub fn start_queue(&mut self, index: usize, base: u16) -> Result<()> {
        let call = EventFd::new(EFD_NONBLOCK)?;
        let events = Epoll::new()?;
        let readable = EpollEvent::new(EventSet::IN, 0);
        events.ctl(ControlOperation::Add, call.as_raw_fd(), readable)?;
        let ring = Ring {
            events,
            base: index as u64 * QUEUE_AREA,
            size: self.setup.queue_size,
            avail: base,
            seen: base,
            event_idx: self.features & F_EVENT_IDX != 0,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call,
        };
        self.frontend.set_vring_num(index, ring.size)?;
        self.frontend.set_vring_base(index, base)?;
        let config = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: USER_BASE + ring.desc(),
            used_ring_addr: USER_BASE + ring.used_ring(),
            avail_ring_addr: USER_BASE + ring.avail_ring(),
            log_addr: None,
        };
        self.frontend.set_vring_addr(index, &config)?;
        self.frontend.set_vring_call(index, &ring.call)?;
        self.frontend.set_vring_kick(index, &ring.kick)?;
        if self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
            self.frontend.set_vring_enable(index, true)?;
        }
        self.rings.push(ring);
        Ok(())
    }

    /// First byte that no ring uses.
    pub fn data(&self) -> u64 {
        self.setup.queues as u64 * QUEUE_AREA
    }

    pub fn config(&mut self) -> Result<Vec<u8>> {
        let buf = [0; 60];
        let (_, config) = self
            .frontend
            .get_config(0, 60, VhostUserConfigFlags::empty(), &buf)?;
        Ok(config)
    }

    pub fn capacity(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.config()?[..8].try_into()?))
    }

    pub fn put_descriptor(&self, queue: usize, index: u16, fields: (u64, u32, u16, u16)) {
        let at = self.rings[queue].desc() + 16 * u64::from(index);
        put_descriptor(&self.memory, at, fields);
    }

    /// Makes the chain at descriptor `head` available without telling anybody.
    pub fn push(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = ring.avail_ring() + 4 + 2 * u64::from(ring.avail % ring.size);
        self.memory
            .write_obj(head.to_le(), GuestAddress(slot))
            .unwrap();
        ring.avail = ring.avail.wrapping_add(1);
        let index = GuestAddress(ring.avail_ring() + 2);
        self.memory
            .store(ring.avail.to_le(), index, Ordering::Release)
            .unwrap();
    }

    /// Kicks if the device asked for it since `old` entries were available.
    pub fn kick(&self, queue: usize, old: u16) {
        let ring = &self.rings[queue];
        fence(Ordering::SeqCst);
        let wanted = if ring.event_idx {
            let at = ring.used_ring() + 4 + 8 * u64::from(ring.size);
            let event: u16 = self
                .memory
                .load(GuestAddress(at), Ordering::Relaxed)
                .unwrap();
            ring.avail.wrapping_sub(u16::from_le(event)).wrapping_sub(1)
                < ring.avail.wrapping_sub(old)
        } else {
            let flags: u16 = self
                .memory
                .load(GuestAddress(ring.used_ring()), Ordering::Relaxed)
                .unwrap();
            u16::from_le(flags) & 1 == 0
        };
        if wanted {
            ring.kick.write(1).unwrap();
        }
    }

    /// For a driver that made entries available before this connection.
    pub fn set_avail(&mut self, queue: usize, index: u16) {
        self.rings[queue].avail = index;
    }

    pub fn avail(&self, queue: usize) -> u16 {
        self.rings[queue].avail
    }

    /// The next answer, if there is one: head and length.
    pub fn reap(&mut self, queue: usize) -> Option<(u32, u32)> {
        let ring = &mut self.rings[queue];
        let index: u16 = self
            .memory
            .load(GuestAddress(ring.used_ring() + 2), Ordering::Acquire)
            .unwrap();
        if u16::from_le(index) == ring.seen {
            return None;
        }
        let at = ring.used_ring() + 4 + 8 * u64::from(ring.seen % ring.size);
        ring.seen = ring.seen.wrapping_add(1);
        let element: [u32; 2] = self.memory.read_obj(GuestAddress(at)).unwrap();
        Some((element[0], element[1]))
    }

    /// Waits for an answer by interrupt.
    pub fn wait(&mut self, queue: usize) -> Result<(u32, u32)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.reap(queue) {
                return Ok(answer);
            }
            let ring = &self.rings[queue];
            if ring.event_idx {
                let at = ring.avail_ring() + 4 + 2 * u64::from(ring.size);
                self.memory
                    .store(ring.seen.to_le(), GuestAddress(at), Ordering::Relaxed)?;
                fence(Ordering::SeqCst);
                if let Some(answer) = self.reap(queue) {
                    return Ok(answer);
                }
            }
            let ring = &self.rings[queue];
            let left = deadline
                .checked_duration_since(Instant::now())
                .ok_or("no answer in time")?;
            let mut events = [EpollEvent::default()];
            ring.events
                .wait(i32::try_from(left.as_millis())?, &mut events)?;
            // Nothing there is fine: the answer came without an interrupt.
            let _ = ring.call.read();
        }
    }

    /// One request in the usual shape: header, data, status; data lies at [`Self::data`] + 4096.
    pub fn request(&mut self, queue: usize, kind: u32, sector: u64, len: u32) -> Result<u8> {
        let area = self.data();
        self.memory
            .write_obj(header(kind, sector), GuestAddress(area))?;
        let status = area + 16;
        self.memory.write_obj(0xffu8, GuestAddress(status))?;
        let into = if matches!(kind, T_IN | T_GET_ID) {
            WRITE
        } else {
            0
        };
        let base = 0;
        self.put_descriptor(queue, base, (area, 16, NEXT, base + 1));
        if len > 0 {
            self.put_descriptor(queue, base + 1, (area + 4096, len, NEXT | into, base + 2));
            self.put_descriptor(queue, base + 2, (status, 1, WRITE, 0));
        } else {
            self.put_descriptor(queue, base + 1, (status, 1, WRITE, 0));
        }
        let old = self.avail(queue);
        self.push(queue, base);
        self.kick(queue, old);
        let (head, _) = self.wait(queue)?;
        if head != u32::from(base) {
            return Err(format!("answer for {head}, expected {base}").into());
        }
        Ok(self.memory.read_obj(GuestAddress(status))?)
    }

    pub fn buffer(&self) -> GuestAddress {
        GuestAddress(self.data() + 4096)
    }

    pub fn read(&mut self, sector: u64, len: u32) -> Result<Vec<u8>> {
        let status = self.request(0, T_IN, sector, len)?;
        if status != OK {
            return Err(format!("read status {status}").into());
        }
        let mut out = vec![0; len as usize];
        self.memory.read_slice(&mut out, self.buffer())?;
        Ok(out)
    }

    pub fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<u8> {
        self.memory.write_slice(bytes, self.buffer())?;
        self.request(0, T_OUT, sector, u32::try_from(bytes.len())?)
    }

    pub fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> Result<u8> {
        let mut raw = Vec::new();
        for (sector, sectors, flags) in ranges {
            raw.extend(sector.to_le_bytes());
            raw.extend(sectors.to_le_bytes());
            raw.extend(flags.to_le_bytes());
        }
        self.memory.write_slice(&raw, self.buffer())?;
        self.request(0, kind, 0, u32::try_from(raw.len())?)
    }

    pub fn id(&mut self) -> Result<String> {
        let status = self.request(0, T_GET_ID, 0, 20)?;
        assert_eq!(status, OK);
        let mut id = [0; 20];
        self.memory.read_slice(&mut id, self.buffer())?;
        Ok(String::from_utf8_lossy(&id)
            .trim_end_matches('\0')
            .to_owned())
    }
}

pub fn put_descriptor(
    memory: &GuestMemoryMmap,
    at: u64,
    (addr, len, flags, next): (u64, u32, u16, u16),
) {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&addr.to_le_bytes());
    raw[8..12].copy_from_slice(&len.to_le_bytes());
    raw[12..14].copy_from_slice(&flags.to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    memory.write_slice(&raw, GuestAddress(at)).unwrap();
}

pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..4].copy_from_slice(&kind.to_le_bytes());
    raw[8..].copy_from_slice(&sector.to_le_bytes());
    raw
}
