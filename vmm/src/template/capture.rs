//! Making a template of a sandbox.
//!
//! First everything stands still: the vCPUs, then the devices, which finish what they have begun. Then the
//! state is read, device by device, and memory last, a piece at a time. The header is written when all
//! else is on disk, so a template that was cut off in the making does not begin as one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::format::{self, FormatError, HEADER, Header, Pages};
use super::host::{Host, HostError};
use super::pages::{PIECE, PageWriter};
use super::state::State;
use super::touched::Touched;
use super::{FIRST_COMMAND, MEMORY, STATE, TOUCHED, WINDOW};
use crate::devices::Attached;
use crate::devices::state::SaveError;
use crate::kvm::{Hypervisor, KvmError, Vm};
use crate::memory::{GuestRam, Kind, regions};
use crate::spec::{Binding, MemorySpec};
use crate::vcpu::thread::{ThreadError, Vcpus};
use crate::wire::Deed;

/// Why there is no template.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The guest's vCPUs.
    #[error(transparent)]
    Vcpus(#[from] ThreadError),
    /// A device.
    #[error("cannot stop {0}")]
    Device(#[from] SaveError),
    /// The machine.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// What it would be bound to.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A thread.
    #[error("cannot start a thread")]
    Chaperone(#[source] io::Error),
    /// A file.
    #[error("cannot write {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Memory.
    #[error("cannot read guest memory at {address:#x}")]
    Memory {
        address: u64,
        #[source]
        source: GuestMemoryError,
    },
    /// The state.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// A sandbox that can be captured, without its vCPUs.
#[derive(Debug)]
pub struct Subject {
    pub hypervisor: Arc<Hypervisor>,
    pub vm: Arc<Vm>,
    pub ram: GuestRam,
    pub memory: MemorySpec,
    pub devices: Arc<Attached>,
}

/// The template is on disk; this many bytes of it are not holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    pub memory_bytes: u64,
    pub window_bytes: u64,
}

impl Subject {
    /// Fills the draft. From here on the devices are dead, whatever comes of it: the vCPUs, which must be
    /// paused, can run no more.
    pub fn capture(
        &self,
        vcpus: &Vcpus,
        draft: Draft,
        binding: &Binding,
    ) -> Result<Captured, CaptureError> {
        let host = Host::here(&self.hypervisor)?;
        let chaperone = self.devices.chaperone();
        let chaperone = chaperone.map_err(CaptureError::Chaperone)?;
        let devices = self.devices.save()?;
        drop(chaperone);
        let state = State {
            binding: binding.labels().clone(),
            memory: self.memory.into(),
            vm: self.vm.save(vcpus.moment(&self.vm)?)?,
            vcpus: vcpus.save(self.hypervisor.state_msrs()?)?,
            devices,
        };
        let captured = self.write(&draft, host, &state)?;
        draft.keep();
        Ok(captured)
    }

    /// Adds to the template in `directory`, of which this is a clone, what this has touched: until it was renewed; or since
    /// then, for its first command. How many pages, and how many of these were written.
    pub fn touched(&self, directory: &Path, by: Deed) -> io::Result<(u64, u64)> {
        let mut header = [0; HEADER];
        File::open(directory.join(STATE))?.read_exact_at(&mut header, 0)?;
        let sum = format::header_sum(&header);
        let mut touched = Touched::of(&self.ram, &self.memory)?;
        let name = match by {
            Deed::Renewal => TOUCHED,
            Deed::Command => {
                let before = Touched::read(&directory.join(TOUCHED), sum, &self.memory);
                touched = touched.beyond(&before.map_err(io::Error::other)?);
                FIRST_COMMAND
            }
        };
        touched.write(&directory.join(name), sum)?;
        Ok(touched.count())
    }

    fn write(&self, draft: &Draft, host: Host, state: &State) -> Result<Captured, CaptureError> {
        let window = self.write_pages(&draft.window, Kind::Window)?;
        let memory = self.write_pages(&draft.memory, Kind::Private)?;
        let header = Header {
            host,
            memory,
            window,
        };
        let bytes = format::encode(&header, state)?;
        let NewFile { path, file, .. } = &draft.state;
        file.write_all_at(&bytes, 0)
            .and_then(|()| file.sync_all())
            .map_err(|source| CaptureError::File {
                path: path.clone(),
                source,
            })?;
        Ok(Captured {
            memory_bytes: memory.data,
            window_bytes: window.data,
        })
    }

    /// The pieces of one kind, one after the other.
    fn write_pages(&self, to: &NewFile, wanted: Kind) -> Result<Pages, CaptureError> {
        let failed = |source| CaptureError::File {
            path: to.path.clone(),
            source,
        };
        let mut writer = PageWriter::new(&to.file);
        let mut piece = vec![0; PIECE];
        for (range, kind) in regions(&self.memory) {
            if kind != wanted {
                continue;
            }
            for address in (range.start..range.end()).step_by(PIECE) {
                let left = range.end() - address;
                let count = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
                let piece = piece.get_mut(..count).unwrap_or_default();
                self.ram
                    .memory()
                    .read_slice(piece, GuestAddress(address))
                    .map_err(|source| CaptureError::Memory { address, source })?;
                writer.write(piece).map_err(failed)?;
            }
        }
        writer.finish().map_err(failed)
    }
}

/// A file that goes again unless it is kept.
#[derive(Debug)]
struct NewFile {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl NewFile {
    fn create(path: PathBuf) -> Result<Self, CaptureError> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        match options.open(&path) {
            Ok(file) => Ok(Self {
                path,
                file,
                kept: false,
            }),
            Err(source) => Err(CaptureError::File { path, source }),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// The files of a template in the making.
#[derive(Debug)]
pub struct Draft {
    state: NewFile,
    memory: NewFile,
    window: NewFile,
}

impl Draft {
    /// Makes the files in `directory`, where none of them may be yet.
    pub fn create(directory: &Path) -> Result<Self, CaptureError> {
        Ok(Self {
            state: NewFile::create(directory.join(STATE))?,
            memory: NewFile::create(directory.join(MEMORY))?,
            window: NewFile::create(directory.join(WINDOW))?,
        })
    }

    fn keep(mut self) {
        for file in [&mut self.state, &mut self.memory, &mut self.window] {
            file.kept = true;
        }
    }
}
