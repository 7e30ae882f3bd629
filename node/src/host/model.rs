//! What a node says of its sandboxes and takes as wishes for them: plain data, the same in the API, on disk and
//! inside.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a sandbox is in its life. There is no way back; `failed` and `stopped` are final.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its slot is taken, its processes start; the guest has not been heard of yet.
    Creating,
    /// The agent answers; no command yet.
    Ready,
    /// A command was begun.
    Running,
    /// Its end was asked for.
    Stopping,
    /// It has ended as it was asked to, and nothing of it is left but this record.
    Stopped,
    /// It has ended without being asked to, or never became ready: `reason` says why. Nothing else of it is left.
    Failed,
}

/// What a sandbox is made of: exactly one of the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// The name of an image, which is booted.
    Image(String),
    /// The name of a template, which is cloned.
    Template(String),
}

/// A sandbox to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSandbox {
    pub source: Source,
    /// Guest memory, MiB, 64 to 65536; 256 where absent. A clone has its template's and takes no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Virtual CPUs, 1 to 16; 1 where absent. A clone has its template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// Size of the writable layer, MiB; 1024 where absent. A clone has its template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_mib: Option<u64>,
    /// Environment of every command in it, under what a command brings itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// At most 32; names have 1 to 63 letters, digits and `._/-`, values at most 255 bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Seconds after which it is stopped, counted from ready; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    #[serde(default)]
    pub limits: Limits,
    /// Whether it is removed when its first streamed command ends or loses its client, or does not come soon.
    #[serde(default)]
    pub auto_remove: bool,
}

/// Limits of the sandbox's cgroup, in the words of cgroup-v2.rst. Absent: the node's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Thousandths of a CPU, 10 to 1024000: `cpu.max` over periods of 100 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// `memory.max`, MiB: guest memory and what the VMM needs for itself. At least guest memory plus 16, where given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// `pids.max`: threads of the VMM, at least 16. What runs in the guest is not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// `io.max` lines, e.g. `8:0 rbps=1048576`. Scratch and root are read and written by the block backend, outside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub io: Vec<String>,
}

/// A sandbox, as lists show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Summary {
    /// Twelve hexadecimal digits; also its host name.
    pub id: String,
    pub phase: Phase,
    /// Why it failed, or was stopped without anybody asking for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub source: Source,
    pub labels: BTreeMap<String, String>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Milliseconds since 1970; absent while it lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
}

/// A sandbox in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Detail {
    #[serde(flatten)]
    pub summary: Summary,
    pub memory_mib: u32,
    pub vcpus: u8,
    pub limits: Limits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// Named instants of its start, microseconds after the request.
    pub timeline_us: BTreeMap<String, u64>,
    /// Path of its cgroup, below the cgroup2 mount; absent once it is given back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Process id of its VMM on the host; absent when it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// `memory.current` of its cgroup, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// `usage_usec` of `cpu.stat`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us: Option<u64>,
    /// Commands that run now.
    pub commands: u32,
    /// Whether it was found again by a daemon that did not start it.
    pub recovered: bool,
}

/// Something that happened; numbered without gaps from the start of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    pub sequence: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// A sandbox has come from one phase into another; each transition exactly once.
    Sandbox {
        id: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<Phase>,
        to: Phase,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        labels: BTreeMap<String, String>,
    },
    /// The record of a sandbox that had ended is gone.
    Removed { id: String },
    /// A zygote has died, and the next start makes another one. Without a name: the one for images.
    ZygoteLost { template: String },
    /// A block backend has died, and its sandboxes with it.
    BackendLost { source: Source },
    /// A template does not fit this host any more, and is being built again.
    TemplateUnfit { template: String, why: String },
    /// That is over: there is another one under its name, or an error.
    TemplateRebuilt {
        template: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A slot of the pool would not empty and was set aside.
    SlotSetAside { slot: String, why: String },
    /// The reader was too slow, and this many events before the next one are lost to it.
    Missed { count: u64 },
}
