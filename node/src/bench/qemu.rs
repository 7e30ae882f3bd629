//! QEMU's microvm machine: cold boots. Its disks are virtio-blk on plain files, the root read-only and
//! shared by all, the writable one a private copy. Its guest's agent speaks over the kernel's vhost-vsock.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::copy;
use super::guest::{GuestSetup, command_line};
use super::system::{Process, Role, Sandbox, StartFailure, Started, System, steps};
use super::vsock::ReadyPort;
use crate::error::PathError;
use crate::sandbox::peer::{Nest, Peer, PeerError, Place};

/// For one boot, on a busy host.
const PATIENCE: Duration = Duration::from_secs(300);

const SCRATCH: &str = "scratch.img";
const CONSOLE: &str = "console";
const VHOST: &str = "/dev/vhost-vsock";

/// Context ids are the whole host's: ours begin where nobody begins to count.
const FIRST_CID: u32 = 0x5000_0000;

/// Without what a guest like ours never looks at: interrupt controllers other than the APICs, PIT, RTC, ACPI.
const MACHINE: &str = "microvm,acpi=off,pit=off,pic=off,rtc=off";

#[derive(Debug, thiserror::Error)]
enum QemuError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("the path {} has a comma or is no UTF-8 text, and QEMU cannot be told of it", .0.display())]
    Comma(PathBuf),
    #[error("its guest did not come up: {0}")]
    NotReady(String),
}

/// Why it cannot be measured here.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("it needs {VHOST} for the agent: `modprobe vhost_vsock`")]
    NoVhost,
    #[error(
        "cannot listen on vsock port {port} for its agents",
        port = rundlet_protocol::READY_PORT
    )]
    Listen(#[source] io::Error),
}

pub(super) struct Qemu {
    program: PathBuf,
    guest: Arc<GuestSetup>,
    port: ReadyPort,
    next_cid: AtomicU32,
    nest: Nest,
}

struct QemuSandbox {
    started: Started,
    // The process ends before its files.
    peer: Peer,
    _place: Place,
}

impl Qemu {
    pub(super) fn new(program: PathBuf, guest: &Arc<GuestSetup>) -> Result<Self, StartFailure> {
        if !Path::new(VHOST).exists() {
            return Err(Unusable::NoVhost.into());
        }
        let port = ReadyPort::open().map_err(Unusable::Listen)?;
        let run = guest.store.work("qemu")?;
        Ok(Self {
            program,
            guest: Arc::clone(guest),
            port,
            next_cid: AtomicU32::new(FIRST_CID + (std::process::id() & 0xffff) * 0x1000),
            nest: Nest::open(run)?,
        })
    }

    fn boot(&self, id: &str) -> Result<QemuSandbox, QemuError> {
        let requested = Instant::now();
        let place = self.nest.place(id)?;
        copy::file(&self.guest.scratch.path, &place.path().join(SCRATCH))?;
        let cid = self.next_cid.fetch_add(1, Ordering::Relaxed);
        let words = self.port.expect(cid);
        let mut command = Command::new(&self.program);
        command.args(arguments(&self.guest, id, cid)?);
        let prepared = Instant::now();
        let peer = self.nest.spawn(&place, command)?;
        let spawned = Instant::now();
        let heard = peer.hear(&words, PATIENCE);
        let ready = Instant::now();
        self.port.forget(cid);
        heard?.map_err(QemuError::NotReady)?;
        let marks = [
            ("files", prepared),
            ("process", spawned),
            ("VMM, kernel and init until the agent is ready", ready),
        ];
        Ok(QemuSandbox {
            started: Started {
                requested,
                ready,
                steps: steps(requested, &marks),
            },
            peer,
            _place: place,
        })
    }
}

fn arguments(guest: &GuestSetup, id: &str, cid: u32) -> Result<Vec<String>, QemuError> {
    let root = text(&guest.root)?;
    let size = &guest.size;
    let words = [
        ("-M", MACHINE.to_owned()),
        ("-accel", "kvm".into()),
        ("-cpu", "host".into()),
        ("-smp", size.vcpus.to_string()),
        ("-m", format!("{}M", size.memory_mib)),
        ("-display", "none".into()),
        ("-serial", format!("file:{CONSOLE}")),
        ("-kernel", text(&guest.kernel)?.into()),
        ("-initrd", text(&guest.initrd)?.into()),
        ("-append", command_line(id)),
        (
            "-blockdev",
            format!("driver=file,node-name=root,filename={root},read-only=on"),
        ),
        // Disks get their letters in this order.
        ("-device", "virtio-blk-device,drive=root".into()),
        (
            "-blockdev",
            format!("driver=file,node-name=scratch,filename={SCRATCH},discard=unmap"),
        ),
        (
            "-device",
            "virtio-blk-device,drive=scratch,discard=on".into(),
        ),
        ("-device", format!("vhost-vsock-device,guest-cid={cid}")),
    ];
    let mut all: Vec<String> = ["-nodefaults", "-no-user-config", "-no-reboot"]
        .map(Into::into)
        .to_vec();
    for (option, value) in words {
        all.extend([option.to_owned(), value]);
    }
    Ok(all)
}

/// A path inside an option of QEMU's.
fn text(path: &Path) -> Result<&str, QemuError> {
    path.to_str()
        .filter(|path| !path.contains(','))
        .ok_or_else(|| QemuError::Comma(path.to_path_buf()))
}

impl Sandbox for QemuSandbox {
    fn started(&self) -> &Started {
        &self.started
    }

    fn processes(&self) -> Vec<Process> {
        vec![Process {
            pid: self.peer.pid(),
            role: Role::Vmm,
        }]
    }
}

impl System for Qemu {
    fn start(&self, id: &str) -> Result<Box<dyn Sandbox>, StartFailure> {
        Ok(Box::new(self.boot(id)?))
    }

    fn shared(&self) -> Vec<Process> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_told_in_qemu_s_words() {
        let directory = tempfile::tempdir().unwrap();
        let guest = GuestSetup::example(directory.path());
        let arguments = arguments(&guest, "box", 77).unwrap().join(" ");
        for words in [
            "-M microvm,acpi=off,pit=off,pic=off,rtc=off -accel kvm -cpu host -smp 1 -m 128M",
            "-kernel /guest/vmlinux -initrd /guest/initrd.cpio -append nokaslr",
            "rundlet.root=/dev/vda rundlet.scratch=/dev/vdb rundlet.hostname=box -blockdev driver=file,node-name=root",
            "root.erofs,read-only=on -device virtio-blk-device,drive=root -blockdev",
            "vhost-vsock-device,guest-cid=77",
        ] {
            assert!(arguments.contains(words), "{words}: {arguments}");
        }
    }

    #[test]
    fn a_comma_would_become_another_option() {
        let directory = tempfile::tempdir().unwrap();
        let mut guest = GuestSetup::example(directory.path());
        guest.root = "/a,readonly=off".into();
        let error = arguments(&guest, "box", 1).unwrap_err().to_string();
        assert!(error.contains("comma"), "{error}");
    }
}
