//! Firecracker: cold boots, and restores of a snapshot of the same guest.
//!
//! Each has a directory of its own as its working directory, so that the relative names in a snapshot (the
//! vsock's socket, the writable disk) are files of its own. The guest's agent is reached as in ours: the
//! vsock device forwards connections to and from unix sockets in the same way.

mod api;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::copy;
use super::guest::{GuestSetup, command_line};
use super::system::{Process, Role, Sandbox, StartFailure, Started, System, steps};
use crate::agent::{Agent, AgentError};
use crate::error::PathError;
use crate::sandbox::peer::{Doorbell, Nest, Peer, PeerError, Place};
use api::{Action, ApiError, MemoryBackend};

/// For one boot or restore, on a busy host.
const PATIENCE: Duration = Duration::from_secs(300);

const API: &str = "api.sock";
const VSOCK: &str = "vsock.sock";
const SCRATCH: &str = "scratch.img";
const CONFIG: &str = "config.json";

/// Its own words about the firmware devices that it does not have, from its default command line.
const WORDS: &str = "i8042.noaux i8042.nomux i8042.dumbkbd";

/// Guest context id; its vsock devices do not share a space of them.
const GUEST_CID: u32 = 3;

/// Why a sandbox of it did not start.
#[derive(Debug, thiserror::Error)]
enum FirecrackerError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("cannot describe the machine")]
    Json(#[source] serde_json::Error),
    #[error("the path {} is no UTF-8 text", .0.display())]
    NotText(PathBuf),
    #[error("its guest cannot become a snapshot")]
    Prepare(#[source] AgentError),
}

/// The machine, as its `--config-file` wants it.
#[derive(Debug, Serialize)]
struct Config<'a> {
    #[serde(rename = "boot-source")]
    boot_source: BootSource<'a>,
    drives: [Drive<'a>; 2],
    #[serde(rename = "machine-config")]
    machine: MachineConfig,
    vsock: Vsock<'a>,
}

#[derive(Debug, Serialize)]
struct BootSource<'a> {
    kernel_image_path: &'a str,
    initrd_path: &'a str,
    boot_args: String,
}

#[derive(Debug, Serialize)]
struct Drive<'a> {
    drive_id: &'a str,
    path_on_host: &'a str,
    is_root_device: bool,
    is_read_only: bool,
}

#[derive(Debug, Serialize)]
struct MachineConfig {
    vcpu_count: u8,
    mem_size_mib: u32,
}

#[derive(Debug, Serialize)]
struct Vsock<'a> {
    guest_cid: u32,
    uds_path: &'a str,
}

/// What both ways need.
pub(super) struct Firecracker {
    program: PathBuf,
    guest: Arc<GuestSetup>,
    nest: Nest,
}

/// A sandbox of either way.
struct FirecrackerSandbox {
    started: Started,
    // The process ends before its files.
    peer: Peer,
    _place: Place,
}

impl Sandbox for FirecrackerSandbox {
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

impl Firecracker {
    pub(super) fn new(program: PathBuf, guest: &Arc<GuestSetup>) -> Result<Self, StartFailure> {
        let run = guest.store.work("firecracker")?;
        Ok(Self {
            program,
            guest: Arc::clone(guest),
            nest: Nest::open(run)?,
        })
    }

    /// Boots; ready when the agent has said so.
    fn boot(&self, id: &str, with_api: bool) -> Result<FirecrackerSandbox, FirecrackerError> {
        let requested = Instant::now();
        let place = self.nest.place(id)?;
        copy::file(&self.guest.scratch.path, &place.path().join(SCRATCH))?;
        let ready_name = format!("{VSOCK}_{}", rundlet_protocol::READY_PORT);
        let doorbell = Doorbell::at(&place.socket(&ready_name)?)?;
        let path = place.path().join(CONFIG);
        fs::write(&path, config(&self.guest, id)?).map_err(PathError::at("write", &path))?;
        let prepared = Instant::now();
        let mut command = Command::new(&self.program);
        command.args(["--id", id, "--config-file", CONFIG]);
        if with_api {
            command.args(["--api-sock", API]);
        } else {
            command.arg("--no-api");
        }
        let peer = self.nest.spawn(&place, command)?;
        let spawned = Instant::now();
        peer.hear(&doorbell.rings, PATIENCE)??;
        let ready = Instant::now();
        let marks = [
            ("files", prepared),
            ("process", spawned),
            ("VMM, kernel and init until the agent is ready", ready),
        ];
        Ok(FirecrackerSandbox {
            started: Started {
                requested,
                ready,
                steps: steps(requested, &marks),
            },
            peer,
            _place: place,
        })
    }

    /// Restores; ready when the agent has answered a greeting.
    fn restore(
        &self,
        id: &str,
        snapshot: &Snapshot,
    ) -> Result<FirecrackerSandbox, FirecrackerError> {
        let requested = Instant::now();
        let place = self.nest.place(id)?;
        copy::file(&snapshot.scratch, &place.path().join(SCRATCH))?;
        let (socket, vsock) = (place.socket(API)?, place.socket(VSOCK)?);
        let prepared = Instant::now();
        let mut command = Command::new(&self.program);
        command.args(["--id", id, "--api-sock", API]);
        let peer = self.nest.spawn(&place, command)?;
        let stream = peer.until(PATIENCE, || UnixStream::connect(&socket).ok())?;
        let spawned = Instant::now();
        let load = Action::LoadSnapshot {
            snapshot_path: text(&snapshot.state)?,
            mem_backend: MemoryBackend {
                backend_path: text(&snapshot.memory)?,
                backend_type: "File",
            },
            resume_vm: true,
        };
        api::act(&socket, &stream, &load)?;
        let loaded = Instant::now();
        let agent = Agent::new(vsock);
        peer.until(PATIENCE, || agent.dial().ok())?;
        let ready = Instant::now();
        let marks = [
            ("files", prepared),
            ("process until its API is there", spawned),
            ("load and resume", loaded),
            ("agent answers", ready),
        ];
        Ok(FirecrackerSandbox {
            started: Started {
                requested,
                ready,
                steps: steps(requested, &marks),
            },
            peer,
            _place: place,
        })
    }

    /// Makes the snapshot that [`Self::restore`] takes: of a guest that was prepared as for our templates.
    fn snapshot(&self) -> Result<Snapshot, FirecrackerError> {
        let place = self.nest.place("snapshot")?;
        let booted = self.boot("original", true)?;
        let original = booted._place.path();
        let agent = Agent::new(original.join(VSOCK));
        agent
            .prepare(Instant::now() + PATIENCE)
            .map_err(FirecrackerError::Prepare)?;
        let snapshot = Snapshot {
            state: place.path().join("state"),
            memory: place.path().join("memory"),
            scratch: place.path().join(SCRATCH),
            _place: place,
        };
        let socket = original.join(API);
        for action in [
            Action::Pause { state: "Paused" },
            Action::CreateSnapshot {
                snapshot_type: "Full",
                snapshot_path: text(&snapshot.state)?,
                mem_file_path: text(&snapshot.memory)?,
            },
        ] {
            let stream = booted
                .peer
                .until(PATIENCE, || UnixStream::connect(&socket).ok())?;
            api::act(&socket, &stream, &action)?;
        }
        copy::file(&original.join(SCRATCH), &snapshot.scratch)?;
        Ok(snapshot)
    }
}

/// The machine as a file, with everything that is in the sandbox's own directory by its name.
fn config(guest: &GuestSetup, hostname: &str) -> Result<Vec<u8>, FirecrackerError> {
    let config = Config {
        boot_source: BootSource {
            kernel_image_path: text(&guest.kernel)?,
            initrd_path: text(&guest.initrd)?,
            boot_args: format!("{WORDS} {}", command_line(hostname)),
        },
        // Disks get their letters in this order.
        drives: [
            drive("root", text(&guest.root)?, true),
            drive("scratch", SCRATCH, false),
        ],
        machine: MachineConfig {
            vcpu_count: guest.size.vcpus,
            mem_size_mib: guest.size.memory_mib,
        },
        vsock: Vsock {
            guest_cid: GUEST_CID,
            uds_path: VSOCK,
        },
    };
    serde_json::to_vec(&config).map_err(FirecrackerError::Json)
}

fn drive<'a>(id: &'a str, path: &'a str, is_read_only: bool) -> Drive<'a> {
    Drive {
        drive_id: id,
        path_on_host: path,
        is_root_device: false,
        is_read_only,
    }
}

fn text(path: &Path) -> Result<&str, FirecrackerError> {
    path.to_str()
        .ok_or_else(|| FirecrackerError::NotText(path.to_path_buf()))
}

/// Cold boots of it.
pub(super) struct FirecrackerCold(pub(super) Firecracker);

impl System for FirecrackerCold {
    fn start(&self, id: &str) -> Result<Box<dyn Sandbox>, StartFailure> {
        Ok(Box::new(self.0.boot(id, false)?))
    }

    fn shared(&self) -> Vec<Process> {
        Vec::new()
    }
}

/// A guest that was saved.
struct Snapshot {
    state: PathBuf,
    memory: PathBuf,
    scratch: PathBuf,
    _place: Place,
}

/// Restores of one snapshot.
pub(super) struct FirecrackerRestore {
    // The snapshot lies in its nest.
    snapshot: Snapshot,
    firecracker: Firecracker,
}

impl FirecrackerRestore {
    pub(super) fn new(firecracker: Firecracker) -> Result<Self, StartFailure> {
        Ok(Self {
            snapshot: firecracker.snapshot()?,
            firecracker,
        })
    }
}

impl System for FirecrackerRestore {
    fn start(&self, id: &str) -> Result<Box<dyn Sandbox>, StartFailure> {
        Ok(Box::new(self.firecracker.restore(id, &self.snapshot)?))
    }

    fn shared(&self) -> Vec<Process> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described_as_firecracker_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let guest = GuestSetup::example(directory.path());
        let config: serde_json::Value =
            serde_json::from_slice(&config(&guest, "box").unwrap()).unwrap();
        let args = config["boot-source"]["boot_args"].as_str().unwrap();
        assert!(
            args.ends_with("rundlet.root=/dev/vda rundlet.scratch=/dev/vdb rundlet.hostname=box"),
            "{args}"
        );
        assert_eq!(
            config["drives"],
            serde_json::json!([
                {"drive_id": "root", "path_on_host": guest.root, "is_root_device": false, "is_read_only": true},
                {"drive_id": "scratch", "path_on_host": "scratch.img", "is_root_device": false, "is_read_only": false},
            ])
        );
        assert_eq!(
            config["machine-config"],
            serde_json::json!({"vcpu_count": 1, "mem_size_mib": 128})
        );
        assert_eq!(
            config["vsock"],
            serde_json::json!({"guest_cid": 3, "uds_path": "vsock.sock"})
        );
        assert_eq!(config["boot-source"]["initrd_path"], "/guest/initrd.cpio");
    }
}
