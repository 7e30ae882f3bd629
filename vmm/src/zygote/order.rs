//! A request that can be carried out: checked, its descriptors in their places.

use std::os::fd::{AsRawFd, OwnedFd};

use thiserror::Error;

use super::wire::{ChildRequest, Request, Role};
use crate::jail::JailSpec;
use crate::spec::{CloneSpec, SandboxSpec, SpecError};
use crate::wire::{self, ParseError};

/// Words of requests.
const CLONE: &str = "clone";
const BOOT: &str = "boot";
/// The longest id.
pub const MAX_ID: usize = 64;

/// What is wrong with a request; each names its field.
#[derive(Debug, Error)]
pub enum OrderError {
    /// It is not a request.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The id cannot be used.
    #[error("{verb}.id: must be 1 to {MAX_ID} letters, digits, dots, dashes or underscores")]
    Id { verb: &'static str },
    /// The spec cannot be used.
    #[error("{verb}.spec.{error}")]
    Spec {
        verb: &'static str,
        error: SpecError,
    },
    /// A number from somewhere else.
    #[error(
        "{verb}.spec.console.fd: {number} is a descriptor of the zygote; send one along and call it \
         \"console\" in {verb}.fds"
    )]
    ConsoleNumber { verb: &'static str, number: i32 },
    /// More or fewer names than descriptors.
    #[error("{verb}.fds: names {named}, but {came} came along")]
    Count {
        verb: &'static str,
        named: usize,
        came: usize,
    },
    /// Two descriptors for one purpose.
    #[error("{verb}.fds[{index}]: {role:?} is there already")]
    Twice {
        verb: &'static str,
        index: usize,
        role: Role,
    },
}

/// What a child shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A clone of the zygote's template.
    Clone(CloneSpec),
    /// A sandbox that boots.
    Boot(SandboxSpec),
}

impl Wanted {
    /// What it shall be shut in.
    #[must_use]
    pub fn jail(&self) -> Option<&JailSpec> {
        match self {
            Self::Clone(spec) => spec.jail.as_ref(),
            Self::Boot(spec) => spec.jail.as_ref(),
        }
    }

    /// The word for it in requests.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Clone(_) => CLONE,
            Self::Boot(_) => BOOT,
        }
    }
}

/// What a child is given.
#[derive(Debug, Default)]
pub struct Gifts {
    /// Where it is born.
    pub cgroup: Option<OwnedFd>,
    /// What ends it.
    pub lifeline: Option<OwnedFd>,
    /// Its standard output.
    pub stdout: Option<OwnedFd>,
    /// Its standard error.
    pub stderr: Option<OwnedFd>,
    /// Its console's sink; the spec has its number.
    pub console: Option<OwnedFd>,
}

/// One sandbox to make.
#[derive(Debug)]
pub struct Order {
    /// The node's name for it.
    pub id: String,
    /// What it shall be.
    pub wanted: Wanted,
    /// What it is given.
    pub gifts: Gifts,
}

impl Order {
    /// Reads a request, and puts what came with it into its places.
    pub fn new(json: &[u8], descriptors: Vec<OwnedFd>) -> Result<Self, OrderError> {
        match Request::parse(json)? {
            Request::Clone(request) => Self::fill(
                CLONE,
                request,
                descriptors,
                |spec| &mut spec.console,
                Wanted::Clone,
            ),
            Request::Boot(request) => Self::fill(
                BOOT,
                request,
                descriptors,
                |spec| &mut spec.console,
                Wanted::Boot,
            ),
        }
    }

    fn fill<W, S: TryFrom<W, Error = SpecError>>(
        verb: &'static str,
        request: ChildRequest<W>,
        descriptors: Vec<OwnedFd>,
        console: fn(&mut W) -> &mut Option<wire::Console>,
        wanted: fn(S) -> Wanted,
    ) -> Result<Self, OrderError> {
        let ChildRequest { id, mut spec, fds } = request;
        if !usable(&id) {
            return Err(OrderError::Id { verb });
        }
        let gifts = Gifts::new(verb, &fds, descriptors)?;
        let console = console(&mut spec);
        if let Some(number) = console.as_ref().and_then(|console| console.fd) {
            return Err(OrderError::ConsoleNumber { verb, number });
        }
        if let Some(sink) = &gifts.console {
            let console = console.get_or_insert_default();
            console.path = None;
            console.fd = Some(sink.as_raw_fd());
        }
        let spec = S::try_from(spec).map_err(|error| OrderError::Spec { verb, error })?;
        let wanted = wanted(spec);
        Ok(Self { id, wanted, gifts })
    }
}

/// True if `id` can be the name of a sandbox; it becomes part of its process's name.
#[must_use]
pub fn usable(id: &str) -> bool {
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=MAX_ID).contains(&id.len()) && id.chars().all(usable)
}

impl Gifts {
    fn new(
        verb: &'static str,
        roles: &[Role],
        descriptors: Vec<OwnedFd>,
    ) -> Result<Self, OrderError> {
        if roles.len() != descriptors.len() {
            return Err(OrderError::Count {
                verb,
                named: roles.len(),
                came: descriptors.len(),
            });
        }
        let mut gifts = Self::default();
        for (index, (&role, descriptor)) in roles.iter().zip(descriptors).enumerate() {
            let place = match role {
                Role::Cgroup => &mut gifts.cgroup,
                Role::Lifeline => &mut gifts.lifeline,
                Role::Stdout => &mut gifts.stdout,
                Role::Stderr => &mut gifts.stderr,
                Role::Console => &mut gifts.console,
            };
            if place.replace(descriptor).is_some() {
                return Err(OrderError::Twice { verb, index, role });
            }
        }
        Ok(gifts)
    }
}

#[cfg(test)]
mod tests;
