//! A new template's first clone, before the template has its name: it shows that clones come up, and which pages
//! each of them touches until it is renewed, so that those of the others are there before they run.

use std::time::{Duration, Instant};

use super::{Record, Template, build};
use crate::claim;
use crate::run::watch::{Watch, Wire};
use crate::run::{Cause, Place, RunError};
use crate::sandbox::{Cloned, Console, Origin, SandboxSpec};

/// For the VMM to look at its page tables and write a small file.
const NOTE: Duration = Duration::from_secs(60);

/// Makes a clone of a template that has no name yet, and adds to the template what it touched.
///
/// # Errors
/// The clone does not come up. That what it touched stays unknown is no error: clones come up without.
pub(super) fn run(place: &Place, wire: &Wire, template: Template) -> Result<(), RunError> {
    let record = template.record.clone();
    let directory = template.path.clone();
    let spec = SandboxSpec {
        id: claim::random_hex().map_err(Cause::Random)?,
        console: Console::Internal,
        origin: Origin::Clone(Box::new(Cloned {
            binding: record.binding.clone(),
            template,
            controlled: true,
        })),
    };
    let mut watch = Watch::start(wire, &spec, &place.runtime, Instant::now())?;
    if let Err(cause) = until_ready(&mut watch, &record) {
        return Err(watch.fail(cause));
    }
    match watch.sandbox.note_touched(&directory, NOTE) {
        Ok(touched) => log::info!("clones touch {touched:?} until they are renewed"),
        Err(error) => log::warn!(
            "which pages clones touch stays unknown: {}",
            crate::error::chain(&error)
        ),
    }
    Ok(())
}

fn until_ready(watch: &mut Watch<'_>, record: &Record) -> Result<(), Cause> {
    let limit = Duration::from_secs(record.recipe.boot_timeout_s);
    match watch.until_ready(limit) {
        Ok(None) => Ok(()),
        Ok(Some(signal)) => Err(Cause::Interrupted(signal)),
        Err(cause @ Cause::TemplateUnfit(_)) => Err(build::still_unfit(&record.name, cause)),
        Err(cause) => Err(cause),
    }
}
