//! The walls around a sandbox: what they are for each kind of thread ([`seccomp`]), and when they are put up.
//!
//! In this order, when all that the sandbox needs is open and no guest has run: threads of the start are gone
//! → the sandbox's directory becomes the root → identity and capabilities go → vCPU threads start, each
//! with its filter, and wait → this thread takes its own → the vCPUs run.
//!
//! A sandbox always has the filters and can gain no rights. The rest, which only root can give, it has if its
//! spec has a `jail`; its namespaces are older than itself ([`crate::zygote`]).

pub mod seccomp;

use std::path::PathBuf;

use rundlet_jail::filter::{Filter, FilterError};
use rundlet_jail::namespaces;
use rundlet_jail::rights::{self, Identity, RightsError};
use rundlet_jail::root::{self, Root, RootError};
use thiserror::Error;

use self::seccomp::Duty;

/// Why a sandbox is not walled in, and so must not run.
#[derive(Debug, Error)]
pub enum JailError {
    /// Threads that nobody can hold back.
    #[error("cannot wait for the threads of the start")]
    Threads(#[source] std::io::Error),
    /// The root.
    #[error(transparent)]
    Root(#[from] RootError),
    /// Identity and capabilities.
    #[error(transparent)]
    Rights(#[from] RightsError),
    /// System calls.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

/// Who a sandbox is, and all that it sees of the file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JailSpec {
    /// A user and a group that nobody else has.
    pub identity: Identity,
    /// Its directory.
    pub root: PathBuf,
}

/// The filters of a sandbox's threads; compiled once, by a zygote for all of its children.
#[derive(Clone, Debug)]
pub struct Filters {
    /// For each vCPU's thread.
    pub vcpu: Filter,
    /// For the main thread, and those that it starts later.
    pub main: Filter,
}

impl Filters {
    /// For sandboxes that do no more than this.
    pub fn compile(duty: Duty) -> Result<Self, FilterError> {
        Ok(Self {
            vcpu: Filter::compile(seccomp::vcpu(duty))?,
            main: Filter::compile(seccomp::main(duty))?,
        })
    }
}

/// Puts up the walls that all threads have in common. From here on what is not open stays closed.
pub fn close(spec: Option<&JailSpec>) -> Result<(), JailError> {
    namespaces::alone().map_err(JailError::Threads)?;
    let Some(JailSpec { identity, root }) = spec else {
        return Ok(rights::no_more()?);
    };
    root::enter(Root::Directory(root))?;
    Ok(rights::give_up(*identity)?)
}
