//! What a sandbox shall be: validated, with no trace of how it was written down.
//!
//! A `SandboxSpec` can only be had from [`crate::wire::Spec`] by `TryFrom`, so whoever holds one need
//! not check again. Whether files exist is found out where they are opened.

mod clone;
mod jail;

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use self::clone::{Binding, CloneDiskSpec, CloneSpec, MAX_LABEL, MAX_LABELS};
use crate::jail::JailSpec;
use crate::memory::layout::MIB;
use crate::wire;

/// Guest memory in MiB.
pub const MEMORY_MIB: RangeInclusive<u32> = 64..=64 * 1024;
/// The I/O window in MiB, a power of two.
pub const WINDOW_MIB: RangeInclusive<u32> = 1..=8;
/// vCPUs.
pub const VCPUS: RangeInclusive<u8> = 1..=16;
/// vhost-user disks; with rng and vsock they fill the 16 device places.
pub const MAX_DISKS: usize = 14;
/// Queues of a disk.
pub const DISK_QUEUES: RangeInclusive<u16> = 1..=16;
/// Entries of a disk queue, a power of two.
pub const QUEUE_SIZE: RangeInclusive<u16> = 2..=1024;
/// Context ids that a guest may have (virtio 1.2 §5.10.4).
pub const CID: RangeInclusive<u32> = 3..=u32::MAX - 1;
/// Bytes kept of the console.
pub const CONSOLE_LIMIT: RangeInclusive<u64> = 1..=1 << 30;
/// sun_path holds 108 bytes with its end mark; guest-dialled ports append `_` and up to 10 digits.
const SOCKET_PATH: usize = 107;
const SOCKET_SUFFIX: usize = 11;

/// What is wrong with a spec; each names its field.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// A number outside its limits.
    #[error("{field}: {value} is not within {min}..={max}")]
    Limit {
        field: String,
        value: u64,
        min: u64,
        max: u64,
    },
    /// A number that must be a power of two.
    #[error("{field}: {value} is not a power of two")]
    PowerOfTwo { field: String, value: u64 },
    /// A text that cannot be used.
    #[error("{field}: {why}")]
    Text { field: String, why: String },
    /// More of something than there may be.
    #[error("{field}: {count} given, at most {max} allowed")]
    TooMany {
        field: &'static str,
        count: usize,
        max: usize,
    },
}

/// A whole sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxSpec {
    /// What to boot.
    pub kernel: KernelSpec,
    /// How much memory.
    pub memory: MemorySpec,
    /// How many vCPUs.
    pub vcpus: u8,
    /// What it has besides.
    pub devices: DevicesSpec,
    /// What it is shut in, if the host's root wants it so.
    pub jail: Option<JailSpec>,
}

/// The devices of a sandbox, as a boot wants them and a clone takes them over from its template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicesSpec {
    /// Disks in device order.
    pub disks: Vec<DiskSpec>,
    /// The vsock device, if any.
    pub vsock: Option<VsockSpec>,
    /// The serial console, if any.
    pub console: Option<ConsoleSpec>,
}

/// The guest kernel and what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSpec {
    /// Uncompressed ELF image.
    pub image: PathBuf,
    /// Initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// Appended to the words that the devices need.
    pub cmdline: String,
}

/// Guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySpec {
    /// Everything, window included.
    pub mib: u32,
    /// The I/O window.
    pub window_mib: u32,
}

impl MemorySpec {
    /// Everything, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.mib) * MIB
    }

    /// The window, in bytes.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        u64::from(self.window_mib) * MIB
    }
}

/// A disk behind a vhost-user-blk backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// Its name in messages.
    pub id: String,
    /// Where the backend listens.
    pub socket: PathBuf,
    /// Refuse to be a writable disk, whatever the backend says.
    pub read_only: bool,
    /// How many queues.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
}

/// The vsock device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockSpec {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// Host side unix socket; guest-dialled ports are `<socket>_<port>`.
    pub socket: PathBuf,
}

/// The serial console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleSpec {
    /// Where its output goes.
    pub sink: ConsoleSink,
    /// How much of it is kept.
    pub limit: u64,
}

impl ConsoleSpec {
    /// A console that the guest can write to and nobody reads.
    #[must_use]
    pub fn silent() -> Self {
        Self {
            sink: ConsoleSink::Nowhere,
            limit: *CONSOLE_LIMIT.start(),
        }
    }
}

/// Where console output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleSink {
    /// Nowhere.
    Nowhere,
    /// A file, created or emptied.
    Path(PathBuf),
    /// A descriptor that this process was started with.
    Fd(i32),
}

impl TryFrom<wire::Spec> for SandboxSpec {
    type Error = SpecError;

    fn try_from(wire: wire::Spec) -> Result<Self, SpecError> {
        within("memory_mib", wire.memory_mib, &MEMORY_MIB)?;
        within("window_mib", wire.window_mib, &WINDOW_MIB)?;
        power_of_two("window_mib", wire.window_mib)?;
        within("vcpus", wire.vcpus, &VCPUS)?;
        let socket = wire.vsock.as_ref().map(|vsock| vsock.socket.clone());
        let jail = |jail| jail::jail(jail, socket.as_deref());
        Ok(Self {
            jail: wire.jail.map(jail).transpose()?,
            kernel: kernel(wire.kernel)?,
            memory: MemorySpec {
                mib: wire.memory_mib,
                window_mib: wire.window_mib,
            },
            vcpus: wire.vcpus,
            devices: DevicesSpec {
                disks: disks(wire.disks)?,
                vsock: wire.vsock.map(vsock).transpose()?,
                console: wire.console.map(console).transpose()?,
            },
        })
    }
}

fn kernel(wire: wire::Kernel) -> Result<KernelSpec, SpecError> {
    path("kernel.path", &wire.path)?;
    if let Some(initrd) = &wire.initrd {
        path("kernel.initrd", initrd)?;
    }
    if let Some(bad) = wire.cmdline.chars().find(|c| !matches!(c, ' '..='~')) {
        return Err(text(
            "kernel.cmdline",
            format!("{bad:?} cannot be in a kernel command line"),
        ));
    }
    Ok(KernelSpec {
        image: wire.path,
        initrd: wire.initrd,
        cmdline: wire.cmdline,
    })
}

fn disks(wire: Vec<wire::Disk>) -> Result<Vec<DiskSpec>, SpecError> {
    check_disks(wire.iter().map(|disk| (&*disk.id, &*disk.socket)))?;
    let mut disks = Vec::with_capacity(wire.len());
    for (index, disk) in wire.into_iter().enumerate() {
        let field = |name: &str| format!("disks[{index}].{name}");
        within(&field("queues"), disk.queues, &DISK_QUEUES)?;
        within(&field("queue_size"), disk.queue_size, &QUEUE_SIZE)?;
        power_of_two(&field("queue_size"), disk.queue_size)?;
        let wire::Disk {
            id,
            socket,
            read_only,
            queues,
            queue_size,
        } = disk;
        disks.push(DiskSpec {
            id,
            socket,
            read_only,
            queues,
            queue_size,
        });
    }
    Ok(disks)
}

/// Ids and sockets, as a boot's disks and a clone's have them.
fn check_disks<'a>(
    disks: impl ExactSizeIterator<Item = (&'a str, &'a Path)>,
) -> Result<(), SpecError> {
    if disks.len() > MAX_DISKS {
        return Err(SpecError::TooMany {
            field: "disks",
            count: disks.len(),
            max: MAX_DISKS,
        });
    }
    let mut seen = HashSet::new();
    for (index, (id, path)) in disks.enumerate() {
        let field = |name: &str| format!("disks[{index}].{name}");
        let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if id.is_empty() || id.len() > 64 || !id.chars().all(usable) {
            let why = "must be 1 to 64 letters, digits, dots, dashes or underscores";
            return Err(text(field("id"), why.to_owned()));
        }
        if !seen.insert(id) {
            return Err(text(field("id"), format!("{id:?} is used by another disk")));
        }
        socket(&field("socket"), path, 0)?;
    }
    Ok(())
}

fn vsock(wire: wire::Vsock) -> Result<VsockSpec, SpecError> {
    within("vsock.cid", wire.cid, &CID)?;
    socket("vsock.socket", &wire.socket, SOCKET_SUFFIX)?;
    Ok(VsockSpec {
        cid: wire.cid,
        socket: wire.socket,
    })
}

fn console(wire: wire::Console) -> Result<ConsoleSpec, SpecError> {
    within("console.limit_bytes", wire.limit_bytes, &CONSOLE_LIMIT)?;
    let sink = match (wire.path, wire.fd) {
        (Some(file), None) => {
            path("console.path", &file)?;
            ConsoleSink::Path(file)
        }
        (None, Some(fd)) if fd < 2 => {
            let why = format!("{fd} is taken: 0 is the spec's, 1 carries the events");
            return Err(text("console.fd", why));
        }
        (None, Some(fd)) => ConsoleSink::Fd(fd),
        (Some(_), Some(_)) => {
            return Err(text(
                "console",
                "give either path or fd, not both".to_owned(),
            ));
        }
        (None, None) => return Err(text("console", "give either path or fd".to_owned())),
    };
    Ok(ConsoleSpec {
        sink,
        limit: wire.limit_bytes,
    })
}

fn within<T>(field: &str, value: T, limits: &RangeInclusive<T>) -> Result<(), SpecError>
where
    T: Copy + PartialOrd + Into<u64>,
{
    if limits.contains(&value) {
        return Ok(());
    }
    let (min, max) = ((*limits.start()).into(), (*limits.end()).into());
    Err(SpecError::Limit {
        field: field.to_owned(),
        value: value.into(),
        min,
        max,
    })
}

fn power_of_two(field: &str, value: impl Into<u64>) -> Result<(), SpecError> {
    let value = value.into();
    if value.is_power_of_two() {
        return Ok(());
    }
    Err(SpecError::PowerOfTwo {
        field: field.to_owned(),
        value,
    })
}

fn path(field: &str, path: &Path) -> Result<(), SpecError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(text(
            field,
            "must be a path, not empty and without NUL".to_owned(),
        ));
    }
    Ok(())
}

fn socket(field: &str, socket: &Path, suffix: usize) -> Result<(), SpecError> {
    path(field, socket)?;
    let (len, max) = (socket.as_os_str().len(), SOCKET_PATH - suffix);
    if len > max {
        let why = format!("{len} bytes are too long for a socket path, the limit is {max}");
        return Err(text(field, why));
    }
    Ok(())
}

fn text(field: impl Into<String>, why: String) -> SpecError {
    SpecError::Text {
        field: field.into(),
        why,
    }
}

#[cfg(test)]
mod tests;
