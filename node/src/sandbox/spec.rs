//! What a sandbox should be; valid from here on.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::StartError;
use crate::image::Image;
use crate::scratch::Template;

/// Guest memory that the VMM takes, MiB.
const MEMORY_MIB: RangeInclusive<u32> = 64..=64 * 1024;

/// vCPUs that the VMM takes.
const VCPUS: RangeInclusive<u8> = 1..=16;

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
    pub memory_mib: u32,
    pub vcpus: u8,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// Locked in the store for as long as the sandbox is wanted.
    pub image: Image,
    pub scratch: Template,
    pub console: Console,
    /// Whether the guest's kernel says everything on its console.
    pub verbose: bool,
}

impl SandboxSpec {
    /// Refuses what the VMM would refuse, in the words of the command line.
    ///
    /// # Errors
    /// A number is out of its range.
    pub fn check(self) -> Result<Self, SpecError> {
        if !MEMORY_MIB.contains(&self.memory_mib) {
            return Err(SpecError::Memory(self.memory_mib));
        }
        if !VCPUS.contains(&self.vcpus) {
            return Err(SpecError::Vcpus(self.vcpus));
        }
        Ok(self)
    }
}

/// A path as JSON can hold it.
pub(super) fn text(path: &Path) -> Result<&str, StartError> {
    path.to_str().ok_or_else(|| StartError::NotText {
        path: path.to_path_buf(),
    })
}

/// What a peer reads from its stdin.
pub(super) fn json(value: &impl Serialize) -> Result<Vec<u8>, StartError> {
    serde_json::to_vec(value).map_err(StartError::Json)
}
