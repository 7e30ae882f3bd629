//! A template: a paused sandbox on disk, from which clones are made.
//!
//! [`capture`] writes one; [`Template::open`] reads and verifies it, once for all clones that a process
//! makes; [`crate::sandbox::restore`] makes a clone. The files are described in `docs/template-format.md`:
//! [`mod@format`] reads and writes the first bytes, [`state`] is what is in there, `pages` is how memory
//! is kept, [`host`] what a template is bound to.
//!
//! What must hold: a template that was not verified whole is not used, not even in part; its files do not
//! change while they are open, which is for the owner of the store to see to.

pub mod capture;
pub mod format;
pub mod host;
mod pages;
pub mod state;
pub mod touched;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Advice;
use thiserror::Error;

use self::format::{FormatError, HEADER, Header, MAX_BODY, Pages};
use self::host::{Host, HostError};
use self::state::State;
use self::touched::Touched;
use crate::kvm::Hypervisor;
use crate::memory::{GuestRam, MemoryError};
use crate::outcome::{Outcome, with_causes};
use crate::spec::{Binding, CloneSpec, ConsoleSpec, DevicesSpec, DiskSpec, SpecError, VsockSpec};

/// Names of the files.
pub const STATE: &str = "state";
/// See [`STATE`].
pub const MEMORY: &str = "memory";
/// See [`STATE`].
pub const WINDOW: &str = "window";
/// See [`STATE`].
pub const TOUCHED: &str = "touched";
/// See [`STATE`].
pub const FIRST_COMMAND: &str = "first-command";

/// Why a template cannot be used here.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// Something about it differs from what is here or was asked for.
    #[error("the template at {} does not fit: {why}", directory.display())]
    Stale { directory: PathBuf, why: String },
    /// It is not whole.
    #[error("the template at {} is damaged: {why}", directory.display())]
    Damaged { directory: PathBuf, why: String },
    /// It is not known what is here.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl TemplateError {
    /// The end of a process that was to make a clone.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Stale { .. } => Outcome::TemplateStale(self.to_string()),
            Self::Damaged { .. } => Outcome::TemplateDamaged(self.to_string()),
            Self::Host(_) => Outcome::Error(with_causes(self)),
        }
    }
}

/// A verified template.
#[derive(Debug)]
pub struct Template {
    directory: PathBuf,
    hypervisor: Arc<Hypervisor>,
    state: State,
    memory: File,
    /// The pages of the window that are not zero: where, and what. Every clone gets a copy.
    window: Vec<(u64, Vec<u8>)>,
    /// What every clone touches first.
    touched: Touched,
    /// What its first command touches beyond that.
    first_command: Arc<Touched>,
}

impl Template {
    /// Opens a template and verifies all of it, every byte of memory, too.
    pub fn open(directory: &Path) -> Result<Self, TemplateError> {
        let damaged = |why| TemplateError::Damaged {
            directory: directory.to_owned(),
            why,
        };
        let stale = |why| TemplateError::Stale {
            directory: directory.to_owned(),
            why,
        };
        let hypervisor = Hypervisor::open().map_err(HostError::from)?;
        let file = read_state(directory).map_err(damaged)?;
        let (header, body) = format::parse_header(&file).map_err(|error| match error {
            FormatError::Epoch { .. } => stale(error.to_string()),
            _ => damaged(error.to_string()),
        })?;
        if let Some(why) = header.host.differs_from(&Host::here(&hypervisor)?) {
            return Err(stale(why));
        }
        let state =
            format::parse_body(body, &header).map_err(|error| damaged(error.to_string()))?;
        let hint = |name| {
            let (path, sum) = (directory.join(name), format::header_sum(&file));
            Touched::read(&path, sum, &state.memory.into())
                .map_err(|why| damaged(format!("{name}: {why}")))
        };
        let (touched, first_command) = (hint(TOUCHED)?, hint(FIRST_COMMAND)?);
        let Header {
            host: _,
            memory,
            window,
        } = header;
        let memory = verify(directory, MEMORY, memory, |_, _| {}).map_err(damaged)?;
        let mut pages: Vec<(u64, Vec<u8>)> = Vec::new();
        verify(directory, WINDOW, window, |at, page| {
            match pages
                .last_mut()
                .filter(|(start, run)| *start + run.len() as u64 == at)
            {
                Some((_, run)) => run.extend_from_slice(page),
                None => pages.push((at, page.to_vec())),
            }
        })
        .map_err(damaged)?;
        Ok(Self {
            directory: directory.to_owned(),
            hypervisor: Arc::new(hypervisor),
            state,
            memory,
            window: pages,
            touched,
            first_command: Arc::new(first_command),
        })
    }

    /// Compares what the template was made from with what a clone wants it to be made from.
    pub fn check_binding(&self, wanted: &Binding) -> Result<(), TemplateError> {
        let (have, wanted) = (&self.state.binding, wanted.labels());
        let differs = |name: &&String| have.get(*name) != wanted.get(*name);
        let Some(name) = have.keys().chain(wanted.keys()).find(differs) else {
            return Ok(());
        };
        let word = |value: Option<&String>| {
            value.map_or_else(|| "nothing".to_owned(), |v| format!("{v:?}"))
        };
        let (have, wanted) = (word(have.get(name)), word(wanted.get(name)));
        Err(TemplateError::Stale {
            directory: self.directory.clone(),
            why: format!("its {name} is {have}, asked for is {wanted}"),
        })
    }

    /// The devices of a clone: the template's, in the places that the clone's spec gives.
    pub fn devices(&self, spec: &CloneSpec) -> Result<DevicesSpec, SpecError> {
        let state = &self.state.devices;
        let misfit = |field: &str, why: String| SpecError::Text {
            field: field.to_owned(),
            why,
        };
        let ids: Vec<_> = state.disks.iter().map(|disk| &disk.id).collect();
        if !ids
            .iter()
            .copied()
            .eq(spec.disks.iter().map(|disk| &disk.id))
        {
            return Err(misfit(
                "disks",
                format!("the template has {ids:?}, in this order"),
            ));
        }
        let disks = state.disks.iter().zip(&spec.disks).map(|(disk, place)| {
            let queues = u16::try_from(disk.transport.queues.len());
            DiskSpec {
                id: disk.id.clone(),
                socket: place.socket.clone(),
                read_only: disk.read_only,
                queues: queues.expect("checked when the template was read"),
                queue_size: disk.queue_size,
            }
        });
        let vsock = match (&state.vsock, &spec.vsock) {
            (None, None) => None,
            (Some(vsock), Some(socket)) => Some(VsockSpec {
                cid: vsock.cid,
                socket: socket.clone(),
            }),
            (Some(_), None) => return Err(misfit("vsock", "the template has it".to_owned())),
            (None, Some(_)) => return Err(misfit("vsock", "the template has none".to_owned())),
        };
        let console = match (&state.console, &spec.console) {
            (None, None) => None,
            (Some(_), Some(console)) => Some(console.clone()),
            // The driver is there and writes.
            (Some(_), None) => Some(ConsoleSpec::silent()),
            (None, Some(_)) => return Err(misfit("console", "the template has none".to_owned())),
        };
        Ok(DevicesSpec {
            disks: disks.collect(),
            vsock,
            console,
        })
    }

    /// Memory for one clone: private over the template's, with a window of its own.
    pub fn ram(&self) -> Result<GuestRam, MemoryError> {
        let ram = GuestRam::private_over(&self.state.memory.into(), &self.memory)?;
        for (offset, pages) in &self.window {
            let window = ram.window();
            let written = window.file.write_all_at(pages, *offset);
            written.map_err(|source| MemoryError::Window { source })?;
        }
        Ok(ram)
    }

    /// What a clone touches until it is renewed.
    #[must_use]
    pub fn touched(&self) -> &Touched {
        &self.touched
    }

    /// What a clone's first command touches beyond that.
    #[must_use]
    pub fn first_command(&self) -> &Arc<Touched> {
        &self.first_command
    }

    /// Drops the memory's pages from the page cache, as far as the file system has one and nobody maps them. What is
    /// there later has been touched meanwhile.
    pub fn forget_cached(&self) {
        if let Err(error) = rustix::fs::fadvise(&self.memory, 0, None, Advice::DontNeed) {
            log::warn!("cannot drop the template's pages from the page cache: {error}");
        }
    }

    /// Everything that is not in memory.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The host's KVM.
    #[must_use]
    pub fn hypervisor(&self) -> &Arc<Hypervisor> {
        &self.hypervisor
    }
}

fn read_state(directory: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| format!("{STATE}: it cannot be read: {error}");
    let file = File::open(directory.join(STATE)).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(HEADER as u64 + MAX_BODY + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

/// Opens a file of pages and reads it through. The size comes first: what is mapped past the end of a
/// file would be found out by a signal.
fn verify(
    directory: &Path,
    name: &str,
    expected: Pages,
    visit: impl FnMut(u64, &[u8]),
) -> Result<File, String> {
    let failed = |error: io::Error| format!("{name}: it cannot be read: {error}");
    let file = File::open(directory.join(name)).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    if len != expected.len {
        let expected = expected.len;
        return Err(format!("{name}: it has {len} bytes instead of {expected}"));
    }
    if pages::read(&file, len, visit).map_err(failed)? != expected {
        return Err(format!("{name}: its checksum is wrong"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests;
