//! A new template's first clone, before the template has its name: it shows that clones come up, and which pages
//! each of them touches until it is renewed, and for its first command, so that those of the others are there before
//! they run.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rundlet_protocol::ExecSpec;

use super::{Record, Template, build};
use crate::agent::{AgentError, CommandEvent, Streams};
use crate::claim;
use crate::error::chain;
use crate::run::watch::{Watch, Wire};
use crate::run::{Cause, Place, RunError};
use crate::sandbox::{Cloned, Console, Deed, Origin, Sandbox, SandboxSpec};

/// For the VMM to look at its page tables and write a small file.
const NOTE: Duration = Duration::from_secs(60);

/// For the command.
const COMMAND: Duration = Duration::from_secs(60);

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
    if note(&watch.sandbox, &directory, Deed::Renewal) {
        match command(&mut watch.sandbox) {
            Ok(()) => drop(note(&watch.sandbox, &directory, Deed::Command)),
            Err(error) => log::warn!(
                "which pages a clone's first command touches stays unknown: {}",
                chain(&error)
            ),
        }
    }
    Ok(())
}

/// Whether it is known now.
fn note(sandbox: &Sandbox, directory: &Path, by: Deed) -> bool {
    let noted = sandbox.note_touched(directory, by, NOTE);
    match &noted {
        Ok(touched) => log::info!("clones touch {touched:?} ({by:?})"),
        Err(error) => log::warn!(
            "which pages clones touch ({by:?}) stays unknown: {}",
            chain(error)
        ),
    }
    noted.is_ok()
}

/// Runs a command that does nothing. How it ends does not matter: an image without a shell has touched what it takes to
/// find that out.
fn command(sandbox: &mut Sandbox) -> Result<(), AgentError> {
    let spec = ExecSpec {
        argv: ["sh", "-c", ":"].map(str::to_owned).to_vec(),
        env: BTreeMap::new(),
        cwd: None,
        user: None,
        tty: None,
        stdin: false,
        keep: false,
    };
    let streams = Streams {
        stdin: None,
        stdout: Box::new(io::sink()),
        stderr: Box::new(io::sink()),
    };
    let (sender, over) = mpsc::channel();
    let _command = sandbox.connect()?.exec(spec, streams, move |event| {
        let last = match event {
            CommandEvent::Exited(_) | CommandEvent::Failed(_) => Ok(()),
            CommandEvent::Lost(error) => Err(error),
            _ => return,
        };
        // Nobody listens any more if it was too late.
        let _ = sender.send(last);
    })?;
    over.recv_timeout(COMMAND)
        .unwrap_or(Err(AgentError::Late { request: "exec" }))
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
