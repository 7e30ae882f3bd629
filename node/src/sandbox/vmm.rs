//! The VMM of one sandbox: `rundlet-vmm boot` or `rundlet-vmm clone`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::backend::Owner;
use super::child::{Child, Start, Tie};
use super::spec::{Boot, Cloned, Origin, json, text};
use super::{Event, SandboxSpec, Sink, Sockets, StartError, VmmEnd, VmmExit};
use crate::places;
use crate::template::Binding;

pub(crate) const NAME: &str = "rundlet-vmm";

/// Guest context id. Each VMM has a vsock of its own, so all guests may have the first free one
/// (virtio 1.2 section 5.10.4: 0 to 2 are reserved).
const GUEST_CID: u32 = 3;

/// Most that is kept of what the guest prints on its console.
const CONSOLE_LIMIT: u64 = 1024 * 1024;

/// Descriptors of a disk's queue.
const QUEUE_SIZE: u16 = 128;

/// The spec of a cold boot, as the VMM reads it.
#[derive(Debug, Serialize)]
pub(crate) struct BootSpec<'a> {
    kernel: Kernel<'a>,
    memory_mib: u32,
    vcpus: u8,
    disks: [Disk<'a>; 2],
    vsock: Vsock<'a>,
    console: ConsoleSpec<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jail: Option<Jail<'a>>,
}

/// A machine to boot, apart from where its files and sockets are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: &'a Path,
    pub(crate) memory_mib: u32,
    pub(crate) vcpus: u8,
    /// Whether the guest's kernel says everything on its console.
    pub(crate) verbose: bool,
}

/// Where a VMM finds what it needs of the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends<'a> {
    /// Sockets of the block backend.
    pub(crate) root: &'a Path,
    pub(crate) scratch: &'a Path,
    pub(crate) vsock: &'a Path,
    pub(crate) console: Option<&'a Path>,
    pub(crate) jail: Option<(Owner, &'a Path)>,
}

/// Who a VMM is before its guest's first instruction, and the directory that is all it sees.
#[derive(Debug, Serialize)]
struct Jail<'a> {
    #[serde(flatten)]
    owner: Owner,
    root: &'a str,
}

impl<'a> Jail<'a> {
    fn new((owner, root): (Owner, &'a Path)) -> Result<Self, StartError> {
        let root = text(root)?;
        Ok(Self { owner, root })
    }
}

impl<'a> BootSpec<'a> {
    /// `id` becomes the host name; the console is kept, if at all, in `ends.console`.
    pub(crate) fn new(
        id: &str,
        machine: &Machine<'a>,
        ends: &Ends<'a>,
    ) -> Result<Self, StartError> {
        let disk = |id, socket, read_only| Disk {
            id,
            socket,
            read_only,
            queues: 1,
            queue_size: QUEUE_SIZE,
        };
        Ok(Self {
            kernel: Kernel {
                path: text(machine.kernel)?,
                initrd: text(machine.initrd)?,
                cmdline: command_line(id, machine.verbose),
            },
            memory_mib: machine.memory_mib,
            vcpus: machine.vcpus,
            disks: [
                disk("root", text(ends.root)?, true),
                disk("scratch", text(ends.scratch)?, false),
            ],
            vsock: Vsock {
                cid: GUEST_CID,
                socket: text(ends.vsock)?,
            },
            console: console_spec(ends.console.unwrap_or_else(|| Path::new("/dev/null")))?,
            jail: ends.jail.map(Jail::new).transpose()?,
        })
    }
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
pub(crate) struct CloneSpec<'a> {
    binding: &'a Binding,
    disks: [CloneDisk<'a>; 2],
    vsock: CloneVsock<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    console: Option<ConsoleSpec<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jail: Option<Jail<'a>>,
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
    pub(crate) fn new(binding: &'a Binding, ends: &Ends<'a>) -> Result<Self, StartError> {
        let disk = |id, socket| CloneDisk { id, socket };
        Ok(Self {
            binding,
            disks: [
                disk("root", text(ends.root)?),
                disk("scratch", text(ends.scratch)?),
            ],
            vsock: CloneVsock {
                socket: text(ends.vsock)?,
            },
            console: ends.console.map(console_spec).transpose()?,
            jail: ends.jail.map(Jail::new).transpose()?,
        })
    }
}

/// What a VMM says on its stdout.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Line {
    Timeline {
        instants_us: BTreeMap<String, u64>,
    },
    Exit(VmmExit),
    #[serde(other)]
    Other,
}

/// The running VMM.
#[derive(Debug)]
pub(crate) struct Vmm {
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

    pub(crate) fn child(&self) -> &Child {
        &self.child
    }

    pub(crate) fn child_mut(&mut self) -> &mut Child {
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
    let machine = Machine {
        kernel: &boot.kernel,
        initrd: &boot.initrd,
        memory_mib: boot.memory_mib,
        vcpus: boot.vcpus,
        verbose: boot.verbose,
    };
    let spec = json(&BootSpec::new(id, &machine, &ends(sockets, console))?)?;
    let mut arguments = ["boot", "--spec", "-"].map(Into::into).to_vec();
    if boot.keep.is_some() {
        arguments.extend(["--control".into(), sockets.control.clone().into()]);
    }
    Ok((arguments, spec))
}

fn clone_command(clone: &Cloned, sockets: &Sockets, console: &Path) -> Result<Command, StartError> {
    let spec = CloneSpec::new(&clone.binding, &ends(sockets, console))?;
    let spec = json(&spec)?;
    let mut arguments: Vec<OsString> = vec!["clone".into(), "--template".into()];
    arguments.push(clone.template.path.clone().into());
    arguments.extend(["--spec".into(), "-".into()]);
    if clone.controlled {
        arguments.extend(["--control".into(), sockets.control.clone().into()]);
    }
    Ok((arguments, spec))
}

fn ends<'a>(sockets: &'a Sockets, console: &'a Path) -> Ends<'a> {
    Ends {
        root: &sockets.root,
        scratch: &sockets.scratch,
        vsock: &sockets.vsock,
        console: Some(console),
        jail: None,
    }
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
