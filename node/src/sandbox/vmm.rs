//! The VMM of one sandbox: `rundlet-vmm boot` or `rundlet-vmm clone`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::child::{Child, Start, Tie};
use super::spec::{Boot, Cloned, Origin, json, text};
use super::{Event, SandboxSpec, Sink, Sockets, StartError, VmmEnd, VmmExit};
use crate::places;
use crate::template::Binding;

pub(super) const NAME: &str = "rundlet-vmm";

/// Guest context id. Each VMM has a vsock of its own, so all guests may have the first free one
/// (virtio 1.2 section 5.10.4: 0 to 2 are reserved).
const GUEST_CID: u32 = 3;

/// Most that is kept of what the guest prints on its console.
const CONSOLE_LIMIT: u64 = 1024 * 1024;

/// Descriptors of a disk's queue.
const QUEUE_SIZE: u16 = 128;

/// The spec of a cold boot, as the VMM reads it.
#[derive(Debug, Serialize)]
struct BootSpec<'a> {
    kernel: Kernel<'a>,
    memory_mib: u32,
    vcpus: u8,
    disks: [Disk<'a>; 2],
    vsock: Vsock<'a>,
    console: ConsoleSpec<'a>,
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
struct ConsoleSpec<'a> {
    path: &'a str,
    limit_bytes: u64,
}

/// The spec of a clone, as the VMM reads it: everything else is in the template.
#[derive(Debug, Serialize)]
pub(super) struct CloneSpec<'a> {
    binding: &'a Binding,
    disks: [CloneDisk<'a>; 2],
    vsock: CloneVsock<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    console: Option<ConsoleSpec<'a>>,
}

#[derive(Debug, Serialize)]
struct CloneDisk<'a> {
    id: &'a str,
    socket: &'a str,
}

#[derive(Debug, Serialize)]
struct CloneVsock<'a> {
    socket: &'a str,
}

impl<'a> CloneSpec<'a> {
    pub(super) fn new(
        binding: &'a Binding,
        [root, scratch]: [&'a Path; 2],
        vsock: &'a Path,
        console: Option<&'a Path>,
    ) -> Result<Self, StartError> {
        let disk = |id, socket| CloneDisk { id, socket };
        Ok(Self {
            binding,
            disks: [disk("root", text(root)?), disk("scratch", text(scratch)?)],
            vsock: CloneVsock {
                socket: text(vsock)?,
            },
            console: console.map(console_spec).transpose()?,
        })
    }
}

/// What a VMM says on its stdout.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Line {
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
        let (arguments, input) = match &spec.origin {
            Origin::Boot(boot) => boot_command(&spec.id, boot, sockets, console)?,
            Origin::Clone(clone) => clone_command(clone, sockets, console)?,
        };
        let start = Start {
            name: NAME,
            program: &program,
            arguments,
            tie: Tie::Lifeline { input: &input },
        };
        let last_words = Arc::new(Mutex::new(None));
        let (heard, to_lines, to_end) = (
            Arc::clone(&last_words),
            Arc::clone(events),
            Arc::clone(events),
        );
        let child = Child::start(
            start,
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

/// Arguments and stdin.
type Command = (Vec<OsString>, Vec<u8>);

fn boot_command(
    id: &str,
    boot: &Boot,
    sockets: &Sockets,
    console: &Path,
) -> Result<Command, StartError> {
    let disk = |id, socket, read_only| Disk {
        id,
        socket,
        read_only,
        queues: 1,
        queue_size: QUEUE_SIZE,
    };
    let spec = json(&BootSpec {
        kernel: Kernel {
            path: text(&boot.kernel)?,
            initrd: text(&boot.initrd)?,
            cmdline: command_line(id, boot.verbose),
        },
        memory_mib: boot.memory_mib,
        vcpus: boot.vcpus,
        disks: [
            disk("root", text(&sockets.root)?, true),
            disk("scratch", text(&sockets.scratch)?, false),
        ],
        vsock: Vsock {
            cid: GUEST_CID,
            socket: text(&sockets.vsock)?,
        },
        console: console_spec(console)?,
    })?;
    let mut arguments = ["boot", "--spec", "-"].map(Into::into).to_vec();
    if boot.keep.is_some() {
        arguments.extend(["--control".into(), sockets.control.clone().into()]);
    }
    Ok((arguments, spec))
}

fn clone_command(clone: &Cloned, sockets: &Sockets, console: &Path) -> Result<Command, StartError> {
    let disks = [&*sockets.root, &*sockets.scratch];
    let spec = CloneSpec::new(&clone.binding, disks, &sockets.vsock, Some(console))?;
    let spec = json(&spec)?;
    let mut arguments: Vec<OsString> = vec!["clone".into(), "--template".into()];
    arguments.push(clone.template.path.clone().into());
    arguments.extend(["--spec".into(), "-".into()]);
    Ok((arguments, spec))
}

fn console_spec(path: &Path) -> Result<ConsoleSpec<'_>, StartError> {
    Ok(ConsoleSpec {
        path: text(path)?,
        limit_bytes: CONSOLE_LIMIT,
    })
}

/// Disks get their letters in the order of the spec.
fn command_line(id: &str, verbose: bool) -> String {
    let quiet = if verbose { "" } else { "quiet " };
    format!("{quiet}rundlet.root=/dev/vda rundlet.scratch=/dev/vdb rundlet.hostname={id}")
}
