//! What the host and the guest's agent say to each other, over vsock.
//!
//! The agent listens on [`AGENT_PORT`]. One connection carries one session: after the two
//! [`Hello`](Request::Hello)s either one command ([`Request::Exec`]) with its streams, or one of
//! [`Request::Prepare`], [`Request::Renew`] and [`Request::Shutdown`]. The host need not wait for the
//! agent's hello before it says more. When the agent has come up it dials the host's [`READY_PORT`] once
//! and says [`Ready`]; a host that does not listen loses nothing.
//!
//! A connection is a sequence of frames in each direction ([`frame`]). Control frames hold one JSON
//! message; data frames hold raw bytes of stdin, stdout or stderr.
//!
//! **Back-pressure is per stream.** A sender may have at most [`WINDOW`] bytes of one stream
//! outstanding; the receiver gives [`Frame::Credit`] back as it passes bytes on. So a program that
//! never reads its stdin delays no signal, and a reader that is stuck on stdout delays no stderr.
//!
//! **Ends of streams.** The host says once that stdin has ended; on a terminal in line mode that is
//! typed as its end-of-file character. A command that closes its stdin early is not reported: what still
//! comes is dropped and credited. The agent says once for stdout and stderr that they have ended, as soon
//! as the command has closed them. With a terminal there is no stderr.
//!
//! **Order at the end.** [`Reply::Exited`] follows every byte that the command itself wrote, and the ends
//! of its streams. A daemon it left behind, still holding the pipes, does not delay it.
//!
//! **Disconnect.** When the host closes the connection, or its sending half, before the last message,
//! the command is killed with every process that it started (a guest kernel without cgroup v2: its
//! process group). A daemon left behind by a command that has ended stays.
//!
//! **Templates.** A guest becomes a template in three steps: warm-up commands, [`Request::Prepare`], and,
//! outside of this protocol, the capture of the machine. A warm-up command that is to live on in the clones is
//! started with [`ExecSpec::keep`]: the host closes its connection, and the command goes on with its stdin
//! ended and its output thrown away. After [`Reply::Prepared`] no program of the sandbox runs, and none can be
//! started, until [`Request::Renew`] has been carried out: in the guest itself, or in each of its clones.
//! Connections do not come along into a clone.
//!
//! **Clones.** [`Request::Renew`] is the first request to a clone. The agent mixes the host's entropy into the
//! kernel's generator and has it reseeded, which also renews what the kernel derives from it (the secrets of TCP's
//! sequence numbers), then sets clock, hostname, machine id and boot id, and only then lets the frozen programs run.
//! If a step fails, the answer is a [`Failure`] that begins with the name of the field, and they stay frozen. A
//! guest that was never prepared is renewed in the same way; its programs run meanwhile.

pub mod frame;
mod renewal;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use frame::{Frame, FrameError, Stream};
pub use renewal::{Entropy, Renewal, RenewalError};

/// Version of this protocol. Host and guest refuse to talk when theirs differ: the agent ships with
/// the host, so there is no other version to be kind to.
pub const VERSION: u32 = 2;

/// The context id of the host, virtio 1.2 section 5.10.4 (`VMADDR_CID_HOST`, vsock(7)).
pub const HOST_CID: u32 = 2;

/// vsock port on which the agent serves the host.
pub const AGENT_PORT: u32 = 1024;

/// vsock port on the host that the agent dials once it is ready.
pub const READY_PORT: u32 = 1025;

/// Most bytes of one stream that may be on the way without credit.
pub const WINDOW: u32 = 256 * 1024;

/// Host to guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The first message of every connection.
    Hello { version: u32 },
    /// Runs a command; answered by [`Reply::Started`] or [`Reply::Failed`]. Once per connection.
    Exec(ExecSpec),
    /// Sends a signal (signal(7), 1..=64) to the command's process group. Of no effect once the command
    /// has ended.
    Signal { signal: i32 },
    /// New size of the command's terminal, in characters. Ignored without a terminal.
    Resize { rows: u16, columns: u16 },
    /// The machine is about to become a template: freezes every program, writes what is dirty to scratch.
    /// Answered by [`Reply::Prepared`], or by [`Reply::Failed`] and nothing is frozen: when a program cannot be
    /// frozen in time, or a command would die with its connection since it was not started with `keep`.
    Prepare {},
    /// Makes a clone unlike every other; answered by [`Reply::Renewed`] or [`Reply::Failed`].
    Renew(Renewal),
    /// Ends every process, writes nothing back to scratch, powers the machine off.
    Shutdown,
}

/// Guest to host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// Answer to [`Request::Hello`].
    Hello { version: u32 },
    /// The command runs. `pid` is its process id in the guest.
    Started { pid: u32 },
    /// The command has ended and all it wrote has been sent. Last message of the connection.
    Exited(ExitStatus),
    /// The request was not carried out. Last message of the connection.
    Failed(Failure),
    /// Answer to [`Request::Prepare`]. Last message of the connection.
    Prepared {},
    /// Answer to [`Request::Renew`]: programs run again. Last message of the connection. `took_us`: from the
    /// request's arrival to now, in microseconds of the guest's `CLOCK_MONOTONIC`.
    Renewed { took_us: u64 },
    /// Answer to [`Request::Shutdown`], sent before the machine goes off.
    ShuttingDown,
}

/// The one message on the connection to [`READY_PORT`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// [`VERSION`] of the agent.
    pub version: u32,
    /// Guest's `CLOCK_BOOTTIME` when PID 1 began, in microseconds.
    pub init_us: u64,
    /// Guest's `CLOCK_BOOTTIME` when the agent began to listen, in microseconds.
    pub ready_us: u64,
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecSpec {
    /// Program and arguments. A program without a slash is looked up in `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment. The agent adds `PATH`, `HOME` and (with a terminal) `TERM` where missing.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` where absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// `USER[:GROUP]`, names or numbers, looked up in the image; root where absent.
    #[serde(default)]
    pub user: Option<String>,
    /// A terminal of this size instead of three pipes; its output comes on stdout.
    #[serde(default)]
    pub tty: Option<TtySize>,
    /// Whether the host will send stdin; otherwise the command reads `/dev/null` (or, with a terminal,
    /// nothing).
    #[serde(default)]
    pub stdin: bool,
    /// Whether the command outlives its connection. The host may close that at any time after
    /// [`Reply::Started`]: the command's stdin then ends, and what it writes is thrown away.
    #[serde(default)]
    pub keep: bool,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TtySize {
    pub rows: u16,
    pub columns: u16,
}

/// How a command ended, wait(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ExitStatus {
    /// Exit code, 0..=255.
    Code(i32),
    /// Number of the signal that ended it.
    Signal(i32),
}

impl ExitStatus {
    /// The code a shell would report: the exit code, or 128 plus the signal.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128_i32.saturating_add(signal),
        }
    }
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    pub kind: FailureKind,
    /// One sentence that names the field or file.
    pub message: String,
}

/// Kinds of [`Failure`] that a caller may want to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The versions of host and agent differ.
    Version,
    /// A message or frame that this protocol does not have, or not in this place.
    Protocol,
    /// The program does not exist (a shell's 127).
    NotFound,
    /// The program exists and cannot be executed (a shell's 126).
    NotExecutable,
    /// A field of the request is wrong: working directory, user, empty argv.
    Invalid,
    /// The guest has run out of something, or does not let the agent do it.
    Resources,
    /// Not in the state that the guest is in: prepared for a template, or not fit to become one.
    State,
}
