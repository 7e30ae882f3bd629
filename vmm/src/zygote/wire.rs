//! The datagrams between the node and a zygote, JSON each, and nothing of what they mean.

use serde::{Deserialize, Serialize};

use crate::wire::{CloneSpec, ParseError, parse};

/// From the node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Request {
    Clone(CloneRequest),
}

/// `clone` of [`Request`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneRequest {
    pub id: String,
    pub spec: CloneSpec,
    /// What the descriptors are that came with the datagram, in their order.
    #[serde(default)]
    pub fds: Vec<Role>,
}

/// One of `fds` of [`CloneRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A directory of cgroup2, which the clone is born into.
    Cgroup,
    /// The read end of a pipe: the clone ends when the other end is closed.
    Lifeline,
    Stdout,
    Stderr,
    /// Takes the place of `spec.console.path`.
    Console,
}

impl Request {
    /// Reads one datagram.
    pub fn parse(json: &[u8]) -> Result<Self, ParseError> {
        parse(json)
    }

    /// The id of a request that cannot be read, if at least that can.
    #[must_use]
    pub fn id_of_unreadable(json: &[u8]) -> Option<String> {
        #[derive(Deserialize)]
        struct Outer {
            clone: Inner,
        }
        #[derive(Deserialize)]
        struct Inner {
            id: String,
        }
        let outer: Outer = serde_json::from_slice(json).ok()?;
        Some(outer.clone.id)
    }
}

/// To the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The template is loaded and fits; the first datagram.
    Ready {},
    /// A clone is on its way; a pidfd comes with this.
    Cloned { id: String, pid: i32 },
    /// There is no clone. No id if none could be read.
    Refused { id: Option<String>, message: String },
    /// A clone has ended, with either a code or a signal.
    Ended {
        id: String,
        pid: i32,
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
    },
}

impl Answer {
    /// The datagram.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain fields always serialise")
    }
}
