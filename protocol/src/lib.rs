//! What the host and the guest's agent say to each other, over vsock.
//!
//! The agent listens on [`AGENT_PORT`]. One connection carries one session: after the two
//! [`Hello`](Request::Hello)s either one command ([`Request::Exec`]) with its streams, or
//! [`Request::Shutdown`]. When the agent has come up it dials the host's [`READY_PORT`] once and says
//! [`Ready`]; a host that does not listen loses nothing.
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

pub mod frame;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use frame::{Frame, FrameError, Stream};

/// Version of this protocol. Host and guest refuse to talk when theirs differ: the agent ships with
/// the host, so there is no other version to be kind to.
pub const VERSION: u32 = 1;

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
    /// The guest has run out of something.
    Resources,
}
