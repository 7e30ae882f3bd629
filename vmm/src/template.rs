//! A template: a paused sandbox on disk, from which clones are made.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::outcome::Outcome;
use crate::spec::Binding;

/// Why a template cannot be used here.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// Something about it differs from what is here or was asked for.
    #[error("the template at {} does not fit: {why}", directory.display())]
    Stale { directory: PathBuf, why: String },
    /// It is not whole.
    #[error("the template at {} is damaged: {why}", directory.display())]
    Damaged { directory: PathBuf, why: String },
}

impl TemplateError {
    /// The end of a process that was to make a clone.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Stale { .. } => Outcome::TemplateStale(self.to_string()),
            Self::Damaged { .. } => Outcome::TemplateDamaged(self.to_string()),
        }
    }
}

/// A verified template.
#[derive(Debug)]
pub struct Template {}

impl Template {
    /// Opens and verifies all of it.
    pub fn open(_directory: &Path) -> Result<Self, TemplateError> {
        todo!()
    }

    /// Compares what the template was made from with what a clone wants it to be made from.
    pub fn check_binding(&self, _binding: &Binding) -> Result<(), TemplateError> {
        todo!()
    }
}
