//! What there is to know about a template, from outside.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::Serialize;

use super::Record;
use super::store::{FILES, HINTS};
use crate::error::PathError;
use crate::locks;

/// A template as `rundlet template inspect` shows it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    #[serde(flatten)]
    pub record: Record,
    pub path: PathBuf,
    /// Apparent and allocated size of all files, in bytes.
    pub bytes: u64,
    pub allocated_bytes: u64,
    pub files: Vec<FileSize>,
    /// Processes that use it.
    pub used_by: Vec<u32>,
}

/// One file of a template.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct FileSize {
    pub name: &'static str,
    pub bytes: u64,
    pub allocated_bytes: u64,
}

impl Inspection {
    /// Looks at the template in `path`.
    pub(super) fn of(path: PathBuf, record: Record) -> Result<Self, PathError> {
        let mut files = Vec::with_capacity(FILES.len() + 1);
        for name in FILES.into_iter().chain(HINTS) {
            let file = path.join(name);
            let metadata = match fs::metadata(&file) {
                Ok(metadata) => metadata,
                // Without a hint, or damaged, which is for the VMM to say.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(PathError::at("look at", &file)(error)),
            };
            files.push(FileSize {
                name,
                bytes: metadata.len(),
                // In units of 512 bytes, stat(2).
                allocated_bytes: metadata.blocks().saturating_mul(512),
            });
        }
        let used_by = locks::users(&path).unwrap_or_default();
        Ok(Self {
            record,
            path,
            bytes: files.iter().map(|file| file.bytes).sum(),
            allocated_bytes: files.iter().map(|file| file.allocated_bytes).sum(),
            files,
            used_by,
        })
    }
}
