//! What a sandbox should be; valid from here on.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::StartError;
use crate::image::Image;
use crate::scratch;
use crate::template::{Binding, Template};

/// Guest memory that the VMM takes, MiB.
pub(crate) const MEMORY_MIB: RangeInclusive<u32> = 64..=64 * 1024;

/// vCPUs that the VMM takes.
pub(crate) const VCPUS: RangeInclusive<u8> = 1..=16;

/// Why a wish is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("--memory is {0} MiB, {min} to {max} are possible", min = MEMORY_MIB.start(), max = MEMORY_MIB.end())]
    Memory(u32),
    #[error("--vcpus is {0}, {min} to {max} are possible", min = VCPUS.start(), max = VCPUS.end())]
    Vcpus(u8),
}

/// Where the guest's console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// Kept for errors, gone with the sandbox.
    Internal,
    /// A file of the caller's.
    File(PathBuf),
}

/// A sandbox to start.
#[derive(Debug)]
pub struct SandboxSpec {
    /// Also its host name and the name of its run directory.
    pub id: String,
    pub console: Console,
    pub origin: Origin,
}

/// Where a sandbox begins.
#[derive(Debug)]
pub enum Origin {
    Boot(Box<Boot>),
    Clone(Box<Cloned>),
}

/// A cold boot.
#[derive(Debug)]
pub struct Boot {
    pub memory_mib: u32,
    pub vcpus: u8,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// Locked in the store for as long as the sandbox is wanted.
    pub image: Image,
    pub scratch: scratch::Template,
    /// Where the scratch disk is to stay, if the sandbox is to be captured; on the store's filesystem.
    pub keep: Option<PathBuf>,
    /// Whether the guest's kernel says everything on its console.
    pub verbose: bool,
}

/// A clone of a template.
#[derive(Debug)]
pub struct Cloned {
    /// Locked in the store, as above.
    pub template: Template,
    /// What a template built now would be made of: the VMM refuses one that was made of anything else.
    pub binding: Binding,
    /// Whether the VMM is to be asked for something later: [`Sandbox::note_touched`](super::Sandbox::note_touched).
    pub controlled: bool,
}

impl Boot {
    /// Refuses what the VMM would refuse, in the words of the command line.
    ///
    /// # Errors
    /// A number is out of its range.
    pub fn check(self) -> Result<Self, SpecError> {
        check_size(self.memory_mib, self.vcpus)?;
        Ok(self)
    }
}

/// Looks at the numbers alone.
///
/// # Errors
/// A number is out of its range.
pub fn check_size(memory_mib: u32, vcpus: u8) -> Result<(), SpecError> {
    if !MEMORY_MIB.contains(&memory_mib) {
        return Err(SpecError::Memory(memory_mib));
    }
    if !VCPUS.contains(&vcpus) {
        return Err(SpecError::Vcpus(vcpus));
    }
    Ok(())
}

/// A path as JSON can hold it.
pub(crate) fn text(path: &Path) -> Result<&str, StartError> {
    path.to_str().ok_or_else(|| StartError::NotText {
        path: path.to_path_buf(),
    })
}

/// What a peer reads from its stdin.
pub(crate) fn json(value: &impl Serialize) -> Result<Vec<u8>, StartError> {
    serde_json::to_vec(value).map_err(StartError::Json)
}
