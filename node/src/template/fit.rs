//! Whether a template fits what there is now: host, programs, guest files.

use std::sync::Arc;

use super::{TemplateError, TemplateName, Templates, build};
use crate::image::Store;
use crate::run::Cause;
use crate::sandbox::zygote::{Ends, Zygote, ZygoteError};

/// Why a template cannot be cloned, or why that is not known.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Guest(Box<Cause>),
    #[error(
        "template {0} was made of another kernel or initrd than there is now; `rundlet template build` makes a new one"
    )]
    Stale(TemplateName),
    #[error("template {name} cannot be cloned")]
    Zygote {
        name: TemplateName,
        source: ZygoteError,
    },
}

/// Has the VMM load and verify a template, as it would before it makes the first clone; makes none.
///
/// # Errors
/// It does not fit or is damaged; there is none; the VMM cannot be started.
pub fn check(store: &Store, name: &TemplateName) -> Result<(), FitError> {
    let template = Templates::of(store).find(name)?;
    let now = build::binding_now(store, &template.record)
        .map_err(|cause| FitError::Guest(Box::new(cause)))?;
    if now != template.record.binding {
        return Err(FitError::Stale(name.clone()));
    }
    let nobody: Ends = Arc::new(|_, _| {});
    match Zygote::start(Some(&template.path), nobody, || {}) {
        Ok(zygote) => drop(zygote),
        Err(source) => {
            return Err(FitError::Zygote {
                name: name.clone(),
                source,
            });
        }
    }
    Ok(())
}
