//! A request that can be carried out: checked, its descriptors in their places.

use std::os::fd::{AsRawFd, OwnedFd};

use thiserror::Error;

use super::wire::{CloneRequest, Request, Role};
use crate::spec::{CloneSpec, SpecError};
use crate::wire::ParseError;

/// The longest id.
pub const MAX_ID: usize = 64;

/// What is wrong with a request; each names its field.
#[derive(Debug, Error)]
pub enum OrderError {
    /// It is not a request.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The id cannot be used.
    #[error("clone.id: must be 1 to {MAX_ID} letters, digits, dots, dashes or underscores")]
    Id,
    /// The spec cannot be used.
    #[error("clone.spec.{0}")]
    Spec(SpecError),
    /// A number from somewhere else.
    #[error(
        "clone.spec.console.fd: {0} is a descriptor of the zygote; send one along and call it \
         \"console\" in clone.fds"
    )]
    ConsoleNumber(i32),
    /// More or fewer names than descriptors.
    #[error("clone.fds: names {named}, but {came} came along")]
    Count { named: usize, came: usize },
    /// Two descriptors for one purpose.
    #[error("clone.fds[{index}]: {role:?} is there already")]
    Twice { index: usize, role: Role },
}

/// What a clone is given.
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

/// One clone to make.
#[derive(Debug)]
pub struct Order {
    /// The node's name for it.
    pub id: String,
    /// What it shall be.
    pub spec: CloneSpec,
    /// What it is given.
    pub gifts: Gifts,
}

impl Order {
    /// Reads a request, and puts what came with it into its places.
    pub fn new(json: &[u8], descriptors: Vec<OwnedFd>) -> Result<Self, OrderError> {
        let Request::Clone(request) = Request::parse(json)?;
        let CloneRequest { id, mut spec, fds } = request;
        if !usable(&id) {
            return Err(OrderError::Id);
        }
        let gifts = Gifts::new(&fds, descriptors)?;
        if let Some(number) = spec.console.as_ref().and_then(|console| console.fd) {
            return Err(OrderError::ConsoleNumber(number));
        }
        if let Some(sink) = &gifts.console {
            let console = spec.console.get_or_insert_default();
            console.path = None;
            console.fd = Some(sink.as_raw_fd());
        }
        let spec = spec.try_into().map_err(OrderError::Spec)?;
        Ok(Self { id, spec, gifts })
    }
}

/// True if `id` can be the name of a clone; it becomes part of its process's name.
#[must_use]
pub fn usable(id: &str) -> bool {
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=MAX_ID).contains(&id.len()) && id.chars().all(usable)
}

impl Gifts {
    fn new(roles: &[Role], descriptors: Vec<OwnedFd>) -> Result<Self, OrderError> {
        if roles.len() != descriptors.len() {
            return Err(OrderError::Count {
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
                return Err(OrderError::Twice { index, role });
            }
        }
        Ok(gifts)
    }
}

#[cfg(test)]
mod tests;
