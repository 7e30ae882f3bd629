//! The VMM of one sandbox: `rundlet-vmm boot`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::child::{Child, Start};
use super::spec::{json, text};
use super::{Event, SandboxSpec, Sink, Sockets, StartError, VmmEnd, VmmExit};
use crate::places;

const NAME: &str = "rundlet-vmm";

/// Guest context id. Each VMM has a vsock of its own, so all guests may have the first free one
/// (virtio 1.2 section 5.10.4: 0 to 2 are reserved).
const GUEST_CID: u32 = 3;

/// Most that is kept of what the guest prints on its console.
const CONSOLE_LIMIT: u64 = 1024 * 1024;

/// Descriptors of a disk's queue.
const QUEUE_SIZE: u16 = 128;

/// The VMM's spec, as it reads it.
#[derive(Debug, Serialize)]
struct Spec<'a> {
    kernel: Kernel<'a>,
    memory_mib: u32,
    vcpus: u8,
    disks: [Disk<'a>; 2],
    vsock: Vsock<'a>,
    console: Console<'a>,
}

#[derive(Debug, Serialize)]
struct Kernel<'a> {
    path: &'a str,
    initrd: &'a str,
    cmdline: String,
}

#[derive(Debug, Serialize)]
struct Disk<'a> {
    id: &'a str,
    socket: &'a str,
    read_only: bool,
    queues: u16,
    queue_size: u16,
}

#[derive(Debug, Serialize)]
struct Vsock<'a> {
    cid: u32,
    socket: &'a str,
}

#[derive(Debug, Serialize)]
struct Console<'a> {
    path: &'a str,
    limit_bytes: u64,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Timeline {
        instants_us: BTreeMap<String, u64>,
    },
    Exit(VmmExit),
    #[serde(other)]
    Other,
}

/// The running VMM.
#[derive(Debug)]
pub(super) struct Vmm {
    child: Child,
}

impl Vmm {
    pub(super) fn start(
        spec: &SandboxSpec,
        sockets: &Sockets,
        console: &Path,
        events: &Sink,
    ) -> Result<Self, StartError> {
        let program = places::program(NAME)?;
        let spec = describe(spec, sockets, console)?;
        let start = Start {
            name: NAME,
            program: &program,
            arguments: ["boot", "--spec", "-"].map(Into::into).to_vec(),
            input: &spec,
        };
        let last_words = Arc::new(Mutex::new(None));
        let (heard, to_lines, to_end) = (
            Arc::clone(&last_words),
            Arc::clone(events),
            Arc::clone(events),
        );
        let child = Child::start(
            &start,
            move |line| match serde_json::from_slice(line) {
                Ok(Line::Timeline { instants_us }) => to_lines(Event::Timeline(instants_us)),
                Ok(Line::Exit(exit)) => {
                    *heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(exit);
                }
                Ok(Line::Other) => {}
                Err(error) => log::warn!("{NAME} said what is no event: {error}"),
            },
            move |status| {
                let mut exit = last_words.lock().unwrap_or_else(PoisonError::into_inner);
                to_end(Event::VmmEnded(VmmEnd {
                    status,
                    exit: exit.take(),
                }));
            },
        )?;
        Ok(Self { child })
    }

    pub(super) fn child(&self) -> &Child {
        &self.child
    }

    pub(super) fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}

fn describe(spec: &SandboxSpec, sockets: &Sockets, console: &Path) -> Result<Vec<u8>, StartError> {
    let disk = |id, socket, read_only| Disk {
        id,
        socket,
        read_only,
        queues: 1,
        queue_size: QUEUE_SIZE,
    };
    json(&Spec {
        kernel: Kernel {
            path: text(&spec.kernel)?,
            initrd: text(&spec.initrd)?,
            cmdline: command_line(spec),
        },
        memory_mib: spec.memory_mib,
        vcpus: spec.vcpus,
        disks: [
            disk("root", text(&sockets.root)?, true),
            disk("scratch", text(&sockets.scratch)?, false),
        ],
        vsock: Vsock {
            cid: GUEST_CID,
            socket: text(&sockets.vsock)?,
        },
        console: Console {
            path: text(console)?,
            limit_bytes: CONSOLE_LIMIT,
        },
    })
}

/// Disks get their letters in the order of the spec.
fn command_line(spec: &SandboxSpec) -> String {
    let quiet = if spec.verbose { "" } else { "quiet " };
    format!(
        "{quiet}rundlet.root=/dev/vda rundlet.scratch=/dev/vdb rundlet.hostname={}",
        spec.id
    )
}
