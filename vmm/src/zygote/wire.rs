//! The datagrams between the node and a zygote, JSON each, and nothing of what they mean.

use serde::{Deserialize, Serialize};

use crate::wire::{CloneSpec, ParseError, Spec, parse};

/// From the node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Request {
    /// To a zygote with a template.
    Clone(ChildRequest<CloneSpec>),
    /// To a zygote without.
    Boot(ChildRequest<Spec>),
}

/// What is inside a [`Request`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChildRequest<S> {
    pub id: String,
    pub spec: S,
    /// What the descriptors are that came with the datagram, in their order.
    #[serde(default = "Vec::new")]
    pub fds: Vec<Role>,
}

/// One of `fds` of [`ChildRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A directory of cgroup2, which the sandbox is born into.
    Cgroup,
    /// The read end of a pipe: the sandbox ends when the other end is closed.
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
        #[serde(rename_all = "snake_case")]
        enum Outer {
            Clone(Inner),
            Boot(Inner),
        }
        #[derive(Deserialize)]
        struct Inner {
            id: String,
        }
        match serde_json::from_slice(json).ok()? {
            Outer::Clone(inner) | Outer::Boot(inner) => Some(inner.id),
        }
    }
}

/// To the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The template, if there is one, is loaded and fits; the first datagram.
    Ready {},
    /// A sandbox is on its way, clone or boot; a pidfd comes with this.
    Cloned { id: String, pid: i32 },
    /// There is no sandbox. No id if none could be read.
    Refused { id: Option<String>, message: String },
    /// A sandbox has ended, with either a code or a signal.
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
