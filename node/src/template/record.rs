//! `template.json`: what a template is, and how to make it again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::TemplateName;
use crate::error::PathError;
use crate::image::ImageName;

/// Its name in a template's directory.
pub(crate) const FILE: &str = "template.json";

/// Everything the node knows about a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub name: TemplateName,
    /// Another for every build.
    pub id: String,
    pub recipe: Recipe,
    pub binding: Binding,
    /// Digest of the `rundlet-vmm` that captured it.
    pub vmm: String,
    /// Seconds since 1970.
    pub created: u64,
}

/// All that a build needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What the image was called; which one it is, [`Binding::image`] says.
    pub image: ImageName,
    pub memory_mib: u32,
    pub vcpus: u8,
    pub scratch_mib: u64,
    /// Kernel and initrd, where they are not the usual ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,
    /// For the boot, in seconds.
    pub boot_timeout_s: u64,
}

/// A command that runs before the capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmUp {
    pub argv: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The command is ready when it prints this line on its stdout, and lives on in the clones. Without
    /// it, it is done when it ends with exit code 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_line: Option<String>,
    /// How long it may take, in seconds.
    pub timeout_s: u64,
}

/// What a template was made of: digests, `sha256-` and 64 hexadecimal digits each. The VMM keeps them
/// with the template and refuses to clone it for others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    pub kernel: String,
    pub initrd: String,
    pub image: String,
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("{} is damaged", path.display())]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
}

impl Record {
    /// Reads the record of the template in `directory`.
    pub(crate) fn read(directory: &Path) -> Result<Self, RecordError> {
        let path = directory.join(FILE);
        let json = fs::read(&path).map_err(PathError::at("read", &path))?;
        serde_json::from_slice(&json).map_err(|source| RecordError::Damaged { path, source })
    }

    /// Writes it as a new file, durably.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), RecordError> {
        let path = directory.join(FILE);
        let json = serde_json::to_vec_pretty(self).map_err(|source| RecordError::Damaged {
            path: path.clone(),
            source,
        })?;
        let mut file = File::create_new(&path).map_err(PathError::at("create", &path))?;
        file.write_all(&json)
            .and_then(|()| file.sync_all())
            .map_err(PathError::at("write", &path))?;
        Ok(())
    }
}
